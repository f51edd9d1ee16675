"""BLIP's original checkpoints, pre-trained or fine-tuned for retrieval, in.

Its text tower is a BERT of 12 layers, without token types, with [DEC] and [ENC] after
BERT's vocabulary (30,524 in all), and with cross-attention in every layer: our text
tower has a place for all of it if M_1 is as large as the tower.
"""

from collections.abc import Collection
from dataclasses import replace

from vilem_jax.config import schema
from vilem_jax.config.schema import Config, ModelConfig, TextConfig, VisionConfig
from vilem_jax.models.text import TextTower
from vilem_jax.weights import tables
from vilem_jax.weights.folders import Tensors
from vilem_jax.weights.formats import albef, huggingface_bert, timm_vit, whole_models
from vilem_jax.weights.formats.albef import LAYER, TEXT, VISION
from vilem_jax.weights.formats.whole_models import WholeModel
from vilem_jax.weights.tables import Entry

CROSS = "crossattention.self.query.weight"
EXTRA_PIECES = ("[DEC]", "[ENC]")

# Left out on purpose: the matching head reads the words beside the image, the decoder
# writes captions, position ids are counters.
DROPPED = (*albef.DROPPED, "text_decoder.")


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these names are in this format."""
    return VISION + timm_vit.PATCHES in names and f"{LAYER}0.{CROSS}" in names


def read_model(
    source: Tensors, *, vision_heads: int = 0, text_heads: int = 0
) -> WholeModel:
    """The whole model, at the image's side that it was trained at.

    Args and errors as of `albef.read_model`.
    """
    files = tables.spell(source)
    vision = albef.vision_config(files, vision_heads)
    text = albef.text_config(files, TextConfig(), text_heads)
    config = config_of(files, vision, text)
    dropped = (*DROPPED, *late_cross_attention(files, config.model))
    table = text_table(config.model)
    return albef.read_both_copies(config, table, files, dropped, EXTRA_PIECES)


def config_of(files: Tensors, vision: VisionConfig, text: TextConfig) -> Config:
    """A BLIP's settings: cross-attention in all layers, towards the last block.

    If the image tower has fewer blocks than the text tower has layers, M_1 is the
    number of blocks, and later cross-attention is left out.
    """
    num_layers = min(vision.num_layers, text.num_layers)
    model = ModelConfig(
        vision=vision, text=text, num_proofread_layers=num_layers, levels="last"
    )
    data = schema.DataConfig(cleaning="blip", keeps_sep=True)
    return whole_models.make_config(model, files, data, evaluation_length=35)


read_vision_config = albef.read_vision_config
load_vision = albef.load_vision


def read_text_config(source: Tensors, base: TextConfig) -> TextConfig:
    """The text tower's shape; dropout from `base`."""
    return albef.text_config(tables.spell(source), base, num_heads=0)


def load_text(source: Tensors, config: TextConfig) -> dict:
    """Parameters of `TextTower`, without cross-attention: a run has its own M_1."""
    files = tables.spell(source).below(TEXT)
    own = {n: s for n, s in files.stored.items() if "crossattention" not in n}
    expected = tables.shapes_of(TextTower, config)
    tree = tables.read_tree(
        bert_table(config.num_layers),
        replace(files, stored=own),
        dropped=huggingface_bert.DROPPED,
        expected=tables.without(expected, lambda path: "token_types" in path),
    )
    return whole_models.with_zero_token_types(tree)


def bert_table(num_layers: int) -> list[Entry]:
    """A BERT without token types."""
    table = huggingface_bert.text_table(num_layers)
    return [entry for entry in table if "token_types" not in entry.path]


def text_table(model: ModelConfig) -> list[Entry]:
    """BLIP's text tower -> `TextTower` with cross-attention in M_1 layers."""
    table = bert_table(model.text.num_layers)
    for number in range(model.num_proofread_layers):
        name = f"encoder.layer.{number}.crossattention"
        path = ("layers", number, "cross_attention")
        table += huggingface_bert.attention_table(name, path)
    return table


def late_cross_attention(files: Tensors, model: ModelConfig) -> list[str]:
    """Names of the cross-attention after the first M_1 layers, of both copies."""
    layers = albef.layers_from(model.num_proofread_layers, files)
    return [f"{layer}crossattention." for layer in layers]
