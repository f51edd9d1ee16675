"""timm's vit_*_patch16_* and deit_*, in: safetensors or a pickle, without config.json.

ALBEF and BLIP name their image towers in the same way.
"""

import dataclasses
from collections.abc import Collection

from vilem_jax.config.schema import VisionConfig
from vilem_jax.weights import positions, tables
from vilem_jax.weights.folders import Tensors
from vilem_jax.weights.foreign import Checkpoint
from vilem_jax.weights.formats.huggingface_vit import read_tower
from vilem_jax.weights.tables import FIRST_OF_ONE, FIRST_OF_ONE_TWICE, PATCHES, Entry

POSITIONS = "pos_embed"
PATCH = "patch_embed.proj"
EPS = 1e-6  # of all of timm's ViTs, and ALBEF's and BLIP's

# Left out on purpose: our feature is [CLS] itself, without classifier or the layer
# before it in models of ImageNet-21k; the distillation token of DeiT's.
DROPPED = ("head.", "head_dist.", "pre_logits.", "dist_token")


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these names are in this format."""
    return f"{PATCH}.weight" in names


def vision_table(num_layers: int, *, is_distilled: bool = False) -> list[Entry]:
    """timm's VisionTransformer -> `VisionTower`; one tensor holds query, key, value."""
    table = [
        Entry("cls_token", ("class_token",), FIRST_OF_ONE_TWICE),
        Entry(
            POSITIONS,
            ("position_embedding",),
            tables.DISTILLED if is_distilled else FIRST_OF_ONE,
        ),
        Entry(f"{PATCH}.weight", ("patch_embedding", "kernel"), PATCHES),
        Entry(f"{PATCH}.bias", ("patch_embedding", "bias"), tables.SAME),
        *tables.layer_norm("norm", ("norm",)),
    ]
    for number in range(num_layers):
        name, path = f"blocks.{number}", ("blocks", number)
        table += [
            *tables.layer_norm(f"{name}.norm1", (*path, "attention_norm")),
            *tables.thirds(f"{name}.attn.qkv", path, ("query", "key", "value")),
            *tables.linear(f"{name}.attn.proj", (*path, "output")),
            *tables.layer_norm(f"{name}.norm2", (*path, "mlp_norm")),
            *tables.linear(f"{name}.mlp.fc1", (*path, "mlp", "expand")),
            *tables.linear(f"{name}.mlp.fc2", (*path, "mlp", "contract")),
        ]
    return table


def shape_config(
    files: Tensors, base: VisionConfig, *, num_heads: int = 0
) -> VisionConfig:
    """`base` with the shape that the tensors have; the image's side stays.

    Args:
      num_heads: 0 if not given, see `tables.num_heads`.
    """
    shape = tables.shape_of(files, f"{PATCH}.weight", rank=4)
    width, patch_size = shape[0], shape[-1]
    mlp = tables.shape_of(files, "blocks.0.mlp.fc1.weight", rank=2)
    return dataclasses.replace(
        base,
        patch_size=patch_size,
        width=width,
        num_layers=tables.depth(files.names, "blocks."),
        num_heads=tables.num_heads(width, files, base, num_heads),
        mlp_width=mlp[0],
        layer_norm_eps=EPS,
        activation="gelu",
    )


def read_vision_config(
    source: Checkpoint, base: VisionConfig, *, num_heads: int = 0
) -> VisionConfig:
    """The shape as the tensors have it; the image's side from `base`."""
    config = shape_config(tables.spell(source.files), base, num_heads=num_heads)
    positions.check_divides(config.image_size, config.patch_size, source.path)
    return config


def load_vision(source: Checkpoint, config: VisionConfig) -> dict:
    """Parameters of `VisionTower`, the grid of positions resized to `config`'s.

    Raises:
      UserError: tensors that are missing, unknown, or of another shape than `config`.
    """
    files = tables.spell(source.files)
    is_distilled = "dist_token" in files.names
    return read_tower(
        vision_table(config.num_layers, is_distilled=is_distilled),
        files,
        config,
        position_name=POSITIONS,
        dropped=DROPPED,
        is_distilled=is_distilled,
    )
