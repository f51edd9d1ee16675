"""Hugging Face's ViTModel, in and out; ViTForImageClassification and DeiT, in."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from vilem_jax.config.schema import VisionConfig
from vilem_jax.errors import UserError
from vilem_jax.weights import folders, positions, tables
from vilem_jax.weights.folders import Tensors
from vilem_jax.weights.formats import vision_names
from vilem_jax.weights.formats.vision_names import VisionNames
from vilem_jax.weights.settings import Settings, layer_settings

# ViTForImageClassification and its like have one, ViTModel and DeiTModel have none.
PREFIXES = (("vit.", ""), ("deit.", ""))
NAMES = VisionNames(
    class_token="embeddings.cls_token",
    positions="embeddings.position_embeddings",
    patches="embeddings.patch_embeddings.projection",
    norm="layernorm",
    block="encoder.layer.",
    in_block={
        "layernorm_before": "attention_norm",
        "attention.attention.query": "query",
        "attention.attention.key": "key",
        "attention.attention.value": "value",
        "attention.output.dense": "output",
        "layernorm_after": "mlp_norm",
        "intermediate.dense": "mlp.expand",
        "output.dense": "mlp.contract",
    },
    # Our feature is [CLS] itself, without pooler or classifier; the mask token is of
    # masked-image training, the distillation token of DeiT's.
    dropped=(
        "pooler.",
        "classifier.",
        "cls_classifier.",
        "distillation_classifier.",
        "embeddings.mask_token",
        "embeddings.distillation_token",
    ),
    distillation="embeddings.distillation_token",
)


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these names are in this format."""
    patches = f"{NAMES.patches}.weight"
    return any(prefix + patches in names for prefix in ("", "vit.", "deit."))


def read_vision_config(
    source: Tensors | Path, base: VisionConfig, *, num_heads: int = 0
) -> VisionConfig:
    """The shape, epsilon and activation of config.json; the image's side from `base`.

    The side is a choice of the run: `load_vision` resizes the grid of positions.

    Raises:
      UserError: no config.json, not a ViT's, or something our ViT does not do.
    """
    settings = Settings(source, "vit", "deit")
    if settings.values.get("num_channels", 3) != 3:
        raise UserError(f"{settings.file}: num_channels must be 3")
    patch_size = settings.number("patch_size")
    positions.check_divides(base.image_size, patch_size, settings.file.parent)
    return replace(base, patch_size=patch_size, **settings.layers())


def load_vision(source: Tensors | Path, config: VisionConfig) -> dict:
    """Nested float32 arrays on the host, as of `vision_names.load_vision`."""
    files = tables.spell(folders.open_tensors(source), PREFIXES)
    return vision_names.load_vision(NAMES, files, config)


def save_vision(folder: Path, params: Mapping, config: VisionConfig) -> None:
    """Writes a folder that Hugging Face's ViTModel and we load, as one change.

    Args:
      params: of `VisionTower`, arrays that reach the host.

    Raises:
      UserError: `folder` holds something else.
    """
    table = vision_names.vision_table(NAMES, config.num_layers)
    settings = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
        **layer_settings(config, dropout=0.0),
    }
    folders.write_folder(Path(folder), settings, tables.write_tensors(table, params))
