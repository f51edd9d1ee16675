"""Several sources as one corpus, and the order in which a run visits its pairs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from grain.experimental import index_shuffle

from vilem_jax.data.sources.source import Source, caption_counts
from vilem_jax.errors import UserError

# Part of every seed, so that no two permutations share a stream of random numbers.
_EPOCH, _SOURCE = 1, 2
_SMALL = 8192  # up to this length a permutation is stored


@dataclass(frozen=True)
class Item:
    """One element of the endless sequence that training reads.

    `index` is that of a pair (or image, with "one_at_random") within source `source`;
    `visit` is how often it came before.
    """

    source: int
    index: int
    visit: int


class Corpus:
    """Sources mixed into one endless, shuffled, random-access sequence.

    Position p belongs to epoch p // epoch_length. Within an epoch each source has a
    fixed number of positions, in proportion to its weight, in shuffled order. A source
    visits all its items, in a new order each time, before it repeats one. With the
    default weights an epoch is every item exactly once. Finding an item takes constant
    time, so a run may start at any position.

    Args:
      sources: at least one.
      weights: share of each source; 0: its number of items.
      unit: "pairs": an epoch visits every image-caption pair; "one_at_random": every
        image, with one of its captions.

    Raises:
      UserError: no source, an image without caption, or a weight below 0.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float] | None = None,
        *,
        unit: Literal["pairs", "one_at_random"] = "pairs",
    ):
        if not sources:
            raise UserError("no data to train on: config.data.train names no source")
        self.sources = tuple(sources)
        self.unit = unit
        counts = [caption_counts(source) for source in self.sources]
        for source, count in zip(self.sources, counts, strict=True):
            if not len(count) or count.min() < 1:
                raise UserError(f"source {source.name!r} has an image without caption")
        # The pairs of image i are those from first[i] up to first[i + 1].
        self._first_pair = [np.concatenate([[0], np.cumsum(c)]) for c in counts]
        self.num_images = sum(len(source) for source in self.sources)
        self.num_pairs = int(sum(first[-1] for first in self._first_pair))
        self._num_items = [int(c.sum()) if unit == "pairs" else len(c) for c in counts]
        self.epoch_length = sum(self._num_items)
        if max(self.num_pairs, self.epoch_length) >= 2**31:
            raise UserError(f"{self.num_pairs} pairs are more than int32 ids can name")
        self._quota = _quotas(self.sources, weights, self._num_items)
        self._quota_ends = tuple(int(end) for end in np.cumsum(self._quota))

    def item(self, position: int, seed: int) -> Item:
        """The item at `position` (0, 1, ...) in a run of `seed`."""
        epoch, offset = divmod(position, self.epoch_length)
        shuffled = _shuffle(offset, self.epoch_length, (seed, _EPOCH, epoch))
        source = int(np.searchsorted(self._quota_ends, shuffled, side="right"))
        start = self._quota_ends[source] - self._quota[source]
        # How many items of this source came before, over all epochs.
        num_before = epoch * self._quota[source] + shuffled - start
        size = self._num_items[source]
        visit, offset = divmod(num_before, size)
        index = _shuffle(offset, size, (seed, _SOURCE, source, visit))
        return Item(source, index, visit)

    def pair_of(self, item: Item, fraction: float) -> tuple[int, int]:
        """Image and caption of an item; `fraction` in [0, 1) chooses among captions."""
        if self.unit == "pairs":
            first = self._first_pair[item.source]
            image = int(np.searchsorted(first, item.index, side="right")) - 1
            return image, item.index - int(first[image])
        count = self.num_captions(item.source, item.index)
        return item.index, int(fraction * count)

    def sample_id(self, source: int, image: int, caption: int) -> int:
        """Index of the pair in the corpus, which concatenates its sources."""
        before = sum(int(first[-1]) for first in self._first_pair[:source])
        return before + int(self._first_pair[source][image]) + caption

    def image_id(self, source: int, image: int) -> int:
        """Index of the image in the corpus, which concatenates its sources."""
        return sum(len(s) for s in self.sources[:source]) + image

    def captions(self) -> Iterator[str]:
        """The caption of every pair, in the order of sample ids."""
        for source in self.sources:
            for image in range(len(source)):
                yield from source.captions(image)

    def num_captions(self, source: int, image: int) -> int:
        first = self._first_pair[source]
        return int(first[image + 1] - first[image])


def _quotas(
    sources: Sequence[Source], weights: Sequence[float] | None, num_items: Sequence[int]
) -> tuple[int, ...]:
    """The number of items per epoch of each source, in proportion to its weight."""
    weights = weights if weights is not None else [0.0] * len(sources)
    for source, weight in zip(sources, weights, strict=True):
        if not 0 <= weight < float("inf"):
            raise UserError(f"source {source.name!r}: weight={weight} must be >= 0")
    shares = np.array([w or n for w, n in zip(weights, num_items, strict=True)], float)
    total = sum(num_items)
    exact = shares / shares.sum() * total
    quota = np.floor(exact).astype(np.int64)
    # The largest remainders get the items lost by rounding; ties go to the first.
    for i in np.argsort(quota - exact, kind="stable")[: total - quota.sum()]:
        quota[i] += 1
    return tuple(int(q) for q in quota)


def _shuffle(index: int, length: int, key: tuple[int, ...]) -> int:
    """Element `index` of the permutation of [0, length) that `key` selects."""
    # Grain's cipher walks at least 2**16 values: 4 ms per index for a length of 6.
    if length <= _SMALL:
        return int(_permutation(length, key)[index])
    return index_shuffle(index, max_index=length - 1, seed=_seed32(key), rounds=4)


@lru_cache(maxsize=64)
def _permutation(length: int, key: tuple[int, ...]) -> np.ndarray:
    return np.random.Generator(np.random.Philox(_seed32(key))).permutation(length)


@lru_cache(maxsize=256)
def _seed32(key: tuple[int, ...]) -> int:
    # Grain's own reshuffling uses seed + epoch: the second epoch of seed 0 would equal
    # the first of seed 1.
    return int(np.random.SeedSequence(key).generate_state(1)[0])
