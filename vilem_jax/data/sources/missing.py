"""A test set without the images that are not there."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vilem_jax.data.sources.source import Source
from vilem_jax.errors import UserError


class PresentImages:
    """`source` with the images `indices` only, in their order."""

    def __init__(self, source: Source, indices: Sequence[int]):
        self._source = source
        self._indices = np.asarray(indices)
        self.name = source.name

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(getattr(self._source, "notes", ()))

    def __len__(self) -> int:
        return len(self._indices)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._source.captions(int(self._indices[index]))

    def image_name(self, index: int) -> str:
        return self._source.image_name(int(self._indices[index]))

    def read_image(self, index: int) -> Any:
        return self._source.read_image(int(self._indices[index]))


def present_images(
    source: Source, *, allow_missing: bool = False
) -> tuple[Source, dict[str, int]]:
    """`source`, or what of it is there.

    A source says by `has_image(index)` whether an image's file exists; one without
    that keeps images and captions together, and lacks none.

    Args:
      allow_missing: leave missing images out, with their captions; else they are an
        error, for metrics of a part of a benchmark are not the benchmark's.

    Returns:
      the source, and {"missing_images", "missing_captions"}: what was left out.

    Raises:
      UserError: images are missing and that is not allowed, or all are.
    """
    missing = _missing(source)
    counts = {
        "missing_images": len(missing),
        "missing_captions": sum(len(source.captions(index)) for index in missing),
    }
    if not missing:
        return source, counts
    refuse_missing(
        "images",
        [source.image_name(index) for index in missing],
        len(source),
        f"of {source.name}",
        option="--images",
        allow_missing=allow_missing,
    )
    present = np.setdiff1d(np.arange(len(source)), missing)
    return PresentImages(source, present), counts


def check_complete(source: Source, key: str) -> None:
    """Before a run that judges by `source`, what would stop it in hours.

    Args:
      key: of the config that names the source.

    Raises:
      UserError: images are missing, or one has no caption.
    """
    if missing := _missing(source):
        raise UserError(
            f"{len(missing)} of {len(source)} images of {key} are missing, the first "
            f"is {source.image_name(missing[0])}: put them there, set its `images` to "
            "where they are, or leave them out of its annotations"
        )
    for index in range(len(source)):
        if not source.captions(index):
            raise no_caption(source, index)


def no_caption(source: Source, index: int) -> UserError:
    return UserError(
        f"image {source.image_name(index)} of {source.name} has no caption: "
        "leave it out of the data, or caption it"
    )


def _missing(source: Source) -> list[int]:
    """The images that `source` knows not to be there."""
    has_image = getattr(source, "has_image", lambda index: True)
    return [index for index in range(len(source)) if not has_image(index)]


def refuse_missing(
    what: str,
    names: Sequence[str],
    number: int,
    where: str,
    *,
    option: str,
    allow_missing: bool,
) -> None:
    """What is said of missing files, before any of the others is read.

    Args:
      what: they are, "images" or "clips".
      names: of those that are missing.
      number: of all that should be there.
      where: "of NAME", "in FOLDER".
      option: of the command line, which says where they are.

    Raises:
      UserError: all are missing, or some, and that is not allowed.
    """
    if not names or (allow_missing and len(names) < number):
        return
    told = f"{len(names)} of {number} {what} {where} are missing"
    way_out = (
        f"say where the {what} are with {option}"
        if len(names) == number
        else "put them there, or leave them and their captions out with --allow-missing"
    )
    raise UserError(f"{told}, the first is {names[0]}: {way_out}")
