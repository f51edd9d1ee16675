"""Hugging Face's ViTModel, in and out; ViTForImageClassification and DeiT, in."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from flax import nnx

from vilem_jax.config.schema import ComputeConfig, VisionConfig
from vilem_jax.errors import UserError
from vilem_jax.models.vision import VisionTower
from vilem_jax.weights import folders, positions, tables
from vilem_jax.weights.foreign import Checkpoint, folder_of, open_layout
from vilem_jax.weights.tables import FIRST_OF_ONE, FIRST_OF_ONE_TWICE, PATCHES, Entry

# ViTForImageClassification and its like have one, ViTModel and DeiTModel have none.
PREFIXES = (("vit.", ""), ("deit.", ""))
POSITIONS = "embeddings.position_embeddings"
DISTILLATION = "embeddings.distillation_token"

# Left out on purpose: our feature is [CLS] itself, without pooler or classifier; the
# mask token is of masked-image training, the distillation token of DeiT's.
DROPPED = (
    "pooler.",
    "classifier.",
    "cls_classifier.",
    "distillation_classifier.",
    "embeddings.mask_token",
    DISTILLATION,
)


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these names are in this format."""
    patches = "embeddings.patch_embeddings.projection.weight"
    return any(prefix + patches in names for prefix in ("", "vit.", "deit."))


def vision_table(num_layers: int, *, is_distilled: bool = False) -> list[Entry]:
    """ViTModel without its pooler -> `VisionTower`.

    Args:
      is_distilled: of a DeiT, whose second position is that of its distillation token.
    """
    patches = "embeddings.patch_embeddings.projection"
    table = [
        Entry("embeddings.cls_token", ("class_token",), FIRST_OF_ONE_TWICE),
        Entry(
            POSITIONS,
            ("position_embedding",),
            tables.DISTILLED if is_distilled else FIRST_OF_ONE,
        ),
        Entry(f"{patches}.weight", ("patch_embedding", "kernel"), PATCHES),
        Entry(f"{patches}.bias", ("patch_embedding", "bias"), tables.SAME),
        *tables.layer_norm("layernorm", ("norm",)),
    ]
    for number in range(num_layers):
        name, path = f"encoder.layer.{number}", ("blocks", number)
        attention = f"{name}.attention"
        table += [
            *tables.layer_norm(f"{name}.layernorm_before", (*path, "attention_norm")),
            *tables.linear(f"{attention}.attention.query", (*path, "query")),
            *tables.linear(f"{attention}.attention.key", (*path, "key")),
            *tables.linear(f"{attention}.attention.value", (*path, "value")),
            *tables.linear(f"{attention}.output.dense", (*path, "output")),
            *tables.layer_norm(f"{name}.layernorm_after", (*path, "mlp_norm")),
            *tables.linear(f"{name}.intermediate.dense", (*path, "mlp", "expand")),
            *tables.linear(f"{name}.output.dense", (*path, "mlp", "contract")),
        ]
    return table


def read_vision_config(
    source: Checkpoint | Path, base: VisionConfig, *, num_heads: int = 0
) -> VisionConfig:
    """The shape, epsilon and activation of config.json; the image's side from `base`.

    The side is a choice of the run: `load_vision` resizes the grid of positions.

    Raises:
      UserError: no config.json, not a ViT's, or something our ViT does not do.
    """
    folder = folder_of(source)
    settings = folders.read_config(folder)
    folders.check_model_type(settings, folder, "vit", "deit")
    if settings.get("num_channels", 3) != 3:
        raise UserError(f"{Path(folder) / folders.CONFIG}: num_channels must be 3")
    patch_size = folders.setting(settings, "patch_size", int, folder)
    positions.check_divides(base.image_size, patch_size, folder)
    return dataclasses.replace(
        base,
        patch_size=patch_size,
        **folders.layer_settings(settings, folder),
    )


def load_vision(source: Checkpoint | Path, config: VisionConfig) -> dict:
    """Parameters of `VisionTower`, the grid of positions resized to `config`'s.

    Returns:
      nested dict of float32 arrays on the host.

    Raises:
      UserError: tensors that are missing, unknown, or of another shape than `config`.
    """
    files = tables.spell(open_layout(source).files, PREFIXES)
    is_distilled = DISTILLATION in files.names
    return read_tower(
        vision_table(config.num_layers, is_distilled=is_distilled),
        files,
        config,
        position_name=POSITIONS,
        dropped=DROPPED,
        is_distilled=is_distilled,
    )


def save_vision(folder: Path, params: Mapping, config: VisionConfig) -> None:
    """Writes a folder that Hugging Face's ViTModel and we load, as one change.

    Args:
      params: of `VisionTower`, arrays that reach the host.

    Raises:
      UserError: `folder` holds something else.
    """
    tensors = tables.write_tensors(vision_table(config.num_layers), params)
    settings = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "layer_norm_eps": config.layer_norm_eps,
        "hidden_act": "gelu" if config.activation == "gelu" else "gelu_pytorch_tanh",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "qkv_bias": True,
    }
    folders.write_folder(Path(folder), settings, tensors)


def read_tower(
    table: Sequence[Entry],
    files: folders.Tensors,
    config: VisionConfig,
    *,
    position_name: str,
    dropped: Sequence[str],
    is_distilled: bool = False,
) -> dict:
    """Parameters of `VisionTower` by a format's table, positions resized to `config`.

    Args:
      table: of the format; every entry is used once.
      position_name: the name of the position embeddings in it.
      dropped: left out on purpose.

    Raises:
      UserError: tensors that are missing, unknown, or of another shape than `config`.
    """
    stored = stored_config(files, config, position_name, is_distilled=is_distilled)
    tree = tables.read_tree(
        table, files, dropped=dropped, expected=expected_tower(stored)
    )
    side = config.image_size // config.patch_size
    tree["position_embedding"] = positions.resize(tree["position_embedding"], side)
    return tree


def stored_config(
    files: folders.Tensors,
    config: VisionConfig,
    table: str,
    *,
    is_distilled: bool = False,
) -> VisionConfig:
    """`config` with the image's side that the checkpoint was trained at.

    Args:
      table: the name of its positions.
    """
    if table not in files.names:
        return config  # reading the tensors will name what is missing
    shape, name = files.shape(table), files.stored[table].name
    side = positions.side_of(shape, name, files.path, num_extra=1 + is_distilled)
    return dataclasses.replace(config, image_size=side * config.patch_size)


def expected_tower(config: VisionConfig) -> dict:
    """The tree of `VisionTower` with shapes for leaves."""
    model = nnx.eval_shape(
        lambda: VisionTower(config, ComputeConfig(), rngs=nnx.Rngs(0))
    )
    return nnx.to_pure_dict(nnx.split(model, nnx.Param)[1])
