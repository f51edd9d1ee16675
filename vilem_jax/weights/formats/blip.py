"""BLIP's original checkpoints, pre-trained or fine-tuned for retrieval, in.

Its text tower is a BERT of 12 layers, without token types, with [DEC] and [ENC] after
BERT's vocabulary (30,524 in all), and with cross-attention in every layer: our text
tower has a place for all of it if M_1 is as large as the tower.
"""

import dataclasses
from collections.abc import Collection

import numpy as np

from vilem_jax.config.schema import Config, ModelConfig, TextConfig, VisionConfig
from vilem_jax.weights import tables
from vilem_jax.weights.foreign import Checkpoint
from vilem_jax.weights.formats import albef, huggingface_bert, timm_vit
from vilem_jax.weights.formats.whole_models import (
    NEW,
    WholeModel,
    length_of_queues,
    make_config,
)
from vilem_jax.weights.tables import Entry

VISION, TEXT = albef.VISION, albef.TEXT
LAYER = albef.LAYER
CROSS = "crossattention.self.query.weight"
EXTRA_PIECES = ("[DEC]", "[ENC]")

# Left out on purpose: the matching head reads the words beside the image, the decoder
# writes captions, position ids are counters.
DROPPED = (*albef.DROPPED, "text_decoder.")


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these names are in this format."""
    return f"{VISION}{timm_vit.PATCH}.weight" in names and f"{LAYER}0.{CROSS}" in names


def read_model(
    source: Checkpoint, *, vision_heads: int = 0, text_heads: int = 0
) -> WholeModel:
    """The whole model, at the image's side that it was trained at.

    Args and errors as of `albef.read_model`.
    """
    files = tables.spell(source.files)
    vision = albef.vision_config(files, vision_heads)
    text = albef.text_config(files, TextConfig(), text_heads)
    width = tables.shape_of(files, "vision_proj.weight", rank=2)[0]
    config = config_of(vision, text, width, length_of_queues(files))
    model = config.model
    return albef.read_both_copies(
        config,
        lambda suffix: albef.model_table(model, text_table(model), suffix),
        files,
        dropped=(*DROPPED, *late_cross_attention(model)),
        is_new=lambda path: path[0] in NEW or "token_types" in path,
        complete=lambda params: (
            params | {"text": with_zero_token_types(params["text"])}
        ),
        extra_pieces=EXTRA_PIECES,
    )


def config_of(
    vision: VisionConfig, text: TextConfig, width: int, queue_length: int
) -> Config:
    """A BLIP's settings: cross-attention in all layers, towards the last block.

    If the image tower has fewer blocks than the text tower has layers, M_1 is the
    number of blocks, and later cross-attention is left out.
    """
    model = ModelConfig(
        vision=vision,
        text=text,
        embedding_width=width,
        num_proofread_layers=min(vision.num_layers, text.num_layers),
        levels="last",
    )
    return make_config(
        model,
        queue_length,
        cleaning="blip",
        keeps_sep=True,
        text_length=30,
        evaluation_length=35,
    )


read_vision_config = albef.read_vision_config
load_vision = albef.load_vision


def read_text_config(
    source: Checkpoint, base: TextConfig, *, num_heads: int = 0
) -> TextConfig:
    """The text tower's shape; dropout from `base`."""
    return albef.text_config(tables.spell(source.files), base, num_heads)


def load_text(source: Checkpoint, config: TextConfig) -> dict:
    """Parameters of `TextTower`, without cross-attention: a run has its own M_1."""
    files = tables.spell(source.files).below(TEXT)
    own = {n: s for n, s in files.stored.items() if "crossattention" not in n}
    expected = huggingface_bert.expected_tree(config)["text"]
    tree = tables.read_tree(
        bert_table(config.num_layers),
        dataclasses.replace(files, stored=own),
        dropped=huggingface_bert.DROPPED,
        expected=tables.without(expected, lambda path: "token_types" in path),
    )
    return with_zero_token_types(tree)


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


def late_cross_attention(model: ModelConfig) -> list[str]:
    """Names of the cross-attention after the first M_1 layers, of both copies."""
    return [
        f"{tower}encoder.layer.{number}.crossattention."
        for tower in (TEXT, "text_encoder_m.")
        for number in range(model.num_proofread_layers, model.text.num_layers)
    ]


def with_zero_token_types(tower: dict) -> dict:
    """`TextTower` with zeros for the token types that a BLIP lacks: they add 0."""
    width = tower["embedding"]["words"].shape[1]
    zeros = np.zeros((1, width), np.float32)
    return tower | {"embedding": tower["embedding"] | {"token_types": zeros}}
