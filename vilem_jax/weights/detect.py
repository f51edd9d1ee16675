"""The format of foreign weights, recognized by the names of their tensors."""

from vilem_jax.errors import UserError
from vilem_jax.weights.folders import Tensors
from vilem_jax.weights.formats import (
    albef,
    augreg,
    blip,
    dinov2,
    huggingface_bert,
    huggingface_blip,
    huggingface_vit,
    timm_vit,
)

# Each module has `matches(names)`. One with an image tower has `read_vision_config` and
# `load_vision`, and `read_start` if the normalization of images comes with it; one with
# a text tower `read_text_config` and `load_text`, and one with projections too, of
# which a whole model can be made, `read_model`.
FORMATS = {
    # First: its names are a ViT's, and LayerScale's.
    "dinov2": dinov2,
    "huggingface-vit": huggingface_vit,
    "huggingface-bert": huggingface_bert,
    "huggingface-blip": huggingface_blip,
    "timm": timm_vit,
    "augreg": augreg,
    "albef": albef,
    "blip": blip,
}


def recognize(source: Tensors, wanted: str = "") -> str:
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
    names = source.names
    found = next((k for k, module in FORMATS.items() if module.matches(names)), "")
    if not found:
        first = ", ".join(sorted(names)[:3]) or "none at all"
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(
            f"the tensors in {source.path} have names of no format that is known "
            f"({', '.join(FORMATS)}): {first}{more}"
        )
    if wanted and wanted != found:
        raise UserError(
            f"{source.path} is not in the format {wanted}: by the names of its tensors "
            f"it is in {found}"
        )
    return found
