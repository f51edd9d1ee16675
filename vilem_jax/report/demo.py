"""The demo: all of the main job on the embedded data, from nothing to a report.

vocabulary -> a small BERT -> ViLEM, whose editor and text tower both start from that
BERT -> the test split -> report.html. Given the folder of a demo that was stopped, it
goes on where that one was.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import jax

import vilem_jax
from vilem_jax.api import load, make_run_edits
from vilem_jax.config.files import load_config
from vilem_jax.config.schema import Config
from vilem_jax.data.scenes.hard_pairs import hard_pairs
from vilem_jax.data.scenes.source import ScenesSource
from vilem_jax.data.tokenizer import Tokenizer, train_vocabulary
from vilem_jax.editing.stored_edits import save_edits
from vilem_jax.errors import UserError
from vilem_jax.files import write_json
from vilem_jax.report import tables
from vilem_jax.report.collect import make_report, measure
from vilem_jax.report.html import write_report
from vilem_jax.runs.metrics import METRICS_FILE, in_words, read_records
from vilem_jax.training.run import train

VOCABULARY_SIZE = 256
# A first look in a minute: every step runs, nothing is learned well.
QUICK = {
    "train.num_steps": "20",
    "optimizer.warmup_steps": "5",
    "log.every_steps": "5",
}
QUICK_IMAGES = {"train": 500, "validation": 100, "test": 100}

SUMMARY = (
    "ViLEM is a dual encoder for image-text retrieval that learns detail by "
    "proofreading: shown an image and a caption with wrong words in it, it must "
    "find them and say what is right. This one began with nothing, and was shown drawn "
    "scenes."
)


def run_demo(folder: str | Path, *, seed: int = 0, quick: bool = False) -> Path | None:
    """Trains, evaluates and writes the report, telling each step and its time.

    Args:
      folder: for all that is made: `vocabulary`, `editor`, `run`, `metrics.json`,
        `edits.npz` and `report.html`.
      seed: another draw of the data set, and of all that is random.
      quick: a minute's rehearsal.

    Returns:
      the report's path; None if the demo was stopped and can go on.

    Raises:
      UserError: `folder` holds a demo with another seed, or cannot be written.
    """
    folder = Path(folder).expanduser().absolute()
    began = time.monotonic()
    images = QUICK_IMAGES if quick else {}
    steps = _Steps(5)

    with steps.next("a vocabulary from the training captions"):
        size = _make_vocabulary(folder / "vocabulary", seed, images.get("train", 0))
        steps.tell(f"{size} pieces")

    shared = _overrides(seed, quick) | {
        "data.tokenizer": str(folder / "vocabulary"),
        "model.text.vocab_size": str(size),
    }
    with steps.next("a small BERT learns the captions: it will edit them"):
        config = load_config("scenes_editor", shared.items())
        if not _train(config, folder / "editor"):
            return _stopped()

    with steps.next("ViLEM learns to retrieve and to proofread"):
        bert = str(folder / "editor" / "editor")
        starts = {"model.text.start_from": bert, "editor.path": bert}
        config = load_config("scenes", (shared | starts).items())
        if not _train(config, folder / "run"):
            return _stopped()

    with steps.next("the test split: retrieval, proofreading, hard pairs"):
        model = load(folder / "run")
        test = ScenesSource("test", seed=seed, num_images=images.get("test", 0))
        edits = make_run_edits(model, test, seed=seed)
        save_edits(edits, folder / "edits.npz")
        measured = measure(model, test, edits=edits, pairs=hard_pairs(test))
        metrics = measured.metrics
        write_json(folder / "metrics.json", metrics)
        _print_tables(metrics)

    with steps.next("the report"):
        report = make_report(
            model,
            test,
            measured,
            title="A rehearsal of ViLEM" if quick else "A small ViLEM learns to look",
            summary=SUMMARY,
            run=folder / "run",
            edits=edits,
            facts=_facts(config, test, seed, quick, time.monotonic() - began),
            seed=seed,
        )
        write_report(report, folder / "report.html")
        steps.tell(str(folder / "report.html"))
    print(
        f"\nAll done in {in_words(time.monotonic() - began)}. Now open the report, or"
    )
    print(f'  vilem proofread --model={folder / "run"} PHOTO "a caption"')
    return folder / "report.html"


def _make_vocabulary(folder: Path, seed: int, num_images: int) -> int:
    """Pieces in the vocabulary in `folder`, made if there is none."""
    if not (folder / "vocab.txt").is_file():
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
    """Trains or resumes; False if it was stopped before its last step."""
    train(config, str(workdir))
    records = read_records(workdir / METRICS_FILE)
    return bool(records) and records[-1]["step"] >= config.train.num_steps


def _stopped() -> None:
    print("The demo was stopped; the same command goes on from here.")


def _print_tables(metrics: dict) -> None:
    print()
    print(tables.retrieval_table(metrics["retrieval"], metrics["chance"]), end="\n\n")
    print(tables.proofread_table(metrics["proofread"]), end="\n\n")
    print(tables.pairs_table(metrics["pairs"]), end="\n\n")


def _facts(config: Config, test, seed: int, quick: bool, seconds: float) -> dict:
    train_source = ScenesSource(
        "train", seed=seed, num_images=config.data.train[0].num_images
    )
    devices = jax.devices()
    device = devices[0].device_kind
    if devices[0].platform == "cpu":
        device = f"{os.cpu_count()} CPU cores"
    vision, text = config.model.vision, config.model.text
    command = "vilem demo" + (" --quick" if quick else "")
    return {
        "Command": command + (f" --seed={seed}" if seed else ""),
        "Data": f"scenes, seed {seed}: {len(train_source):,} training images, "
        f"{len(test):,} of the test split, which no choice was made on",
        "Model": f"ViT {vision.num_layers} x {vision.width}, {vision.image_size} "
        f"pixels; BERT {text.num_layers} x {text.width}; proofreading in the first "
        f"{config.model.num_proofread_layers} layers",
        "Training": f"{config.train.num_steps:,} steps of {config.train.batch_size} "
        "pairs",
        "Device": f"{len(devices)} x {device}" if len(devices) > 1 else device,
        "Time": f"{in_words(seconds)} for all of it",
        "Software": f"vilem_jax {vilem_jax.__version__}, jax {jax.__version__}",
    }


class _Steps:
    """Headings with a number, and the time that each step took."""

    def __init__(self, count: int):
        self._count, self._number, self._words = count, 0, ""

    @contextlib.contextmanager
    def next(self, heading: str) -> Iterator[None]:
        self._number += 1
        self._words = ""
        print(f"\n[{self._number}/{self._count}] {heading}", flush=True)
        began = time.monotonic()
        yield
        said = f"{self._words}, " if self._words else ""
        print(f"      {said}{in_words(time.monotonic() - began)}", flush=True)

    def tell(self, words: str) -> None:
        """What to say when the step is over."""
        self._words = words
