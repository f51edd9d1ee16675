"""Search an index of pictures by words, or by a picture."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from vilem_jax.api import Model, Picture
from vilem_jax.config import UserError
from vilem_jax.search.index import Index, load_index


class Hit(NamedTuple):
    path: Path
    score: float  # cosine, -1..1


def search(
    index: Index | str | Path,
    model: Model,
    *,
    words: str | None = None,
    picture: Picture | None = None,
    top_k: int = 10,
) -> list[Hit]:
    """The pictures that fit best, the best first; equal scores in order of paths.

    Args:
      index: an `Index`, or the file that holds it.
      words: what to look for; or
      picture: what the pictures shall look like; exactly one of the two.

    Raises:
      UserError: the index is of another model; both or neither of words and picture;
        top_k below 1.
    """
    if (words is None) == (picture is None):
        raise UserError("search by words or by a picture: give one of the two")
    if words is not None and not words.strip():
        raise UserError("there are no words to search for")
    if top_k < 1:
        raise UserError(f"top_k is {top_k}: ask for 1 or more pictures")
    if not isinstance(index, Index):
        index = load_index(index)
    if index.fingerprint != model.fingerprint:
        raise UserError(
            "the index was made with another model (or its other weights, online or "
            "momentum): make it again with `vilem index`, or give its own model"
        )
    query = model.encode_image(picture) if words is None else model.encode_text(words)
    scores = index.embedding @ query[0]
    best = np.argsort(-scores, kind="stable")[:top_k]
    folder = Path(index.folder)
    return [Hit(folder / index.entries[row].path, float(scores[row])) for row in best]
