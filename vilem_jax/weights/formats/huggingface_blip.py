"""BLIP as Hugging Face's BlipForImageTextRetrieval, in: a folder with config.json.

Towers and projections. It has neither queues nor momentum copies nor a temperature,
which starts at its default.
"""

import dataclasses
from collections.abc import Collection

from vilem_jax.config.schema import TextConfig, VisionConfig
from vilem_jax.errors import UserError
from vilem_jax.typing import JsonObject
from vilem_jax.weights import folders, positions, tables
from vilem_jax.weights.foreign import Checkpoint
from vilem_jax.weights.formats import blip
from vilem_jax.weights.formats.blip import EXTRA_PIECES, TEXT
from vilem_jax.weights.formats.huggingface_vit import read_tower
from vilem_jax.weights.formats.whole_models import (
    NEW,
    WholeModel,
    length_of_queues,
    read_params,
)
from vilem_jax.weights.tables import FIRST_OF_ONE, FIRST_OF_ONE_TWICE, PATCHES, Entry

VISION = "vision_model."
POSITIONS = "embeddings.position_embedding"
PATCH = "embeddings.patch_embedding"

# Left out on purpose: the matching head reads the words beside the image; position
# ids are counters of old versions.
DROPPED = (
    "itm_head.",
    f"{VISION}embeddings.position_ids",
    f"{TEXT}embeddings.position_ids",
    f"{TEXT}pooler.",
)


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these names are in this format."""
    word = f"{TEXT}embeddings.word_embeddings.weight"
    return f"{VISION}{PATCH}.weight" in names and word in names


def vision_table(num_layers: int) -> list[Entry]:
    """BlipVisionModel -> `VisionTower`; one tensor holds query, key, value."""
    table = [
        Entry("embeddings.class_embedding", ("class_token",), FIRST_OF_ONE_TWICE),
        Entry(POSITIONS, ("position_embedding",), FIRST_OF_ONE),
        Entry(f"{PATCH}.weight", ("patch_embedding", "kernel"), PATCHES),
        Entry(f"{PATCH}.bias", ("patch_embedding", "bias"), tables.SAME),
        *tables.layer_norm("post_layernorm", ("norm",)),
    ]
    for number in range(num_layers):
        name, path = f"encoder.layers.{number}", ("blocks", number)
        parts = ("query", "key", "value")
        table += [
            *tables.layer_norm(f"{name}.layer_norm1", (*path, "attention_norm")),
            *tables.thirds(f"{name}.self_attn.qkv", path, parts),
            *tables.linear(f"{name}.self_attn.projection", (*path, "output")),
            *tables.layer_norm(f"{name}.layer_norm2", (*path, "mlp_norm")),
            *tables.linear(f"{name}.mlp.fc1", (*path, "mlp", "expand")),
            *tables.linear(f"{name}.mlp.fc2", (*path, "mlp", "contract")),
        ]
    return table


def read_model(
    source: Checkpoint, *, vision_heads: int = 0, text_heads: int = 0
) -> WholeModel:
    """The whole model, at the image's side that it was trained at.

    Args:
      vision_heads, text_heads: ignored, config.json has both.

    Raises:
      UserError: no config.json, or one of another model; tensors that are missing,
        unknown, or of another shape.
    """
    files = tables.spell(source.files)
    settings = _section(source, "vision_config")
    image_size = folders.setting(settings, "image_size", int, source.folder)
    vision = read_vision_config(source, VisionConfig(image_size=image_size))
    text = read_text_config(source, TextConfig())
    width = tables.shape_of(files, "vision_proj.weight", rank=2)[0]
    config = blip.config_of(vision, text, width, length_of_queues(files))
    model = config.model
    params = read_params(
        config,
        [
            *tables.moved(vision_table(vision.num_layers), VISION, ("vision",)),
            *tables.moved(blip.text_table(model), TEXT, ("text",)),
            *tables.linear("vision_proj", ("image_projection",)),
            *tables.linear("text_proj", ("text_projection",)),
        ],
        files,
        dropped=(*DROPPED, *blip.late_cross_attention(model)),
        is_new=lambda path: path[0] in (*NEW, "temperature") or "token_types" in path,
    )
    params |= {"text": blip.with_zero_token_types(params["text"])}
    return WholeModel(config, params, None, {}, EXTRA_PIECES)


def read_vision_config(
    source: Checkpoint, base: VisionConfig, *, num_heads: int = 0
) -> VisionConfig:
    """The image tower's shape from config.json; the image's side from `base`."""
    settings = _section(source, "vision_config")
    patch_size = folders.setting(settings, "patch_size", int, source.folder)
    positions.check_divides(base.image_size, patch_size, source.path)
    shape = folders.layer_settings(settings, source.folder)
    return dataclasses.replace(base, patch_size=patch_size, **shape)


def load_vision(source: Checkpoint, config: VisionConfig) -> dict:
    """Parameters of `VisionTower`, the grid of positions resized to `config`'s.

    Raises:
      UserError: tensors that are missing, unknown, or of another shape than `config`.
    """
    return read_tower(
        vision_table(config.num_layers),
        tables.spell(source.files).below(VISION),
        config,
        position_name=POSITIONS,
        dropped=("embeddings.position_ids",),
    )


def read_text_config(
    source: Checkpoint, base: TextConfig, *, num_heads: int = 0
) -> TextConfig:
    """The text tower's shape from config.json; dropout from `base`."""
    settings, folder = _section(source, "text_config"), source.folder
    return dataclasses.replace(
        base,
        vocab_size=folders.setting(settings, "vocab_size", int, folder),
        max_positions=folders.setting(settings, "max_position_embeddings", int, folder),
        num_token_types=1,
        **folders.layer_settings(settings, folder),
    )


load_text = blip.load_text


def _section(source: Checkpoint, name: str) -> JsonObject:
    settings = folders.read_config(source.folder)
    folders.check_model_type(settings, source.folder, "blip")
    section = settings.get(name)
    if not isinstance(section, dict):
        raise UserError(f"{source.folder / folders.CONFIG} has no {name}")
    return section
