"""Retrieval metrics of given features, so that any model can be compared."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vilem_jax.errors import UserError
from vilem_jax.evaluation.benchmark import Benchmark, Opened, option
from vilem_jax.evaluation.recall import retrieval_metrics
from vilem_jax.evaluation.retrieval import FOLDS, retrieval_tables
from vilem_jax.evaluation.timing import Stopwatch
from vilem_jax.files import read_errors
from vilem_jax.parsing import read_arrays

ARRAYS = ("image_embedding", "text_embedding", "image_of_text")


@dataclass(frozen=True)
class Features:
    """Embeddings of a test set by any model."""

    image_embedding: np.ndarray  # [I, E], of any length
    text_embedding: np.ndarray  # [T, E]
    image_of_text: np.ndarray  # int [T], row of each caption's image


def evaluate_embeddings(features: Features, *, name: str, folds: int = 1) -> dict:
    """`retrieval_metrics` of features, whose rows are scaled to length 1 first.

    Args:
      name: of the data, for the protocol.
      folds: as of `evaluate_retrieval`.

    Raises:
      UserError: a row of zeros or one that is not finite; as `retrieval_metrics`.
    """
    clock = Stopwatch()
    images, texts = (_unit_rows(getattr(features, name), name) for name in ARRAYS[:2])
    owner = features.image_of_text
    metrics = retrieval_metrics(images, texts, owner, folds=folds, clock=clock)
    protocol = {
        "data": name,
        "width": int(images.shape[1]),
        "rows": "brought to length 1",
        "i2t": "the best-ranked of the image's captions",
        "ties": "count against the model",
    }
    conditions = {
        "dtype": str(features.image_embedding.dtype),
        "device": "none: the features were given",
        "scores_on": "host, NumPy, summed in float64",
        "seconds": clock.in_order(),
    }
    return metrics | {"protocol": protocol, "measured": conditions}


def read_features(path: str | Path) -> Features:
    """The arrays `ARRAYS` of an .npz file; others in it are not read.

    Raises:
      UserError: no such file or no .npz, an array that is missing, of other shape or
        type; the message names it.
    """
    file = Path(path).expanduser()
    missing = f"{file} does not exist"
    corrupt = (
        f"{file} cannot be read as an .npz of numbers: save it with np.savez, without "
        "Python objects"
    )
    with read_errors(file, missing=missing, corrupt=corrupt):
        features = Features(**read_arrays(file, ARRAYS))
    _check(file, features)
    return features


def _check(file: Path, features: Features) -> None:
    for name in ARRAYS[:2]:
        array = getattr(features, name)
        if array.ndim != 2 or 0 in array.shape or array.dtype.kind != "f":
            raise UserError(
                f"{file}: {name} must be numbers with a fraction [N, E], N and E at "
                f"least 1, not {array.dtype} {list(array.shape)}"
            )
    widths = features.image_embedding.shape[1], features.text_embedding.shape[1]
    if widths[0] != widths[1]:
        raise UserError(
            f"{file}: image_embedding is {widths[0]} wide and text_embedding "
            f"{widths[1]}: they cannot be compared"
        )
    rows, owner = len(features.image_embedding), features.image_of_text
    if owner.shape != (len(features.text_embedding),) or owner.dtype.kind not in "iu":
        raise UserError(
            f"{file}: image_of_text must be one whole number for each of the "
            f"{len(features.text_embedding)} rows of text_embedding, not {owner.dtype} "
            f"{list(owner.shape)}"
        )
    is_row = (owner >= 0) & (owner < rows)
    if not is_row.all():
        text = int(np.argmin(is_row))
        raise UserError(
            f"{file}: image_of_text[{text}] is {owner[text]}, but image_embedding has "
            f"rows 0 to {rows - 1}"
        )


def _unit_rows(rows: np.ndarray, name: str) -> np.ndarray:
    """[N, E] -> float64 [N, E], each row of length 1."""
    rows = rows.astype(np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    for is_fine, fault in (
        (np.isfinite(rows).all(axis=1), "is not finite"),
        (length > 0, "is all zeros: it has no direction"),
    ):
        if not is_fine.all():
            raise UserError(f"row {int(np.argmin(is_fine))} of {name} {fault}")
    return rows / length


def _open(options: Namespace, _) -> Opened:
    settings = {"name": options.features, "folds": options.folds}
    return Opened((read_features(options.features),), settings)


BENCHMARK = Benchmark(
    options=(
        option(
            "--features",
            required=True,
            metavar="FILE.npz",
            help="image_embedding [I, E], text_embedding [T, E], image_of_text [T]",
        ),
        FOLDS,
        "out",
    ),
    open=_open,
    evaluate=evaluate_embeddings,
    tabulate=retrieval_tables,
)
