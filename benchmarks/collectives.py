"""FLOPs and collectives of eight devices, with one microbatch and with four (C5).

    python benchmarks/collectives.py --out=results

The devices are eight virtual CPU devices; the program is read, not run. The default
model is that of `tests/tiny.py`; --config takes any config, such as pretrain_cc4m, each
of whose three programs takes minutes to compile.
"""

import os

import reporting

NUM_DEVICES = 8


def main() -> None:
    parser = reporting.arguments(__doc__)
    parser.add_argument("--config", default="", help="default: the tiny model")
    parser.add_argument(
        "--pairs", type=int, default=4, help="per device and microbatch"
    )
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = os.environ.get("XLA_FLAGS", "")
    count = f"--xla_force_host_platform_device_count={NUM_DEVICES}"
    os.environ["XLA_FLAGS"] = f"{flags} {count}".strip()
    import jax

    from vilem_jax.planning import memory, plan
    from vilem_jax.planning.compiled import compile_ahead

    programs = []
    for num_devices, num_microbatches in ((1, 1), (NUM_DEVICES, 1), (NUM_DEVICES, 4)):
        # The same batch for all: keys and queue are a part of the work.
        config = settings(options, num_microbatches)
        step = compile_ahead(config, jax.devices()[:num_devices])
        trained = 4 * memory.parameters(config)["trained"]
        programs.append(
            {
                "num_devices": num_devices,
                "num_microbatches": num_microbatches,
                "batch_size": config.train.batch_size,
                "flops_a_device": step.program.flops,
                "gradient_bytes": trained,
                "key_bytes": 2
                * 4
                * config.train.batch_size
                * config.model.embedding_width,
            }
            | plan.describe(step, config)
        )
    metrics = {"programs": programs}
    reporting.write("collectives", options.out, metrics, table(programs))


def settings(options, num_microbatches: int):
    """The config of one program; all have the same batch size."""
    batch_size = options.pairs * NUM_DEVICES * 4
    if not options.config:
        from tests.tiny import tiny_config

        return tiny_config(
            train={"batch_size": batch_size, "num_microbatches": num_microbatches},
            loss={"queue_length": 2 * batch_size},
        )
    from vilem_jax.config.files import load_config

    return load_config(
        options.config,
        [
            ("train.batch_size", str(batch_size)),
            ("train.num_microbatches", str(num_microbatches)),
        ],
    )


def table(programs: list[dict]) -> str:
    alone = programs[0]["flops_a_device"]
    head = ["devices", "microbatches", "work x devices / one", "all-reduce, MB"]
    head += ["/ gradients", "in a loop", "all-gather, MB", "/ keys", "other, MB"]
    rows = []
    for one in programs:
        moved = {kind: 0.0 for kind in ("all-reduce", "all-gather", "other")}
        for row in one["collectives"]:
            kind = row["kind"] if row["kind"] in moved else "other"
            moved[kind] += row["bytes"]
        looped = sum(row["bytes"] for row in one["collectives"] if row["in_loop"])
        rows.append(
            [
                one["num_devices"],
                one["num_microbatches"],
                f"{one['flops_a_device'] * one['num_devices'] / alone:.4f}",
                f"{moved['all-reduce'] / 1e6:.3f}",
                f"{moved['all-reduce'] / one['gradient_bytes']:.3f}",
                f"{looped / 1e6:.3f}",
                f"{moved['all-gather'] / 1e6:.3f}",
                f"{moved['all-gather'] / one['key_bytes']:.3f}",
                f"{moved['other'] / 1e6:.3f}",
            ]
        )
    goals = (
        "Goals: work at most 1.03; all-reduce / gradients about 1 with any number of "
        "microbatches; all-gathers of the keys alone."
    )
    text = f"{reporting.markdown(head, rows)}\n\n{goals}"
    for one in programs[1:]:
        found = [
            [row["kind"], row["in_loop"], row["times"], row["bytes"], row["largest"]]
            for row in one["collectives"]
        ]
        head = ["kind", "in a loop", "times", "bytes", "largest"]
        title = f"{one['num_devices']} devices, {one['num_microbatches']} microbatches"
        text += f"\n\n{title}\n\n{reporting.markdown(head, found)}"
    return text


if __name__ == "__main__":
    main()
