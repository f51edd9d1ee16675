"""The format of foreign weights, recognized by the names of their tensors."""

from types import ModuleType
from typing import NamedTuple

from vilem_jax.errors import UserError
from vilem_jax.weights.foreign import Checkpoint
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
    """One format. Its module has `matches(names)` and, as far as the format goes,
    `read_vision_config`, `load_vision`, `read_text_config`, `load_text`, `read_model`.
    """

    module: ModuleType
    has_vision: bool  # holds an image tower
    has_text: bool
    is_model: bool  # holds projections too: it becomes a whole model


FORMATS = {
    "huggingface-vit": Format(huggingface_vit, True, False, False),
    "huggingface-bert": Format(huggingface_bert, False, True, False),
    "huggingface-blip": Format(huggingface_blip, True, True, True),
    "timm": Format(timm_vit, True, False, False),
    "augreg": Format(augreg, True, False, False),
    "albef": Format(albef, True, True, True),
    "blip": Format(blip, True, True, True),
}


def recognize(source: Checkpoint, wanted: str = "") -> str:
    """The name of the source's format, a key of FORMATS.

    Args:
      wanted: the format that the user named; "" accepts any.

    Raises:
      UserError: the format is unknown, or is not `wanted`.
    """
    if wanted and wanted not in FORMATS:
        raise UserError(
            f"there is no format {wanted!r}: {', '.join(FORMATS)} are known"
        )
    names = source.files.names
    found = [key for key, each in FORMATS.items() if each.module.matches(names)]
    if not found:
        first = ", ".join(sorted(names)[:3]) or "none at all"
        raise UserError(
            f"the tensors in {source.path} have names of no format that is known "
            f"({', '.join(FORMATS)}): {first}"
            + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        )
    if wanted and wanted != found[0]:
        raise UserError(
            f"{source.path} is not in the format {wanted}: by the names of its tensors "
            f"it is in {found[0]}"
        )
    return found[0]
