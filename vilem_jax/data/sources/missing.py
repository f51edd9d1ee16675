"""Images that annotations name and that do not exist."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from vilem_jax.data.sources.source import Source
from vilem_jax.errors import UserError


class PresentImages:
    """`source` restricted to the images `indices`, in their order."""

    def __init__(self, source: Source, indices: Sequence[int]):
        self._source, self._indices = source, indices
        self.name = source.name
        self.notes: tuple[str, ...] = getattr(source, "notes", ())

    def __len__(self) -> int:
        return len(self._indices)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._source.captions(self._indices[index])

    def image_name(self, index: int) -> str:
        return self._source.image_name(self._indices[index])

    def read_image(self, index: int) -> bytes | np.ndarray:
        return self._source.read_image(self._indices[index])


def present_images(
    source: Source, *, allow_missing: bool = False
) -> tuple[Source, dict[str, int]]:
    """`source` without its missing images.

    `has_image(index)` returns whether an image's file exists; a source without that
    method keeps images and captions together, so none can be missing.

    Args:
      allow_missing: leave missing images out, with their captions. Otherwise they are
        an error: metrics on a part of a benchmark are not the benchmark's.

    Returns:
      the source, and {"missing_images", "missing_captions"}: how many were left out.

    Raises:
      UserError: images are missing and that is not allowed, or all are missing.
    """
    missing = _missing(source)
    counts = {
        "missing_images": len(missing),
        "missing_captions": sum(len(source.captions(index)) for index in missing),
    }
    if not missing:
        return source, counts
    names = [source.image_name(index) for index in missing]
    where, near = f"of {source.name}", _near(source, missing[0])
    refuse_missing(
        "images", names, len(source), where, allow_missing=allow_missing, near=near
    )
    present = sorted(set(range(len(source))) - set(missing))
    return PresentImages(source, present), counts


def check_complete(source: Source, key: str) -> None:
    """Checks before a run that evaluation on `source` cannot fail hours later.

    Args:
      key: of the config that names the source.

    Raises:
      UserError: images are missing, or an image has no caption.
    """
    if missing := _missing(source):
        raise UserError(
            f"{len(missing)} of {len(source)} images of {key} are missing, the first "
            f"is {source.image_name(missing[0])}{_near(source, missing[0])}: put them "
            "there, set its `images` to their folder or zip, or remove them from its "
            "annotations"
        )
    check_captions(source)


def check_captions(source: Source) -> None:
    """Raises a UserError if an image has no caption."""
    for index in range(len(source)):
        if not source.captions(index):
            raise UserError(
                f"image {source.image_name(index)} of {source.name} has no caption: "
                "remove it from the data, or caption it"
            )


def refuse_missing(
    what: Literal["images", "clips"],
    names: Sequence[str],
    number: int,
    where: str,
    *,
    allow_missing: bool,
    near: str = "",
) -> None:
    """Raises the error for missing files, before any of the others is read.

    Args:
      what: the files are.
      names: of the missing files.
      number: of all files.
      where: "of NAME" or "of NAME in FOLDER".
      near: what follows the first name, see `there_is`.

    Raises:
      UserError: some files are missing and that is not allowed, or all are missing.
    """
    if not names or (allow_missing and len(names) < number):
        return
    option = "--images" if what == "images" else "--videos"
    way_out = (
        f"give the folder of the {what} with {option}"
        if len(names) == number
        else "put them there, or leave them and their captions out with --allow-missing"
    )
    raise UserError(
        f"{len(names)} of {number} {what} {where} are missing, the first is "
        f"{names[0]}{near}: {way_out}"
    )


def there_is(near: str) -> str:
    """What follows the name of a missing image in a message."""
    return f" (there is {near})" if near else ""


def _near(source: Source, index: int) -> str:
    near_image = getattr(source, "near_image", None)
    return there_is(near_image(index)) if near_image else ""


def _missing(source: Source) -> list[int]:
    """The indices of the images whose files do not exist."""
    has_image = getattr(source, "has_image", None)
    if has_image is None:
        return []
    return [index for index in range(len(source)) if not has_image(index)]
