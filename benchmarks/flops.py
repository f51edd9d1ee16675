"""FLOPs of the compiled step over the count of `vilem plan`, savings off and on (C2).

    JAX_PLATFORMS=cpu python benchmarks/flops.py --out=results

Counts the matrix products in XLA's program for a CPU of the paper's step: ViT-B/16 at
256 pixels, BERT-base, K = 5, 30 tokens, one microbatch. The two programs are not run;
each takes a minute or two to compile.
"""

import reporting

OFF = [
    ("compute.cls_only_last_layer", "False"),
    ("compute.joint_text_pass", "False"),
    ("compute.editor_at_positions", "False"),
]


def main() -> None:
    parser = reporting.arguments(__doc__)
    parser.add_argument("--config", default="pretrain_cc4m")
    parser.add_argument("--pairs", type=int, default=2, help="per step; 1 to 4")
    options = parser.parse_args()
    import jax

    from vilem_jax.config.files import load_config
    from vilem_jax.planning import compiled, costs, plan

    settings = [("train.batch_size", str(options.pairs)), ("editor.max_edits", "5")]
    steps = {}
    for name, switches in (("savings off", OFF), ("savings on", [])):
        config = load_config(options.config, [*settings, *switches])
        step = compiled.compile_ahead(config, jax.devices()[:1])
        steps[name] = plan.describe(step, config) | {
            "counted": {
                part.name: part.total / 1e9 for part in costs.step_costs(config)
            }
        }
    reporting.write("flops", options.out, {"steps": steps}, table(steps))


def table(steps: dict) -> str:
    head = ["step", "GFLOP a pair, compiled", "/ the count", "/ the count, savings off"]
    head += ["trace, s", "compile, s"]
    rows = [
        [
            name,
            f"{step['gflop_a_pair']:.2f}",
            f"{step['against_the_count']:.4f}",
            f"{step['against_the_count_without_savings']:.4f}",
            f"{step['lower_seconds']:.0f}",
            f"{step['compile_seconds']:.0f}",
        ]
        for name, step in steps.items()
    ]
    goals = (
        "Goals: within 3 % of the count with savings off; at most 0.945 of it on. "
        "Seconds are of a compilation without machine-code optimization."
    )
    return f"{reporting.markdown(head, rows)}\n\n{goals}"


if __name__ == "__main__":
    main()
