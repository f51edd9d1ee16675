"""Which format foreign weights are in, told by the names of their tensors."""

from collections.abc import Callable, Collection
from types import ModuleType
from typing import NamedTuple

from vilem_jax.errors import UserError
from vilem_jax.weights.foreign import Foreign
from vilem_jax.weights.formats import (
    albef,
    augreg,
    blip,
    huggingface_bert,
    huggingface_blip,
    huggingface_vit,
    timm_vit,
)


class Format(NamedTuple):
    module: ModuleType
    has_vision: bool  # an image tower is in it
    has_text: bool
    is_model: bool  # and projections: it becomes a whole model

    @property
    def is_here(self) -> Callable[[Collection[str]], bool]:
        return self.module.is_here


FORMATS = {
    "huggingface-vit": Format(huggingface_vit, True, False, False),
    "huggingface-bert": Format(huggingface_bert, False, True, False),
    "huggingface-blip": Format(huggingface_blip, True, True, True),
    "timm": Format(timm_vit, True, False, False),
    "augreg": Format(augreg, True, False, False),
    "albef": Format(albef, True, True, True),
    "blip": Format(blip, True, True, True),
}


def recognise(source: Foreign, wanted: str = "") -> str:
    """The name of the source's format, a key of FORMATS.

    Args:
      wanted: the format that a user has named; "" for whatever is there.

    Raises:
      UserError: no format that is known, or another than `wanted`.
    """
    if wanted and wanted not in FORMATS:
        raise UserError(
            f"there is no format {wanted!r}: {', '.join(FORMATS)} are known"
        )
    names = set(source.files.names)
    found = next((key for key, form in FORMATS.items() if form.is_here(names)), "")
    if not found:
        first = ", ".join(sorted(names)[:3]) or "none at all"
        raise UserError(
            f"the tensors in {source.path} have names of no format that is known "
            f"({', '.join(FORMATS)}): {first}"
            + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        )
    if wanted and wanted != found:
        raise UserError(
            f"{source.path} is not in the format {wanted}: by the names of its tensors "
            f"it is in {found}"
        )
    return found
