"""The step with locked towers beside the step that trains all: time, FLOPs, bytes.

    python benchmarks/locked.py [--shape=small --batch=16 --rounds=5] [--device=cuda]
        [--cases="image tower,both towers"] [--out=FOLDER]

One process, one batch of noise. In each round every case takes as many steps as the
others, one case after the other, so that a ratio compares measurements close in time.
FLOPs are those of `vilem plan`. The bytes are those of a checkpoint: the whole state.

Not measured: reading images, an evaluation, and what the model is worth.
"""

import dataclasses
import time

import reporting
import shapes
import step_systems

CASES = {  # trained layers of the image and of the text tower; -1: all of it
    "nothing locked": (-1, -1),
    "image tower": (0, -1),
    "image tower but its last 2 layers": (2, -1),
    "text tower": (-1, 0),
    "both towers": (0, 0),
}


def main() -> None:
    parser = reporting.arguments(__doc__)
    shapes.add_options(parser, batch=16)
    parser.add_argument("--steps", type=int, default=2, help="of a case in a round")
    first, *others = CASES
    parser.add_argument("--cases", default=",".join(others), help="beside the first")
    options = parser.parse_args()
    chosen = [first, *options.cases.split(",")]
    shapes.use_device(options.device)
    import jax

    from vilem_jax.planning import costs

    plain = shapes.make_config(options)
    configs = {name: locking(plain, *CASES[name]) for name in chosen}
    systems = {name: System(config) for name, config in configs.items()}
    rounds = []
    for _ in range(options.rounds + 1):  # the first one compiles
        rounds.append(
            {n: system.seconds(options.steps) for n, system in systems.items()}
        )
    cases = {
        name: {
            "ratio": reporting.spread([one[name] / one[first] for one in rounds[1:]]),
            "seconds": reporting.spread([one[name] for one in rounds[1:]]),
            "gflop_a_pair": costs.flops(configs[name]) / 1e9,
            "state_bytes": system.num_bytes,
        }
        for name, system in systems.items()
    }
    device = jax.devices()[0].device_kind
    metrics = {"device": device, "shape": options.shape, "cases": cases}
    reporting.write("locked", options.out, metrics, table(cases))


def locking(config, vision: int, text: int):
    """`config` with so many trained layers of each tower."""
    model = dataclasses.replace(
        config.model,
        vision=dataclasses.replace(config.model.vision, num_trained_layers=vision),
        text=dataclasses.replace(config.model.text, num_trained_layers=text),
    )
    return dataclasses.replace(config, model=model)


class System:
    """A step with its state and batch."""

    def __init__(self, config):
        import jax

        from vilem_jax.distributed.mesh import one_device, put_batch

        layout = one_device()
        self._state, self._step = step_systems.begin_training(config, layout)
        self._batch = put_batch(shapes.random_batch(config), layout.mesh)
        self.num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._state))

    def seconds(self, count: int) -> float:
        """Seconds a step, of `count` of them."""
        import jax

        jax.block_until_ready(self._state)
        start = time.perf_counter()
        for _ in range(count):
            self._state, _ = self._step(self._state, self._batch)
        jax.block_until_ready(self._state)
        return (time.perf_counter() - start) / count


def table(cases: dict) -> str:
    first = next(iter(cases.values()))
    rows = [
        (
            name,
            reporting.cell(case["seconds"]),
            reporting.cell(case["ratio"], 2),
            f"{case['gflop_a_pair'] / first['gflop_a_pair']:.2f}",
            f"{case['state_bytes'] / 1e6:.0f}",
        )
        for name, case in cases.items()
    ]
    head = ("locked", "s a step", "of the first", "FLOPs of the first", "state, MB")
    return reporting.markdown(head, rows)


if __name__ == "__main__":
    main()
