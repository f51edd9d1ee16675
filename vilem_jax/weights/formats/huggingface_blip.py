"""BLIP as Hugging Face's BlipForImageTextRetrieval, in: a folder with config.json.

Towers and projections. It has neither queues nor momentum copies nor a temperature,
which starts at its default.
"""

from collections.abc import Collection
from dataclasses import replace

from vilem_jax.config.schema import TextConfig, VisionConfig
from vilem_jax.weights import positions, tables
from vilem_jax.weights.folders import Tensors
from vilem_jax.weights.formats import blip, vision_names, whole_models
from vilem_jax.weights.formats.blip import EXTRA_PIECES, TEXT
from vilem_jax.weights.formats.vision_names import VisionNames
from vilem_jax.weights.formats.whole_models import WholeModel
from vilem_jax.weights.settings import Settings

VISION = "vision_model."
NAMES = VisionNames(
    class_token="embeddings.class_embedding",
    positions="embeddings.position_embedding",
    patches="embeddings.patch_embedding",
    norm="post_layernorm",
    block="encoder.layers.",
    in_block={
        "layer_norm1": "attention_norm",
        "self_attn.qkv": ("query", "key", "value"),
        "self_attn.projection": "output",
        "layer_norm2": "mlp_norm",
        "mlp.fc1": "mlp.expand",
        "mlp.fc2": "mlp.contract",
    },
    dropped=("embeddings.position_ids",),
)

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
    return f"{VISION}{NAMES.patches}.weight" in names and word in names


def read_model(
    source: Tensors, *, vision_heads: int = 0, text_heads: int = 0
) -> WholeModel:
    """The whole model, at the image's side that it was trained at.

    Args:
      vision_heads, text_heads: ignored, config.json has both.

    Raises:
      UserError: no config.json, or one of another model; tensors that are missing,
        unknown, or of another shape.
    """
    files = tables.spell(source)
    image_size = Settings(source, "blip", section="vision_config").number("image_size")
    vision = read_vision_config(source, VisionConfig(image_size=image_size))
    config = blip.config_of(files, vision, read_text_config(source, TextConfig()))
    model = config.model
    tower = vision_names.vision_table(NAMES, vision.num_layers)
    table = [
        *tables.moved(tower, VISION, ("vision",)),
        *tables.moved(blip.text_table(model), TEXT, ("text",)),
        *tables.linear("vision_proj", ("image_projection",)),
        *tables.linear("text_proj", ("text_projection",)),
    ]
    dropped = (*DROPPED, *blip.late_cross_attention(files, model))
    new = whole_models.new_model(config)
    params = whole_models.read_copy(new, config, table, files, dropped)
    return WholeModel(config, params, None, {}, EXTRA_PIECES)


def read_vision_config(
    source: Tensors, base: VisionConfig, *, num_heads: int = 0
) -> VisionConfig:
    """The image tower's shape from config.json; the image's side from `base`."""
    settings = Settings(source, "blip", section="vision_config")
    patch_size = settings.number("patch_size")
    positions.check_divides(base.image_size, patch_size, source.path)
    return replace(base, patch_size=patch_size, **settings.layers())


def load_vision(source: Tensors, config: VisionConfig) -> dict:
    """Parameters of `VisionTower`, as of `vision_names.load_vision`."""
    files = tables.spell(source).below(VISION)
    return vision_names.load_vision(NAMES, files, config)


def read_text_config(source: Tensors, base: TextConfig) -> TextConfig:
    """The text tower's shape from config.json; dropout from `base`."""
    settings = Settings(source, "blip", section="text_config")
    return replace(
        base,
        vocab_size=settings.number("vocab_size"),
        max_positions=settings.number("max_position_embeddings"),
        num_token_types=1,
        **settings.layers(),
    )


load_text = blip.load_text
