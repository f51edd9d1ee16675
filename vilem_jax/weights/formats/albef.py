"""ALBEF's checkpoints, pre-trained or fine-tuned for retrieval, in.

One BERT of 12 layers lies in the file: its first 6, without cross-attention, are the
text encoder and become our text tower. The rest is the fusion encoder, which reads the
words after them together with the image; a dual encoder has no place for it.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

from vilem_jax.config.schema import Config, ModelConfig, TextConfig, VisionConfig
from vilem_jax.weights import positions, tables
from vilem_jax.weights.folders import Tensors
from vilem_jax.weights.foreign import Foreign, part_of
from vilem_jax.weights.formats import huggingface_bert, timm_vit
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


def is_here(names: Collection[str]) -> bool:
    """Whether tensors of these names are in this format."""
    spelt = {_plain(name) for name in names}
    return f"{VISION}{timm_vit.PATCH}.weight" in spelt and any(
        f"{LAYER}{number}.crossattention.self.query.weight" in spelt
        and f"{LAYER}0.crossattention.self.query.weight" not in spelt
        for number in range(1, tables.depth(spelt, LAYER))
    )


def read_model(
    source: Foreign, *, vision_heads: int = 0, text_heads: int = 0
) -> WholeModel:
    """The whole model, at the image's side that it was trained at.

    Args:
      vision_heads, text_heads: 0 where nobody has said them: as in published models of
        that width.

    Raises:
      UserError: tensors that are missing, unknown, or of another shape.
    """
    files, names = source.files, _names(source.files)
    vision = vision_config(source, names, VisionConfig(), vision_heads)
    text = _encoder_config(source, names, TextConfig(), text_heads)
    width = tables.shape_of(files, names, "vision_proj.weight", rank=2)[0]
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
        length_of_queues(files, names),
        cleaning="albef",
        keeps_sep=False,  # its tokenizer ends no caption with [SEP]
        text_length=30,
        evaluation_length=30,
    )
    return read_both_copies(
        config,
        lambda suffix: _table(model, suffix),
        files,
        names,
        dropped=(*DROPPED, *_fusion_layers(names, text.num_layers)),
        is_new=lambda path: path[0] in NEW or "cross_attention" in path,
    )


def read_both_copies(
    config: Config,
    table: Callable[[str], list[Entry]],
    files: Tensors,
    names: Mapping[str, str],
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
      complete: puts into the parameters what such a model is known to lack.
    """
    dropped = (*dropped, *BOOKKEEPING)
    params = read_params(
        config,
        [*table(""), TEMPERATURE],
        files,
        names,
        dropped=(*dropped, *MOMENTUM),
        is_new=is_new,
    )
    params = complete(params)
    momentum = read_momentum(
        config, params, table("_m"), files, names, dropped=(*dropped, *ONLINE)
    )
    queues = read_queues(files, names, POINTERS, config.model.embedding_width)
    return WholeModel(config, params, momentum, queues, extra_pieces)


def read_vision_config(
    source: Foreign, base: VisionConfig, *, num_heads: int = 0
) -> VisionConfig:
    """The image tower's shape, as of `timm_vit.read_vision_config`."""
    tower = part_of(source, _names(source.files), VISION)
    return timm_vit.read_vision_config(tower, base, num_heads=num_heads)


def load_vision(source: Foreign, config: VisionConfig) -> dict:
    """Parameters of `VisionTower`, as of `timm_vit.load_vision`."""
    return timm_vit.load_vision(part_of(source, _names(source.files), VISION), config)


def read_text_config(
    source: Foreign, base: TextConfig, *, num_heads: int = 0
) -> TextConfig:
    """The text encoder's shape; dropout from `base`."""
    return _encoder_config(source, _names(source.files), base, num_heads)


def load_text(source: Foreign, config: TextConfig) -> dict:
    """Parameters of `TextTower`, without cross-attention."""
    names = _names(source.files)
    fusion = _fusion_layers(names, config.num_layers)
    left_out = (*DROPPED, *fusion)
    names = {n: own for n, own in names.items() if not tables.is_dropped(n, left_out)}
    tower = part_of(source, names, TEXT)
    return huggingface_bert.load_text(source.folder, config, tower.files)


def vision_config(
    source: Foreign, names: Mapping[str, str], base: VisionConfig, num_heads: int
) -> VisionConfig:
    """The image tower below VISION, at the image's side that it was trained at."""
    files = part_of(source, names, VISION).files
    own = {name: name for name in files.names}
    config = timm_vit.shape_config(files, own, base, num_heads=num_heads)
    table = tables.shape_of(files, own, timm_vit.POSITIONS, rank=3)
    side = positions.side_of(table, f"{VISION}{timm_vit.POSITIONS}", source.path)
    return dataclasses.replace(config, image_size=side * config.patch_size)


def text_config(
    source: Foreign, names: Mapping[str, str], base: TextConfig, num_heads: int
) -> TextConfig:
    """The BERT below TEXT, all of its layers; dropout from `base`."""
    files = part_of(source, names, TEXT).files
    own = {name: name for name in files.names}
    return huggingface_bert.shape_config(files, own, base, num_heads=num_heads)


def _encoder_config(source, names, base, num_heads) -> TextConfig:
    config = text_config(source, names, base, num_heads)
    return dataclasses.replace(config, num_layers=_first_fusion_layer(names))


def _table(model: ModelConfig, suffix: str) -> list[Entry]:
    text = huggingface_bert.text_table(model.text.num_layers)
    return model_table(model, text, suffix)


def model_table(model: ModelConfig, text: Sequence[Entry], suffix: str) -> list[Entry]:
    """Towers and projections; `suffix` "_m" is the momentum copy."""
    vision = timm_vit.vision_table(model.vision.num_layers)
    return [
        *tables.moved(vision, f"visual_encoder{suffix}.", ("vision",)),
        *tables.moved(text, f"text_encoder{suffix}.", ("text",)),
        *tables.linear(f"vision_proj{suffix}", ("image_projection",)),
        *tables.linear(f"text_proj{suffix}", ("text_projection",)),
    ]


def _first_fusion_layer(names: Collection[str]) -> int:
    return next(
        number
        for number in range(tables.depth(names, LAYER))
        if f"{LAYER}{number}.crossattention.self.query.weight" in names
    )


def _fusion_layers(names: Collection[str], first: int) -> list[str]:
    """Layers from `first` on, of both copies."""
    return [
        f"{tower}encoder.layer.{number}."
        for tower in (TEXT, "text_encoder_m.")
        for number in range(first, tables.depth(names, LAYER))
    ]


def _plain(name: str) -> str:
    for old, new in PREFIXES:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _names(files: Tensors) -> dict[str, str]:
    return tables.spell(files.names, prefix=PREFIXES, folder=files.folder)
