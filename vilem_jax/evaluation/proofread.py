"""Proofreading: are wrong words found and corrected, and by looking at the image?

The edits are stored, so that every model judges the same captions. With shuffled images
a model has language alone; the difference is what it takes from the image.
"""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np

from vilem_jax.data.sources.source import Source, open_source
from vilem_jax.distributed import processes
from vilem_jax.editing import stored_edits
from vilem_jax.editing.stored_edits import StoredEdits
from vilem_jax.errors import UserError
from vilem_jax.evaluation import benchmark
from vilem_jax.evaluation.encoding import BRANCHES, Encoder
from vilem_jax.evaluation.timing import measured

SCORES = {"detect": ("precision", "recall", "f1"), "correct": ("top1", "top3")}


def evaluate_proofreading(
    encoder: Encoder, edits: StoredEdits, source: Source, *, with_shuffled: bool = True
) -> dict:
    """Metrics of the trained branches, with the right image and with another.

    Args:
      source: the data set of the edits.

    Returns:
      {"local": {"detect": ..., "correct": ...}, "global": ..., "shuffled": {"local":
      ..., "global": ...}, "captions", "words", "edits", "images", "editor", "seed"}.
      A branch that was not trained is left out, and so is what it has not learnt.

    Raises:
      UserError: the model was trained without ViLEM's losses, the edits are of another
        data set, an image cannot be read.
    """
    _check_source(edits, source)
    is_editable = encoder.tokenizer.vocabulary.is_editable
    metrics = _branches(encoder, edits, source, edits.image)
    if with_shuffled:
        other = other_images(edits.image, seed=edits.seed)
        metrics["shuffled"] = _branches(encoder, edits, source, other)
    return metrics | {
        "captions": len(edits.tokens),
        "words": int(is_editable[edits.edited].sum()),
        "edits": int(edits.is_edit.sum()),
        "images": len(np.unique(edits.image)),
        "editor": edits.editor,
        "seed": edits.seed,
    }


def _branches(
    encoder: Encoder, edits: StoredEdits, source: Source, images: np.ndarray
) -> dict:
    local = processes.local_items(len(images))
    judged = encoder.proofread(
        encoder.read_images(source, images[local].tolist()),
        edits.edited[local],
        edits.positions[local],
        edits.labels[local],
    )
    is_wrong = edits.edited != edits.tokens
    is_editable = encoder.tokenizer.vocabulary.is_editable[edits.edited]
    metrics = {}
    for branch, part in judged.items():
        p_wrong, rank = (
            processes.all_gather_rows(rows, len(images))
            for rows in (part.p_wrong, part.rank)
        )
        both = proofread_metrics(p_wrong, is_wrong, is_editable, rank, edits.is_edit)
        metrics[branch] = {task: both[task] for task in encoder.trained[branch]}
    return metrics


def _check_source(edits: StoredEdits, source: Source) -> None:
    """Raises UserError if the edits are of other captions than the source's."""
    if edits.image.max() >= len(source):
        raise UserError(
            f"the stored edits are of {edits.image.max() + 1} or more images, "
            f"but {source.name} has {len(source)}"
        )
    if stored_edits.captions_digest(source, edits.image) != edits.captions:
        raise UserError(
            f"the stored edits were made of other captions than those of {source.name} "
            f"(of {edits.source}): give that data set, or make other edits"
        )


def proofread_metrics(
    p_wrong: np.ndarray,
    is_wrong: np.ndarray,
    is_editable: np.ndarray,
    rank: np.ndarray,
    is_edit: np.ndarray,
) -> dict:
    """Detection with "wrong" as the positive class at 0.5, and correction.

    Args:
      p_wrong: [N, L], probability that a token is wrong.
      is_wrong: bool [N, L].
      is_editable: bool [N, L]; other tokens do not count.
      rank: int [N, K], rank of the original token at each edited position, from 1.
      is_edit: bool [N, K], positions that count.

    Returns:
      {"detect": {"precision", "recall", "f1"}, "correct": {"top1", "top3"}}, all in
      0..1; 0 if there is nothing to divide by.
    """
    if not np.isfinite(p_wrong).all():
        raise UserError("a probability is not a number: has the run diverged?")
    says_wrong = (p_wrong > 0.5) & is_editable
    is_wrong = is_wrong & is_editable
    found = np.sum(says_wrong & is_wrong)
    flagged, wrong, edited = np.sum(says_wrong), np.sum(is_wrong), np.sum(is_edit)
    return {
        "detect": {
            "precision": _ratio(found, flagged),
            "recall": _ratio(found, wrong),
            "f1": _ratio(2 * found, flagged + wrong),
        },
        "correct": {
            f"top{top}": _ratio(np.sum((rank <= top) & is_edit), edited)
            for top in (1, 3)
        },
    }


def other_images(image: np.ndarray, *, seed: int) -> np.ndarray:
    """For each caption another image of the set, never its own: int32 [N].

    The images are shuffled into a ring by `seed`, and each caption gets the one
    after its own; so every image is used as often as another was.

    Raises:
      UserError: there is only one image.
    """
    distinct = np.unique(image)
    if len(distinct) < 2:
        raise UserError("shuffling images needs two or more of them")
    ring = np.random.default_rng(seed).permutation(distinct)
    after = np.empty(distinct.max() + 1, np.int32)
    after[ring] = np.roll(ring, -1)
    return after[image]


def _ratio(part, whole) -> float:
    return float(part) / float(whole) if whole else 0.0


def proofread_tables(metrics: dict) -> list[benchmark.Table]:
    """The trained branches, with the right images and with shuffled ones."""
    rows: list[list[benchmark.Cell]] = []
    parts = {"": metrics, ", another image": metrics.get("shuffled", {})}
    for branch in BRANCHES:
        for suffix, part in parts.items():
            if branch in part:
                cells = [
                    f"{part[branch][task][name]:.3f}" if task in part[branch] else "-"
                    for task in SCORES
                    for name in SCORES[task]
                ]
                rows.append([branch + suffix, *cells])
    head = ("proofreading", "precision", "recall", "F1", "top-1", "top-3")
    counts = f"({metrics['captions']} captions, {metrics['edits']} wrong words)"
    return [benchmark.Table(head, rows, counts)]


def _open(options: Namespace, read_config: benchmark.ReadConfig) -> benchmark.Opened:
    config = read_config()
    source = open_source(config)
    settings = {"edits_file": options.edits, "seed": options.seed}
    protocol = {"data": source.name, "split": benchmark.describe_split(config)}
    return benchmark.Opened((source,), settings, protocol)


def _evaluate(
    encoder: Encoder, source: Source, *, edits_file: str | None, seed: int
) -> dict:
    edits = _open_edits(encoder, source, edits_file, seed)
    encoder = encoder.timed()
    metrics = evaluate_proofreading(encoder, edits, source)
    protocol = {"editing": json.loads(edits.manner)}
    return metrics | {"protocol": protocol, "measured": measured(encoder)}


def _open_edits(
    encoder: Encoder, source: Source, file: str | None, seed: int
) -> StoredEdits:
    """Those in `file`; if there is no such file, they are made and stored there."""
    if processes.broadcast(bool(file and Path(file).expanduser().exists())):
        return stored_edits.load_edits(str(file), encoder.tokenizer)
    encoder.check_trained()  # before the editor is loaded
    config, tokenizer = encoder.config, encoder.tokenizer
    edits = stored_edits.make_run_edits(config, tokenizer, source, seed=seed)
    if file:
        processes.on_process_0(lambda: stored_edits.save_edits(edits, file))
    return edits


BENCHMARK = benchmark.Benchmark(
    options=(
        *("model", "data", "distributed", "out"),
        benchmark.option(
            "--edits",
            metavar="FILE.npz",
            help="stored edits, so that models are compared on the same; where there "
            "is no such file, the run's editor makes them and they are stored there",
        ),
    ),
    open=_open,
    evaluate=_evaluate,
    tabulate=proofread_tables,
)
