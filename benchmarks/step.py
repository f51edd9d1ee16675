"""The whole training step against the PyTorch peer (C1; G1 to G3 on a GPU).

    python benchmarks/step.py --peer=torch_vilem.py [--shape=small --batch=8]
        [--compile] [--out=FOLDER]

Editor, momentum towers, all losses, AdamW and queues, without dropout and augmentation,
which the peer has not. Two processes, one a system; each in its turn takes the same
number of steps, A/B/A/B, while the other sleeps, and then multiplies matrices: its
ceiling of that round. So every ratio compares neighbours in time. On CPU float32; on
CUDA bfloat16, where --microbatches and --attention are ours alone.

Not shown: reading pictures (loader.py), dropout, several devices.
"""

import json
import subprocess
import sys
from pathlib import Path

import reporting

SYSTEMS = ("ours", "peer")


def main() -> None:
    options = parse()
    if options.serve:
        return serve(options)
    children = {name: Child(name, sys.argv[1:]) for name in SYSTEMS}
    rounds = []
    for _ in range(options.rounds):
        rounds.append({name: children[name].ask("time") for name in SYSTEMS})
        print({name: round(each["step"], 4) for name, each in rounds[-1].items()})
    about = {name: child.ask("about") for name, child in children.items()}
    figures = {
        "machine": reporting.machine("jax", "jaxlib", "flax", "torch", "transformers"),
        "about": about,
        "rounds": rounds,
        **summary(rounds, options.batch),
    }
    reporting.write("step", options.out, figures, table(figures))


def parse():
    parser = reporting.arguments(__doc__)
    parser.add_argument("--peer", required=True, help="path of torch_vilem.py")
    parser.add_argument("--shape", default="small", help="one of the peer's")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--matmul", type=int, default=2048, help="side of the ceiling's"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the peer")
    parser.add_argument("--microbatches", type=int, default=1)
    parser.add_argument("--attention", choices=("xla", "cudnn"), default="xla")
    parser.add_argument("--serve", choices=SYSTEMS, help="used by the benchmark itself")
    return parser.parse_args()


class Child:
    """A process that times steps when asked to."""

    def __init__(self, name: str, arguments: list[str]):
        command = [sys.executable, __file__, *arguments, f"--serve={name}"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.ask("about")  # ready: compiled and warm

    def ask(self, what: str) -> dict:
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"the process that was asked to {what} ended")


def serve(options) -> None:
    import step_systems

    system = getattr(step_systems, f"make_{options.serve}")(options)
    system.steps(3)
    for line in sys.stdin:
        if line.strip() == "about":
            answer = system.about
        else:
            answer = {
                "step": system.steps(options.steps) / options.steps,
                "matmul_tflops": system.matmul(options.matmul),
            }
        print(json.dumps(answer), flush=True)


def summary(rounds: list[dict], batch: int) -> dict:
    spread, figures = reporting.spread, {}
    for name in SYSTEMS:
        figures[name] = {
            "step_seconds": spread([each[name]["step"] for each in rounds]),
            "pairs_per_second": spread([batch / each[name]["step"] for each in rounds]),
            "matmul_tflops": spread([each[name]["matmul_tflops"] for each in rounds]),
        }
    ratios = [each["peer"]["step"] / each["ours"]["step"] for each in rounds]
    # Pairs/s over one's own matmul ceiling, ours over the peer's.
    own = [
        ratio * each["peer"]["matmul_tflops"] / each["ours"]["matmul_tflops"]
        for ratio, each in zip(ratios, rounds, strict=True)
    ]
    return figures | {
        "speed_ours_over_peer": spread(ratios),
        "share_of_own_ceiling_ours_over_peer": spread(own),
    }


def table(figures: dict) -> str:
    def cell(spread, digits=3):
        low, high = spread["least"], spread["most"]
        return f"{spread['median']:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"

    rows = [
        [
            name,
            cell(figures[name]["step_seconds"]),
            cell(figures[name]["pairs_per_second"], 1),
            cell(figures[name]["matmul_tflops"]),
        ]
        for name in SYSTEMS
    ]
    head = ["system", "s a step", "pairs/s", "matmul, TFLOP/s"]
    ratios = [
        ["pairs/s, ours over the peer's", cell(figures["speed_ours_over_peer"])],
        [
            "the same, each over its own matmul",
            cell(figures["share_of_own_ceiling_ours_over_peer"]),
        ],
    ]
    return "\n\n".join(
        [
            f"{figures['about']}",
            reporting.markdown(head, rows),
            reporting.markdown(["ratio", "median (range)"], ratios),
        ]
    )


if __name__ == "__main__":
    if not Path(parse().peer).is_file():
        sys.exit(f"{parse().peer} is not the peer's torch_vilem.py")
    main()
