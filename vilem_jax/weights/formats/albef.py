"""ALBEF's checkpoints, pre-trained or fine-tuned for retrieval, in.

The file has one BERT of 12 layers. Its first 6, without cross-attention, are the text
encoder and become our text tower. The rest is the fusion encoder, which reads their
output together with the image; a dual encoder has no place for it.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence

from vilem_jax.config.schema import Config, ModelConfig, TextConfig, VisionConfig
from vilem_jax.weights import tables
from vilem_jax.weights.folders import Tensors
from vilem_jax.weights.foreign import Checkpoint
from vilem_jax.weights.formats import huggingface_bert, huggingface_vit, timm_vit
from vilem_jax.weights.formats.whole_models import (
    NEW,
    QUEUES,
    WholeModel,
    length_of_queues,
    make_config,
    read_momentum,
    read_params,
    read_queues,
)
from vilem_jax.weights.tables import Entry, TreePath

VISION, TEXT = "visual_encoder.", "text_encoder."
LAYER = f"{TEXT}encoder.layer."
# The pre-trained file holds a BertForMaskedLM, the fine-tuned one a BertModel.
PREFIXES = (("text_encoder.bert.", TEXT), ("text_encoder_m.bert.", "text_encoder_m."))
ONLINE = (VISION, TEXT, "vision_proj.", "text_proj.", "temp")
MOMENTUM = ("visual_encoder_m.", "text_encoder_m.", "vision_proj_m.", "text_proj_m.")
TEMPERATURE = Entry("temp", ("temperature",), tables.SAME)
POINTERS = ("queue_ptr", "ptr_queue")
BOOKKEEPING = (*QUEUES, *POINTERS, "idx_queue")  # read apart, or of no use here

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
    return f"{VISION}{timm_vit.PATCH}.weight" in spelt and any(
        f"{LAYER}{number}.crossattention.self.query.weight" in spelt
        and f"{LAYER}0.crossattention.self.query.weight" not in spelt
        for number in range(1, tables.depth(spelt, LAYER))
    )


def read_model(
    source: Checkpoint, *, vision_heads: int = 0, text_heads: int = 0
) -> WholeModel:
    """The whole model, at the image's side that it was trained at.

    Args:
      vision_heads, text_heads: 0 means those of published models of that width.

    Raises:
      UserError: tensors that are missing, unknown, or of another shape.
    """
    files = tables.spell(source.files, PREFIXES)
    vision = vision_config(files, vision_heads)
    text = read_text_config(source, TextConfig(), num_heads=text_heads)
    width = tables.shape_of(files, "vision_proj.weight", rank=2)[0]
    model = ModelConfig(
        vision=vision,
        text=text,
        embedding_width=width,
        num_proofread_layers=min(
            ModelConfig().num_proofread_layers, vision.num_layers, text.num_layers
        ),
    )
    config = make_config(
        model,
        length_of_queues(files),
        cleaning="albef",
        keeps_sep=False,  # its tokenizer appends no [SEP]
        text_length=30,
        evaluation_length=30,
    )
    return read_both_copies(
        config,
        lambda suffix: model_table(
            model, huggingface_bert.text_table(text.num_layers), suffix
        ),
        files,
        dropped=(*DROPPED, *_fusion_layers(files, text.num_layers)),
        is_new=lambda path: path[0] in NEW or "cross_attention" in path,
    )


def read_both_copies(
    config: Config,
    table: Callable[[str], list[Entry]],
    files: Tensors,
    *,
    dropped: Sequence[str],
    is_new: Callable[[TreePath], bool],
    complete: Callable[[dict], dict] = lambda params: params,
    extra_pieces: tuple[str, ...] = (),
) -> WholeModel:
    """Towers and projections, their momentum copies, temperature and queues.

    Args:
      table: of the copy whose names have this suffix, "" or "_m".
      is_new: as of `read_params`.
      complete: adds to the parameters the leaves that such a model lacks.
    """
    dropped = (*dropped, *BOOKKEEPING)
    params = read_params(
        config,
        [*table(""), TEMPERATURE],
        files,
        dropped=(*dropped, *MOMENTUM),
        is_new=is_new,
    )
    params = complete(params)
    momentum = read_momentum(
        config, params, table("_m"), files, dropped=(*dropped, *ONLINE)
    )
    queues = read_queues(files, POINTERS, config.model.embedding_width)
    return WholeModel(config, params, momentum, queues, extra_pieces)


def read_vision_config(
    source: Checkpoint, base: VisionConfig, *, num_heads: int = 0
) -> VisionConfig:
    """The image tower's shape, as of `timm_vit.read_vision_config`."""
    return timm_vit.read_vision_config(_vision_of(source), base, num_heads=num_heads)


def load_vision(source: Checkpoint, config: VisionConfig) -> dict:
    """Parameters of `VisionTower`, as of `timm_vit.load_vision`."""
    return timm_vit.load_vision(_vision_of(source), config)


def _vision_of(source: Checkpoint) -> Checkpoint:
    return dataclasses.replace(source, files=source.files.below(VISION))


def read_text_config(
    source: Checkpoint, base: TextConfig, *, num_heads: int = 0
) -> TextConfig:
    """The text encoder's shape; dropout from `base`."""
    files = tables.spell(source.files, PREFIXES)
    config = text_config(files, base, num_heads)
    return dataclasses.replace(config, num_layers=_first_fusion_layer(files))


def load_text(source: Checkpoint, config: TextConfig) -> dict:
    """Parameters of `TextTower`, without cross-attention."""
    files = tables.spell(source.files, PREFIXES)
    left_out = (*DROPPED, *_fusion_layers(files, config.num_layers))
    kept = {n: s for n, s in files.stored.items() if not tables.is_dropped(n, left_out)}
    files = dataclasses.replace(files, stored=kept).below(TEXT)
    return huggingface_bert.load_text(Checkpoint(source.path, files), config)


def vision_config(files: Tensors, num_heads: int) -> VisionConfig:
    """The image tower below VISION, at the image's side that it was trained at."""
    files = files.below(VISION)
    config = timm_vit.shape_config(files, VisionConfig(), num_heads=num_heads)
    return huggingface_vit.stored_config(files, config, timm_vit.POSITIONS)


def text_config(files: Tensors, base: TextConfig, num_heads: int) -> TextConfig:
    """The BERT below TEXT, all of its layers; dropout from `base`."""
    return huggingface_bert.shape_config(files.below(TEXT), base, num_heads=num_heads)


def model_table(model: ModelConfig, text: Sequence[Entry], suffix: str) -> list[Entry]:
    """Towers and projections; `suffix` "_m" is the momentum copy."""
    vision = timm_vit.vision_table(model.vision.num_layers)
    return [
        *tables.moved(vision, f"visual_encoder{suffix}.", ("vision",)),
        *tables.moved(text, f"text_encoder{suffix}.", ("text",)),
        *tables.linear(f"vision_proj{suffix}", ("image_projection",)),
        *tables.linear(f"text_proj{suffix}", ("text_projection",)),
    ]


def _first_fusion_layer(files: Tensors) -> int:
    return next(
        number
        for number in range(tables.depth(files.names, LAYER))
        if f"{LAYER}{number}.crossattention.self.query.weight" in files.names
    )


def _fusion_layers(files: Tensors, first: int) -> list[str]:
    """Layers from `first` on, of both copies."""
    return [
        f"{tower}encoder.layer.{number}."
        for tower in (TEXT, "text_encoder_m.")
        for number in range(first, tables.depth(files.names, LAYER))
    ]
