"""ALBEF's checkpoints, pre-trained or fine-tuned for retrieval, in.

The file has one BERT of 12 layers. Its first 6, without cross-attention, are the text
encoder and become our text tower. The rest is the fusion encoder, which reads their
output together with the image; a dual encoder has no place for it.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from vilem_jax.config import schema
from vilem_jax.config.schema import Config, ModelConfig, TextConfig, VisionConfig
from vilem_jax.weights import tables
from vilem_jax.weights.folders import Tensors
from vilem_jax.weights.formats import huggingface_bert, timm_vit, whole_models
from vilem_jax.weights.formats.vision_names import stored_config, vision_table
from vilem_jax.weights.formats.whole_models import WholeModel, read_copy
from vilem_jax.weights.model_folder import QUEUE_NAMES
from vilem_jax.weights.tables import Entry

VISION, TEXT = "visual_encoder.", "text_encoder."
LAYER = f"{TEXT}encoder.layer."
# The pre-trained file holds a BertForMaskedLM, the fine-tuned one a BertModel.
PREFIXES = (("text_encoder.bert.", TEXT), ("text_encoder_m.bert.", "text_encoder_m."))
ONLINE = (VISION, TEXT, "vision_proj.", "text_proj.", "temp")
MOMENTUM = ("visual_encoder_m.", "text_encoder_m.", "vision_proj_m.", "text_proj_m.")
TEMPERATURE = Entry("temp", ("temperature",), tables.SAME)
# Read apart, or of no use here.
BOOKKEEPING = (*QUEUE_NAMES, *whole_models.POINTERS, "idx_queue")

# Left out on purpose: the matching head and the masked-language head read the fusion
# encoder; position ids are counters.
DROPPED = (
    "itm_head.",
    *(
        f"{tower}{name}"
        for tower in (TEXT, "text_encoder_m.")
        for name in ("cls.", "pooler.", "embeddings.position_ids")
    ),
)


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these names are in this format."""
    spelt = {tables.replace_prefix(name, PREFIXES) for name in names}
    # The first layer of a BLIP has cross-attention, too.
    return VISION + timm_vit.PATCHES in spelt and _first_fusion_layer(spelt) > 0


def read_model(
    source: Tensors, *, vision_heads: int = 0, text_heads: int = 0
) -> WholeModel:
    """The whole model, at the image's side that it was trained at.

    Args:
      vision_heads, text_heads: 0 means those of published models of that width.

    Raises:
      UserError: tensors that are missing, unknown, or of another shape.
    """
    files = tables.spell(source, PREFIXES)
    vision = vision_config(files, vision_heads)
    text = read_text_config(source, TextConfig(), num_heads=text_heads)
    most = ModelConfig().num_proofread_layers
    num_layers = min(most, vision.num_layers, text.num_layers)
    model = ModelConfig(vision=vision, text=text, num_proofread_layers=num_layers)
    # Its tokenizer appends no [SEP].
    data = schema.DataConfig(cleaning="albef", keeps_sep=False)
    config = whole_models.make_config(model, files, data, evaluation_length=30)
    table = huggingface_bert.text_table(text.num_layers)
    dropped = (*DROPPED, *layers_from(text.num_layers, files))
    return read_both_copies(config, table, files, dropped)


def read_both_copies(
    config: Config,
    text: Sequence[Entry],
    files: Tensors,
    dropped: Sequence[str],
    extra_pieces: tuple[str, ...] = (),
) -> WholeModel:
    """Towers and projections, their momentum copies, temperature and queues.

    The momentum copy's own leaves, heads and temperature, are those of the parameters.

    Args:
      text: the table of the text tower.
    """
    vision = vision_table(timm_vit.NAMES, config.model.vision.num_layers)
    online, momentum = (
        [
            *tables.moved(vision, f"visual_encoder{suffix}.", ("vision",)),
            *tables.moved(text, f"text_encoder{suffix}.", ("text",)),
            *tables.linear(f"vision_proj{suffix}", ("image_projection",)),
            *tables.linear(f"text_proj{suffix}", ("text_projection",)),
        ]
        for suffix in ("", "_m")
    )
    dropped, params = (*dropped, *BOOKKEEPING), whole_models.new_model(config)
    params = read_copy(
        params, config, [*online, TEMPERATURE], files, (*dropped, *MOMENTUM)
    )
    copy = None
    if any(entry.name in files.names for entry in momentum):
        copy = read_copy(params, config, momentum, files, (*dropped, *ONLINE))
    queues = whole_models.read_queues(files, config.model.embedding_width)
    return WholeModel(config, params, copy, queues, extra_pieces)


def read_vision_config(
    source: Tensors, base: VisionConfig, *, num_heads: int = 0
) -> VisionConfig:
    """The image tower's shape, as of `timm_vit.read_vision_config`."""
    files = source.below(VISION)
    return timm_vit.read_vision_config(files, base, num_heads=num_heads)


def load_vision(source: Tensors, config: VisionConfig) -> dict:
    """Parameters of `VisionTower`, as of `timm_vit.load_vision`."""
    return timm_vit.load_vision(source.below(VISION), config)


def read_text_config(
    source: Tensors, base: TextConfig, *, num_heads: int = 0
) -> TextConfig:
    """The text encoder's shape; dropout from `base`."""
    files = tables.spell(source, PREFIXES)
    config = text_config(files, base, num_heads)
    return replace(config, num_layers=_first_fusion_layer(files.names))


def load_text(source: Tensors, config: TextConfig) -> dict:
    """Parameters of `TextTower`, without cross-attention."""
    files = tables.spell(source, PREFIXES)
    left_out = (*DROPPED, *layers_from(config.num_layers, files))
    kept = {n: s for n, s in files.stored.items() if not tables.is_dropped(n, left_out)}
    return huggingface_bert.load_text(replace(files, stored=kept).below(TEXT), config)


def vision_config(files: Tensors, num_heads: int) -> VisionConfig:
    """The image tower below VISION, at the image's side that it was trained at."""
    files = files.below(VISION)
    config = timm_vit.shape_config(files, VisionConfig(), num_heads=num_heads)
    return stored_config(files, config, timm_vit.NAMES.positions)


def text_config(files: Tensors, base: TextConfig, num_heads: int) -> TextConfig:
    """The BERT below TEXT, all of its layers; dropout from `base`."""
    return huggingface_bert.shape_config(files.below(TEXT), base, num_heads=num_heads)


def _first_fusion_layer(names: Collection[str]) -> int:
    """The first layer with cross-attention; 0 if there is none."""
    cross = "crossattention.self.query.weight"
    layers = range(tables.depth(names, LAYER))
    return next((n for n in layers if f"{LAYER}{n}.{cross}" in names), 0)


def layers_from(first: int, files: Tensors) -> list[str]:
    """Names of the text layers from `first` on, of both copies."""
    return [
        f"{tower}encoder.layer.{number}."
        for tower in (TEXT, "text_encoder_m.")
        for number in range(first, tables.depth(files.names, LAYER))
    ]
