"""The whole training step against the PyTorch peer (C1; G1 to G4 on a GPU).

    python benchmarks/step.py --peer=torch_vilem.py [--shape=small --batch=8]
        [--compile] [--out=FOLDER]
    python benchmarks/step.py --against=deterministic [...]

The step has editor, momentum towers, all losses, AdamW and queues, but no dropout and
no augmentation, as the peer has neither. Each system has a process. In turns, each
takes the same number of steps while the other waits, then multiplies matrices and
copies an array: its ceilings of that round. So every ratio compares measurements close
in time. On CPU float32; on CUDA bfloat16. --microbatches and --attention apply to ours
alone. "Share of its own matmul" counts the work of a step without exact savings.

With --against=deterministic (G4) the other system is ours again, compiled with
--xla_gpu_deterministic_ops=true, which has no effect on a CPU.

Not measured: reading images (loader.py, fed.py), dropout, several devices.
"""

import os
from pathlib import Path

import ceilings
import reporting
import shapes
from turns import Child, in_turns, serve

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
GOALS = {
    "peer": ">= 1.0; on an H200 2, compiled 1.25, and share_of_ceiling 0.5",
    "deterministic": "<= 1.10",
}


def main() -> None:
    options = parse()
    if options.serve:
        return time_system(options)
    other = options.against
    if other == "peer":
        child = Child("peer")
    else:
        flags = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}"
        child = Child("deterministic", XLA_FLAGS=flags.strip())
    children = {"ours": Child("ours"), other: child}
    rounds = in_turns(children, options.rounds)
    metrics = {
        "about": {name: child.about for name, child in children.items()},
        "rounds": rounds,
        **summary(rounds, options.batch, other, children["ours"].about),
        "goal": f"speed_ours_over_{other} {GOALS[other]}",
    }
    name = "step" if other == "peer" else other
    packages = ("jax", "jaxlib", "flax", "torch", "transformers")
    reporting.write(name, options.out, metrics, table(metrics, other), packages)


def parse():
    parser = reporting.arguments(__doc__)
    parser.add_argument("--against", choices=GOALS, default="peer")
    parser.add_argument("--peer", default="", help="path of torch_vilem.py")
    shapes.add_options(parser, batch=8)
    parser.add_argument("--steps", type=int, default=5, help="per turn")
    parser.add_argument("--compile", action="store_true", help="torch.compile the peer")
    parser.add_argument("--microbatches", type=int, default=1)
    parser.add_argument("--serve", help="used by the benchmark itself")
    options = parser.parse_args()
    if options.against == "peer" and not Path(options.peer).is_file():
        parser.error(f"--peer={options.peer} is not the peer's torch_vilem.py")
    return options


def time_system(options) -> None:
    import step_systems

    is_peer = options.serve == "peer"
    make = step_systems.make_peer if is_peer else step_systems.make_ours
    system = make(options)
    system.steps(3)

    def measure() -> dict:
        return {
            "step": system.steps(options.steps) / options.steps,
            **system.ceilings(),
        }

    serve(system.about, measure)


def summary(rounds: list[dict], batch: int, other: str, about: dict) -> dict:
    spread, metrics = reporting.spread, {}
    for name in ("ours", other):
        metrics[name] = {
            "step_seconds": spread([each[name]["step"] for each in rounds]),
            "pairs_per_second": spread([batch / each[name]["step"] for each in rounds]),
            **ceilings.spreads([each[name] for each in rounds]),
        }
    ratios = [each[other]["step"] / each["ours"]["step"] for each in rounds]
    # Each system's pairs/s over its own matmul ceiling, ours over the other's.
    own = [
        ratio * each[other]["matmul_tflops"] / each["ours"]["matmul_tflops"]
        for ratio, each in zip(ratios, rounds, strict=True)
    ]
    # FLOP/s over those of the matrix product of the same round.
    gflop = batch * about["gflop_a_pair"]
    share = [
        gflop / 1e3 / each["ours"]["step"] / each["ours"]["matmul_tflops"]
        for each in rounds
    ]
    return metrics | {
        "share_of_ceiling": spread(share),
        f"speed_ours_over_{other}": spread(ratios),
        f"share_of_own_ceiling_ours_over_{other}": spread(own),
    }


def table(metrics: dict, other: str) -> str:
    cell = reporting.cell
    rows = [
        [
            name,
            cell(metrics[name]["step_seconds"]),
            cell(metrics[name]["pairs_per_second"], 1),
            *(cell(metrics[name][what]) for what in ceilings.LABELS),
        ]
        for name in ("ours", other)
    ]
    head = ["system", "s a step", "pairs/s", *ceilings.LABELS.values()]
    names = {
        "share_of_ceiling": "ours, share of its own matmul",
        f"speed_ours_over_{other}": f"pairs/s, ours over {other}'s",
        f"share_of_own_ceiling_ours_over_{other}": "the same, each over its own matmul",
    }
    ratios = [[label, cell(metrics[name])] for name, label in names.items()]
    return "\n\n".join(
        [
            f"{metrics['about']}",
            reporting.markdown(head, rows),
            reporting.markdown(["ratio", "median (range)"], ratios),
            f"Goal: {metrics['goal']}.",
        ]
    )


if __name__ == "__main__":
    main()
