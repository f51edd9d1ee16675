"""What a prepared data set holds, image by image, and what was left out.

The records of a split are a function of its sources and the `Settings`: whoever makes
record n, a process here or a worker of Beam, makes the same.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vilem_jax.config.sources import SourceConfig
from vilem_jax.data.images import ImageError, fit_short_side
from vilem_jax.data.sources.source import Source, open_source
from vilem_jax.errors import UserError
from vilem_jax.files import reason

SMALLEST_SIDE = 16  # pixels: below, no model of any use could read an image
NUM_EXAMPLES = 100  # of images left out, named in the report of a split
COUNTS = ("images", "captions", "resized", "kept", "left_out", "image_bytes")

# A source by its config is opened by whoever needs it, and travels as a few words.
Splits = Mapping[str, Sequence[Source | SourceConfig]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the bytes of a prepared data set, besides its sources."""

    short_side: int = 288  # pixels; shorter sides above it are resized to it
    quality: int = 95  # of JPEG, where an image is resized
    images_per_shard: int = 4096

    def check(self) -> None:
        """A UserError that names the setting which makes no sense."""
        if self.short_side < SMALLEST_SIDE:
            raise UserError(
                f"--short-side={self.short_side} is below {SMALLEST_SIDE} pixels: give "
                "at least the side that the model takes, such as 288"
            )
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality={self.quality} must lie between 1 and 100")
        if self.images_per_shard < 1:
            raise UserError("--images-per-shard must be 1 or more")


class SplitRecords:
    """The records of one split, its sources one after another; travels by pickle."""

    def __init__(
        self,
        sources: Sequence[Source | SourceConfig],
        first_id: int,
        settings: Settings,
    ):
        self._given, self.first_id, self.settings = list(sources), first_id, settings
        self._starts = [0]
        for source in self.sources:
            self._starts.append(self._starts[-1] + len(source))

    @property
    def sources(self) -> list[Source]:
        return [_opened(given) for given in self._given]

    def __len__(self) -> int:
        return self._starts[-1]

    def record(self, number: int) -> tuple[dict[str, Any], bool]:
        """Record `number`, and whether its image was resized.

        Raises:
          LeftOutError: the image is missing or corrupt.
        """
        source, index = self._at(number)
        settings, name = self.settings, source.image_name(index)
        try:
            content, is_resized = fit_short_side(
                source.read_image(index), settings.short_side, settings.quality
            )
        except FileNotFoundError:
            raise LeftOutError(_clean(name), "missing") from None
        except (OSError, ImageError) as error:
            raise LeftOutError(_clean(name), reason(error)) from None
        record = {
            "image": content,
            "captions": [_clean(caption) for caption in source.captions(index)],
            "filename": _clean(name),
            "image_id": self.first_id + number,
        }
        return record, is_resized

    def described(self) -> list[dict[str, Any]]:
        """Name, size and digest of names and captions of each source."""
        return [
            {"name": source.name, "images": len(source), "sha256": _digest(source)}
            for source in self.sources
        ]

    def _at(self, number: int) -> tuple[Source, int]:
        place = next(i for i, stop in enumerate(self._starts[1:]) if number < stop)
        return _opened(self._given[place]), number - self._starts[place]


class LeftOutError(Exception):
    """An image that cannot be prepared; args are its name and why."""

    @property
    def described(self) -> dict[str, str]:
        name, why = self.args
        return {"image": name, "why": why}


def split_records(splits: Splits, settings: Settings) -> dict[str, SplitRecords]:
    """The records of every split, image ids counted over all of them."""
    records, first_id = {}, 0
    for split, sources in splits.items():
        if not re.fullmatch("[a-z][a-z0-9_]*", split) or split == "all":
            raise UserError(
                f"{split!r} cannot name a split: use small letters, digits and _"
            )
        records[split] = SplitRecords(sources, first_id, settings)
        first_id += len(records[split])
        if not len(records[split]):
            raise UserError(f"there is no image to prepare for the split {split!r}")
    if not records:
        raise UserError("there is nothing to prepare: name a source")
    return records


def tally(numbers: Iterable[int], records: SplitRecords, keep: Callable) -> dict:
    """Prepares records one by one, gives them to `keep`, and counts."""
    counts = {key: 0 for key in COUNTS} | {"left_out_examples": []}
    for number in numbers:
        try:
            record, is_resized = records.record(number)
        except LeftOutError as left_out:
            counts["left_out"] += 1
            if len(counts["left_out_examples"]) < NUM_EXAMPLES:
                counts["left_out_examples"].append(left_out.described)
            continue
        counts["images"] += 1
        counts["captions"] += len(record["captions"])
        counts["resized" if is_resized else "kept"] += 1
        counts["image_bytes"] += len(record["image"])
        keep(record)
    return counts


def _clean(text: str) -> str:
    """Halves of surrogate pairs, which no UTF-8 has, become "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _digest(source: Source) -> str:
    digest = hashlib.sha256()
    for index in range(len(source)):
        said = json.dumps([source.image_name(index), *source.captions(index)])
        digest.update(said.encode())
    return digest.hexdigest()


def _opened(given: Source | SourceConfig) -> Source:
    return _open_once(given) if isinstance(given, SourceConfig) else given


@functools.cache
def _open_once(config: SourceConfig) -> Source:
    return open_source(config)
