"""Embeddings of those images that can be read, and why the others cannot."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from vilem_jax.data.images import ImageError
from vilem_jax.errors import UserError
from vilem_jax.evaluation.encoding import read_ahead
from vilem_jax.files import reason

Item = TypeVar("Item")


class Encoded(NamedTuple, Generic[Item]):
    """What `encode_readable` returns, in the order of the items."""

    embedding: np.ndarray  # float32 [N, E]
    items: list[Item]  # N
    corrupt: list[tuple[Item, str]]  # the other items, and why


def encode_readable(
    items: Iterable[Item],
    read: Callable[[Item], np.ndarray],
    encode: Callable[[Iterable[np.ndarray]], np.ndarray],
    *,
    width: int,
) -> Encoded[Item]:
    """Reads images by threads, ahead of the model.

    Args:
      items: one for each image.
      read: the image of an item, uint8 [R, R, 3]; raises OSError, ImageError or
        UserError if it cannot be read.
      encode: images -> float32 [N, E].
      width: E.
    """
    good: list[Item] = []
    corrupt: list[tuple[Item, str]] = []

    def attempt(item: Item) -> tuple[Item, np.ndarray | Exception]:
        try:
            return item, read(item)
        except (OSError, ImageError, UserError) as error:
            return item, error

    def images() -> Iterator[np.ndarray]:
        for item, image in read_ahead(attempt, items):
            if isinstance(image, Exception):
                corrupt.append((item, reason(image)))
            else:
                good.append(item)
                yield image

    readable = images()
    first = next(readable, None)
    if first is None:  # models refuse an empty set
        return Encoded(np.zeros((0, width), np.float32), good, corrupt)
    return Encoded(encode(itertools.chain([first], readable)), good, corrupt)
