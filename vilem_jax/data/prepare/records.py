"""The records of a prepared data set, and the images that were left out.

The records of a split are a function of its sources and the `Settings`: record n is the
same from each process of this machine and each worker of Beam.
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from vilem_jax.config.sources import SourceConfig
from vilem_jax.data.images import ImageError, fit_short_side
from vilem_jax.data.sources.source import Source, open_source
from vilem_jax.errors import UserError
from vilem_jax.files import reason
from vilem_jax.typing import JsonObject

SMALLEST_SIDE = 16  # pixels; smaller images are of no use to a model
NUM_EXAMPLES = 100  # images left out that the report of a split names
COUNTS = ("images", "captions", "resized", "kept", "left_out", "image_bytes")

# A config is opened in each process that needs it, so sending it is cheap.
Splits = Mapping[str, Sequence[Source | SourceConfig]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What determines a prepared data set, byte by byte, besides its sources.

    Raises:
      UserError: if a setting is out of range.
    """

    short_side: int = 288  # pixels; images with a longer short side are resized to it
    quality: int = 95  # of the JPEG of a resized image
    images_per_shard: int = 4096

    def __post_init__(self):
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
    """The records of one split, its sources one after another; can be pickled."""

    def __init__(
        self,
        sources: Sequence[Source | SourceConfig],
        first_id: int,
        settings: Settings,
    ):
        self._sources, self.first_id, self.settings = list(sources), first_id, settings
        lengths = [len(source) for source in self.sources]
        self._starts = [0, *itertools.accumulate(lengths)]

    @property
    def sources(self) -> list[Source]:
        return [_opened(source) for source in self._sources]

    def __len__(self) -> int:
        return self._starts[-1]

    def record(self, number: int) -> tuple[JsonObject, bool]:
        """Record `number`, and whether its image was resized.

        Raises:
          LeftOutError: if the image is missing or corrupt.
        """
        which = bisect.bisect_right(self._starts, number) - 1
        source, index = _opened(self._sources[which]), number - self._starts[which]
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

    def described(self) -> list[JsonObject]:
        """Of each source: name, number of images, digest of names and captions."""
        return [
            {"name": source.name, "images": len(source), "sha256": _digest(source)}
            for source in self.sources
        ]


class LeftOutError(Exception):
    """An image that cannot be prepared; `described` is its entry in the report."""

    def __init__(self, name: str, why: str):
        super().__init__(name, why)
        self.described = {"image": name, "why": why}


def split_records(splits: Splits, settings: Settings) -> dict[str, SplitRecords]:
    """The records of each split; image ids are unique over all splits."""
    records, first_id = {}, 0
    for split, sources in splits.items():
        if not re.fullmatch("[a-z][a-z0-9_]*", split) or split == "all":
            raise UserError(f"{split!r} cannot name a split: use a-z, 0-9 and _")
        records[split] = SplitRecords(sources, first_id, settings)
        first_id += len(records[split])
        if not len(records[split]):
            raise UserError(f"there is no image to prepare for the split {split!r}")
    if not records:
        raise UserError("there is nothing to prepare: name a source")
    return records


def tally(
    numbers: Iterable[int], records: SplitRecords, keep: Callable[[JsonObject], object]
) -> JsonObject:
    """Prepares records, passes each to `keep`, and returns the counts."""
    counts = dict.fromkeys(COUNTS, 0)
    left_out: list[dict[str, str]] = []
    for number in numbers:
        try:
            record, is_resized = records.record(number)
        except LeftOutError as error:
            left_out.append(error.described)
            continue
        counts["images"] += 1
        counts["captions"] += len(record["captions"])
        counts["resized" if is_resized else "kept"] += 1
        counts["image_bytes"] += len(record["image"])
        keep(record)
    counts["left_out"] = len(left_out)
    return counts | {"left_out_examples": left_out[:NUM_EXAMPLES]}


def _clean(text: str) -> str:
    """Replaces unpaired surrogates, which UTF-8 cannot encode, with "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _digest(source: Source) -> str:
    digest = hashlib.sha256()
    for index in range(len(source)):
        texts = json.dumps([source.image_name(index), *source.captions(index)])
        digest.update(texts.encode())
    return digest.hexdigest()


def _opened(source: Source | SourceConfig) -> Source:
    return _open_once(source) if isinstance(source, SourceConfig) else source


_open_once = functools.cache(open_source)
