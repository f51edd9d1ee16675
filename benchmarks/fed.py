"""Training fed by the loader against batches that are on the device already (G8).

    python benchmarks/fed.py [--shape=small --batch=4 --workers=0] [--out=FOLDER]
    python benchmarks/fed.py --shape=paper --device=cuda --attention=cudnn \
        --batch=512 --workers=14 --images=4096 --steps=10 --matmul=8192 --out=FOLDER

Both use the compiled step and the loop of a run, which waits for the device one step
late. Fed by the loader: synthetic JPEGs of 384 x 288, the size that `vilem data
prepare` writes, are read from a folder (from the page cache), cropped, tokenised and
copied to the device by `Batches` and `put_batch`. On the device: one such batch,
repeated. They take turns; the first steps of a turn are not timed, as their batches
were read ahead. Augmentation, dropout and editing are on, as in training.

On a CPU both share the cores, so the ratio contains the loader's own work.

Not measured: disks and networks, logging, checkpoints.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ceilings
import reporting
import shapes
from images import PRE_RESIZED, write_pairs
from step_systems import begin_training

GOAL = "fed over on the device <= 1.03"
FED, ON_DEVICE = "fed by the loader", "on the device"


def main() -> None:
    options = parse()
    shapes.use_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        data = write_pairs(Path(folder), PRE_RESIZED, options.images)
        found = measure(data, options)
    seconds = {n: [each[n] for each in found["rounds"]] for n in (FED, ON_DEVICE)}
    ratios = [a / b for a, b in zip(seconds[FED], seconds[ON_DEVICE], strict=True)]
    spread = reporting.spread
    metrics = {
        "rounds": found["rounds"],
        "seconds_a_step": {name: spread(each) for name, each in seconds.items()},
        "images_per_second_alone": spread(found["loader"]),
        "ceilings": ceilings.spreads(found["ceilings"]),
        "fed_over_on_device": spread(ratios),
        "goal": GOAL,
    }
    packages = ("jax", "jaxlib", "flax", "grain", "simplejpeg")
    text = table(metrics, options.batch)
    reporting.write("fed", options.out, metrics, text, packages)


def parse():
    parser = reporting.arguments(__doc__)
    shapes.add_options(parser, batch=4)
    parser.add_argument("--steps", type=int, default=3, help="timed per turn")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="0: a thread")
    return parser.parse_args()


def measure(data: Path, options) -> dict:
    """Seconds per step of both, images/s of the loader alone and ceilings, by round."""
    from vilem_jax.data.tokenizer import Tokenizer
    from vilem_jax.distributed.mesh import one_device, put_batch

    config, layout = shapes.make_config(options), one_device()
    tokenizer = Tokenizer(data / "words")
    state, step = begin_training(
        config,
        layout,
        pad_id=tokenizer.vocabulary.pad_id,
        mask_id=tokenizer.vocabulary.mask_id,
    )
    run = Run(state, step)
    found = {"rounds": [], "loader": [], "ceilings": []}
    with open_batches(data, tokenizer, config, options) as reader:
        fed = (put_batch(batch, layout.mesh) for batch in reader)
        repeated = itertools.repeat(next(fed))
        # Skips what was read ahead; Grain's own queues hold about as many again.
        ahead = 2 + 2 * reading_ahead(options)
        run.steps(repeated, 3)  # compiles
        for _ in range(options.rounds):
            one = {}
            for name, batches, skipped in ((FED, fed, ahead), (ON_DEVICE, repeated, 2)):
                run.steps(batches, skipped)
                one[name] = timed(run.steps, batches, options.steps) / options.steps
            found["rounds"].append(one)
            take(reader, ahead)
            seconds = timed(take, reader, options.steps)
            found["loader"].append(options.steps * options.batch / seconds)
            found["ceilings"].append(ceilings.of_jax(options, config.compute.dtype))
            print({name: round(value, 4) for name, value in one.items()}, flush=True)
    return found


def reading_ahead(options) -> int:
    """Batches read ahead: two per worker; without workers the config's default."""
    return max(2, 2 * options.workers)


def open_batches(data: Path, tokenizer, config, options):
    from vilem_jax.config.schema import Config, DataConfig, TrainConfig
    from vilem_jax.config.sources import JsonConfig
    from vilem_jax.data.batches import Batches, BatchMaker, open_corpus

    source = JsonConfig(path=str(data / "captions.json"), images=str(data / "images"))
    settings = DataConfig(
        train=(source,),
        text_length=config.data.text_length,
        num_workers=options.workers,
        prefetch=reading_ahead(options),
    )
    size, train = config.model.vision.image_size, TrainConfig(batch_size=options.batch)
    own = Config(train=train, data=settings)
    return Batches(BatchMaker(own, open_corpus(settings), tokenizer, size))


class Run:
    """The loop of `training/run.py` without logging, evaluation and checkpoints."""

    def __init__(self, state, step: Callable):
        self._state, self._step = state, step

    def steps(self, batches: Iterator, count: int) -> None:
        import jax

        before = None
        for _ in range(count):
            self._state, metrics = self._step(self._state, next(batches))
            if before is not None:  # waits for the previous step, as a run does
                jax.device_get(before)
            before = metrics["skipped_in_a_row"]
        jax.block_until_ready(self._state)


def take(batches: Iterator, count: int) -> None:
    for _ in range(count):
        next(batches)


def timed(function: Callable, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def table(metrics: dict, batch: int) -> str:
    cell = reporting.cell
    rows = []
    for name, seconds in metrics["seconds_a_step"].items():
        rate = f"{batch / seconds['median']:.1f}"
        rows.append([f"step {name}, s", cell(seconds, 4), rate])
    alone = cell(metrics["images_per_second_alone"], 1)
    rows.append(["the loader alone", "", alone])
    head = ["", "median (range)", "pairs/s"]
    others = [["fed over on the device", cell(metrics["fed_over_on_device"])]]
    others += ceilings.rows(metrics["ceilings"])
    return "\n\n".join(
        [
            reporting.markdown(head, rows),
            reporting.markdown(["", "median (range)"], others),
            f"Goal: {metrics['goal']}.",
        ]
    )


if __name__ == "__main__":
    main()
