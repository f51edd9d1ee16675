"""Embeddings of those images that can be read, and why the others cannot."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from vilem_jax.api import Model
from vilem_jax.data.images import ImageError, decode, resize_square
from vilem_jax.data.sources.source import Source
from vilem_jax.errors import UserError
from vilem_jax.evaluation.encoding import read_ahead
from vilem_jax.files import reason
from vilem_jax.search.folder import FolderImages


class Encoded(NamedTuple):
    """What `encode_readable` returns, in the order of the rows."""

    embedding: np.ndarray  # float32 [N, E]
    rows: list[int]  # N
    corrupt: list[tuple[int, str]]  # the other rows, and why


def encode_readable(
    source: Source | FolderImages, rows: Iterable[int], model: Model
) -> Encoded:
    """The embeddings of the images `rows`, read by threads, ahead of the model."""
    size = model.encoder.image_size
    good: list[int] = []
    corrupt: list[tuple[int, str]] = []

    def read(row: int) -> tuple[int, np.ndarray | Exception]:
        try:
            return row, resize_square(decode(source.read_image(row)), size)
        except (OSError, ImageError, UserError) as error:
            return row, error

    def images() -> Iterator[np.ndarray]:
        for row, image in read_ahead(read, rows):
            if isinstance(image, Exception):
                corrupt.append((row, reason(image)))
            else:
                good.append(row)
                yield image

    readable = images()
    first = next(readable, None)
    if first is None:  # models refuse an empty set
        return Encoded(np.zeros((0, model.embedding_width), np.float32), good, corrupt)
    embedding = model.encoder.encode_pixels(itertools.chain([first], readable))
    return Encoded(embedding, good, corrupt)
