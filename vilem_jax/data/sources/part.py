"""A part of a data set that has no splits, by a hash of the images' names."""

import dataclasses
import hashlib

import numpy as np

from vilem_jax.config.sources import SourceConfig
from vilem_jax.data.sources.missing import PresentImages
from vilem_jax.data.sources.source import Source, caption_counts, open_source
from vilem_jax.errors import UserError

# In hundredths of the images; "train+test" is all but "val".
_UPTO = {"train": 80, "val": 90, "test": 100}


def part_of(name: str) -> str:
    """The part of the image `name`: 80 % are "train", 10 % "val", 10 % "test".

    It depends on the name alone: an image that is added moves no other one.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    hundredth = int.from_bytes(digest[:8], "big") % 100
    return next(part for part, end in _UPTO.items() if hundredth < end)


class PartOfSource(PresentImages):
    """The images of `source` in `parts`; the first `num_images`, or all if it is 0."""

    def __init__(self, source: Source, parts: str, num_images: int):
        wanted = parts.split("+")
        names = map(source.image_name, range(len(source)))
        indices = [i for i, name in enumerate(names) if part_of(name) in wanted]
        super().__init__(source, indices[: num_images or None])
        self._counts = caption_counts(source)[self._indices]

    def caption_counts(self) -> np.ndarray:
        return self._counts

    def has_image(self, index: int) -> bool:
        has_image = getattr(self._source, "has_image", None)
        return has_image is None or has_image(self._indices[index])

    def near_image(self, index: int) -> str:
        near_image = getattr(self._source, "near_image", None)
        return near_image(self._indices[index]) if near_image else ""


def open_part(config: SourceConfig) -> Source:
    """The source of `config`, restricted to its `part`.

    Raises:
      UserError: as `open_source`, or the part is empty.
    """
    whole = open_source(dataclasses.replace(config, part="", num_images=0))
    part = PartOfSource(whole, config.part, config.num_images)
    if not len(part):
        raise UserError(
            f"source {config.name!r}: none of its {len(whole)} images belongs to the "
            f"part {config.part!r}, a tenth or more of them by a hash of their names: "
            'give images a "split" in the annotations ("train", "val", "test"), or add '
            "images"
        )
    return part
