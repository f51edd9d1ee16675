"""timm's vit_*_patch16_* and deit_*, in: safetensors or a pickle, without config.json.

ALBEF and BLIP name their image towers in the same way.
"""

import dataclasses
from collections.abc import Collection

from vilem_jax.config.schema import VisionConfig
from vilem_jax.weights import positions, tables
from vilem_jax.weights.folders import Tensors
from vilem_jax.weights.formats import vision_names
from vilem_jax.weights.formats.vision_names import VisionNames

NAMES = VisionNames(
    class_token="cls_token",
    positions="pos_embed",
    patches="patch_embed.proj",
    norm="norm",
    block="blocks.",
    in_block={
        "norm1": "attention_norm",
        "attn.qkv": ("query", "key", "value"),
        "attn.proj": "output",
        "norm2": "mlp_norm",
        "mlp.fc1": "mlp.expand",
        "mlp.fc2": "mlp.contract",
    },
    # Our feature is [CLS] itself, without classifier or the layer before it in models
    # of ImageNet-21k; the distillation token of DeiT's.
    dropped=("head.", "head_dist.", "pre_logits.", "dist_token"),
    distillation="dist_token",
)
PATCHES = f"{NAMES.patches}.weight"
EPS = 1e-6  # of all of timm's ViTs, and ALBEF's and BLIP's


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these names are in this format."""
    return PATCHES in names


def shape_config(
    files: Tensors, base: VisionConfig, *, num_heads: int = 0
) -> VisionConfig:
    """`base` with the shape that the tensors have; the image's side stays.

    Args:
      num_heads: 0 if not given, see `tables.num_heads`.
    """
    width, _, _, patch_size = tables.shape_of(files, PATCHES, rank=4)
    return dataclasses.replace(
        base,
        patch_size=patch_size,
        width=width,
        num_layers=tables.depth(files.names, NAMES.block),
        num_heads=tables.num_heads(width, files, base, num_heads),
        mlp_width=tables.shape_of(files, "blocks.0.mlp.fc1.weight", rank=2)[0],
        layer_norm_eps=EPS,
        activation="gelu",
    )


def read_vision_config(
    source: Tensors, base: VisionConfig, *, num_heads: int = 0
) -> VisionConfig:
    """The shape as the tensors have it; the image's side from `base`."""
    config = shape_config(tables.spell(source), base, num_heads=num_heads)
    positions.check_divides(config.image_size, config.patch_size, source.path)
    return config


def load_vision(source: Tensors, config: VisionConfig) -> dict:
    """Parameters of `VisionTower`, as of `vision_names.load_vision`."""
    return vision_names.load_vision(NAMES, tables.spell(source), config)
