"""The demo: every stage on the embedded data, from nothing to a report.

vocabulary -> a small BERT -> ViLEM, whose editor and text tower both start from that
BERT -> the test split -> report.html. A demo that was stopped resumes in its folder.
"""

import contextlib
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from PIL import Image

import vilem_jax
from vilem_jax.api import load
from vilem_jax.config.files import load_config
from vilem_jax.config.schema import Config
from vilem_jax.data.scenes.hard_pairs import HardPair, hard_pairs
from vilem_jax.data.scenes.source import ScenesSource
from vilem_jax.data.sources.source import open_source
from vilem_jax.data.tokenizer import Tokenizer, train_vocabulary
from vilem_jax.editing.stored_edits import make_run_edits, save_edits
from vilem_jax.errors import UserError
from vilem_jax.evaluation.pairs import pairs_tables
from vilem_jax.evaluation.proofread import proofread_tables
from vilem_jax.evaluation.retrieval import retrieval_tables
from vilem_jax.evaluation.timing import device_name
from vilem_jax.files import write_json
from vilem_jax.progress import doing, in_words
from vilem_jax.report.collect import evaluate, make_report
from vilem_jax.report.html import write_report
from vilem_jax.report.tables import render
from vilem_jax.runs.metrics import METRICS_FILE, read_records
from vilem_jax.runs.workdir import program
from vilem_jax.training.run import train

NUM_IMAGES = 50  # of the test split, left as files
VOCABULARY_SIZE = 256  # at most: the captions of scenes need fewer tokens
# A first look in a minute: every stage runs, nothing is learned well.
QUICK = {"train.num_steps": "20", "optimizer.warmup_steps": "5", "log.every_steps": "5"}
QUICK_IMAGES = {"train": 500, "validation": 100, "test": 100}

SUMMARY = (
    "ViLEM is a dual encoder for image-text retrieval that learns detail by "
    "proofreading: given an image and a caption with wrong words in it, it must find "
    "and correct them. This one was trained from scratch on drawn scenes."
)


def run_demo(folder: str | Path, *, seed: int = 0, quick: bool = False) -> Path | None:
    """Trains, evaluates and writes the report; prints each stage and its time.

    Args:
      folder: for all files: `vocabulary`, `editor`, `run`, `metrics.json`, `edits.npz`,
        `images` and `report.html`.
      seed: of the data set and of all other random choices.
      quick: a first look in a minute.

    Returns:
      the report's path; None if the demo was stopped and can be resumed.

    Raises:
      UserError: `folder` holds a demo with another seed, or cannot be written.
    """
    folder = Path(folder).expanduser().absolute()
    start = time.monotonic()
    images = QUICK_IMAGES if quick else {}

    with _stage("[1/5] a vocabulary from the training captions"):
        size = _make_vocabulary(folder / "vocabulary", seed, images.get("train", 0))
        print(f"      vocabulary size {size}")

    overrides = _overrides(seed, quick) | {
        "data.tokenizer": str(folder / "vocabulary"),
        "model.text.vocab_size": str(size),
    }
    with _stage("[2/5] a small BERT learns the captions: it will edit them"):
        config = load_config("scenes_editor", overrides.items())
        if not _train(config, folder / "editor"):
            return None

    with _stage("[3/5] ViLEM learns to retrieve and to proofread"):
        bert = str(folder / "editor" / "editor")
        overrides |= {"model.text.start_from": bert, "editor.path": bert}
        config = load_config("scenes", overrides.items())
        if not _train(config, folder / "run"):
            return None

    # Used once, at the end: no setting was chosen on the test split.
    with _stage("[4/5] the test split: retrieval, proofreading, hard pairs"):
        model = load(folder / "run")
        test = ScenesSource("test", seed=seed, num_images=images.get("test", 0))
        edits = make_run_edits(model.config, model.tokenizer, test, seed=seed)
        save_edits(edits, folder / "edits.npz")
        pairs = hard_pairs(test)
        metrics, encoded = evaluate(model, test, edits=edits, pairs=pairs)
        write_json(folder / "metrics.json", metrics)
        tables = retrieval_tables(metrics["retrieval"], metrics["chance"])
        tables += proofread_tables(metrics["proofread"])
        print(f"\n{render(tables + pairs_tables(metrics['pairs']))}\n")

    with _stage("[5/5] the report"):
        report = make_report(
            model,
            test,
            metrics,
            encoded,
            title="A rehearsal of ViLEM" if quick else "A small ViLEM learns to look",
            summary=SUMMARY,
            run=folder / "run",
            edits=edits,
            facts=_facts(config, len(test), quick, time.monotonic() - start),
            seed=seed,
        )
        write_report(report, folder / "report.html")
        _write_images(test, folder / "images")
        print(f"      {_near(folder / 'report.html')}")

    print(f"\nDone in {in_words(time.monotonic() - start)}. Open the report, or run")
    print(_commands(_near(folder), pairs))
    return folder / "report.html"


@contextlib.contextmanager
def _stage(heading: str) -> Iterator[None]:
    """Prints the heading, "[1/5] ...", then the time that the stage took."""
    print(f"\n{heading}", flush=True)
    start = time.monotonic()
    with doing(f"in stage {heading[1:4]}", is_named=True):
        yield
    print(f"      {in_words(time.monotonic() - start)}", flush=True)


def _write_images(source: ScenesSource, folder: Path) -> None:
    """The first images of the test split, to proofread and to search."""
    folder.mkdir(exist_ok=True)
    for index in range(min(NUM_IMAGES, len(source))):
        image = Image.fromarray(source.read_image(index))
        image.save(folder / Path(source.image_name(index)).name)


def _commands(folder: Path, pairs: Sequence[HardPair]) -> str:
    """What to type next: an image with a caption that is wrong, then a search."""
    pair = next(pair for pair in pairs if pair.image < NUM_IMAGES)
    image = shlex.quote(str(folder / "images" / f"{pair.image:05d}.png"))
    vilem, model = shlex.quote(program()), shlex.quote(f"--model={folder / 'run'}")
    images = shlex.quote(str(folder / "images"))
    index = shlex.quote(str(folder / "images.index"))
    return (
        f'  {vilem} proofread {image} "{pair.wrong_caption}" {model}\n'
        f"  {vilem} index {images} {model} --out={index}\n"
        f'  {vilem} search {index} "{pair.caption}" {model} --top=3'
    )


def _near(path: Path) -> Path:
    """As seen from the current folder, if it is below that."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _make_vocabulary(folder: Path, seed: int, num_images: int) -> int:
    """The size of the vocabulary in `folder`, which is created if there is none."""
    if not (folder / "vocab.txt").is_file():
        # The training split alone: words of other splits are unseen, as in practice.
        source = ScenesSource("train", seed=seed, num_images=num_images)
        captions = (c for index in range(len(source)) for c in source.captions(index))
        try:
            train_vocabulary(captions, VOCABULARY_SIZE, folder)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    return Tokenizer(folder).vocabulary.size


def _overrides(seed: int, quick: bool) -> dict[str, str]:
    overrides = {
        "seed": str(seed),
        "log.every_steps": "10",  # for smooth curves in the report
        "data.train.scenes.seed": str(seed),
        "data.validation.scenes.seed": str(seed),
    }
    if quick:
        overrides |= QUICK
        for part in ("train", "validation"):
            overrides[f"data.{part}.scenes.num_images"] = str(QUICK_IMAGES[part])
    return overrides


def _train(config: Config, workdir: Path) -> bool:
    """Trains or resumes; returns False if it was stopped before its last step."""
    train(config, str(workdir))
    records = read_records(workdir / METRICS_FILE)
    if records and records[-1]["step"] >= config.train.num_steps:
        return True
    print("The demo was stopped; rerun the same command to resume.")
    return False


def _facts(
    config: Config, num_test: int, quick: bool, seconds: float
) -> dict[str, str]:
    """How the model was trained, enough to reproduce it."""
    num_train = len(open_source(config.data.train[0]))
    num_devices, device = jax.device_count(), device_name()
    vision, text = config.model.vision, config.model.text
    options = " --quick" * quick + f" --seed={config.seed}" * (config.seed != 0)
    return {
        "Command": f"vilem demo{options}",
        "Data": f"scenes, seed {config.seed}: {num_train:,} training images, "
        f"{num_test:,} of the test split, by which nothing was chosen",
        "Model": f"ViT {vision.num_layers} x {vision.width}, {vision.image_size} "
        f"pixels; BERT {text.num_layers} x {text.width}; proofreading in the first "
        f"{config.model.num_proofread_layers} layers",
        "Training": f"{config.train.num_steps:,} steps of {config.train.batch_size} "
        "pairs",
        "Device": f"{num_devices} x {device}" if num_devices > 1 else device,
        "Time": f"{in_words(seconds)} in total",
        "Software": f"vilem_jax {vilem_jax.__version__}, jax {jax.__version__}",
    }
