"""Hugging Face's BertModel and BertForMaskedLM, in and out."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from flax import nnx

from vilem_jax.config.schema import ComputeConfig, TextConfig
from vilem_jax.errors import UserError
from vilem_jax.models.editor import MaskedLanguageModel
from vilem_jax.weights import folders, tables
from vilem_jax.weights.foreign import Checkpoint, folder_of, open_layout
from vilem_jax.weights.tables import SAME, Entry

PREFIX = "bert."  # BertForMaskedLM has it, BertModel has not
HEAD = "cls.predictions."

# Left out on purpose: our [CLS] feature has no pooler, position and type ids are
# counters kept by old versions, and the rest are heads for other tasks.
DROPPED = (
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "pooler.",
    "cls.seq_relationship.",
    "classifier.",
    "qa_outputs.",
)
# Copies of the token embeddings and of the head's bias, which some files repeat.
TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these names are in this format."""
    word = "embeddings.word_embeddings.weight"
    return word in names or PREFIX + word in names


def text_table(num_layers: int) -> list[Entry]:
    """BertModel without its pooler -> `TextTower` without cross-attention."""
    path: tables.TreePath = ("embedding",)
    table = [
        Entry("embeddings.word_embeddings.weight", (*path, "words"), SAME),
        Entry("embeddings.position_embeddings.weight", (*path, "positions"), SAME),
        Entry("embeddings.token_type_embeddings.weight", (*path, "token_types"), SAME),
        *tables.layer_norm("embeddings.LayerNorm", (*path, "norm")),
    ]
    for number in range(num_layers):
        name, path = f"encoder.layer.{number}", ("layers", number)
        table += attention_table(f"{name}.attention", (*path, "attention"))
        table += tables.linear(f"{name}.intermediate.dense", (*path, "mlp", "expand"))
        table += tables.linear(f"{name}.output.dense", (*path, "mlp", "contract"))
        table += tables.layer_norm(f"{name}.output.LayerNorm", (*path, "norm"))
    return table


def attention_table(name: str, path: tables.TreePath) -> list[Entry]:
    """BertAttention -> `Attention`, for self- and for cross-attention."""
    return [
        *tables.linear(f"{name}.self.query", (*path, "query")),
        *tables.linear(f"{name}.self.key", (*path, "key")),
        *tables.linear(f"{name}.self.value", (*path, "value")),
        *tables.linear(f"{name}.output.dense", (*path, "output")),
        *tables.layer_norm(f"{name}.output.LayerNorm", (*path, "norm")),
    ]


def transform_table(name: str, path: tables.TreePath) -> list[Entry]:
    """BertPredictionHeadTransform -> `Transform`."""
    return [
        *tables.linear(f"{name}.dense", (*path, "dense")),
        *tables.layer_norm(f"{name}.LayerNorm", (*path, "norm")),
    ]


def head_table() -> list[Entry]:
    """BertForMaskedLM's head -> what `MaskedLanguageModel` has beside its tower."""
    return [
        *transform_table(f"{HEAD}transform", ("transform",)),
        Entry(f"{HEAD}bias", ("bias",), SAME),
    ]


def read_text_config(
    source: Checkpoint | Path, base: TextConfig, *, num_heads: int = 0
) -> TextConfig:
    """The shape, epsilon and activation of config.json; the rest from `base`.

    Raises:
      UserError: no config.json, not a BERT's, or something our BERT does not do.
    """
    folder = folder_of(source)
    settings = folders.read_config(folder)
    folders.check_model_type(settings, folder, "bert")
    positions = settings.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise UserError(
            f"{Path(folder) / folders.CONFIG}: position_embedding_type {positions!r} "
            "is not supported; 'absolute' is"
        )

    def number(key: str) -> int:
        return folders.setting(settings, key, int, folder)

    return dataclasses.replace(
        base,
        vocab_size=number("vocab_size"),
        max_positions=number("max_position_embeddings"),
        num_token_types=number("type_vocab_size"),
        **folders.layer_settings(settings, folder),
    )


def shape_config(
    files: folders.Tensors, base: TextConfig, *, num_heads: int = 0
) -> TextConfig:
    """`base` with the shape that the tensors of a BERT have, and BERT's epsilon.

    Args:
      files: in the spelling of `text_table`.
      num_heads: 0 if not given, see `tables.num_heads`.
    """

    def shape(name: str) -> tuple[int, ...]:
        return tables.shape_of(files, name, rank=2)

    vocab_size, width = shape("embeddings.word_embeddings.weight")
    types = "embeddings.token_type_embeddings.weight"
    return dataclasses.replace(
        base,
        vocab_size=vocab_size,
        width=width,
        num_layers=tables.depth(files.names, "encoder.layer."),
        num_heads=tables.num_heads(width, files, base, num_heads),
        mlp_width=shape("encoder.layer.0.intermediate.dense.weight")[0],
        max_positions=shape("embeddings.position_embeddings.weight")[0],
        num_token_types=shape(types)[0] if types in files.names else 1,
        layer_norm_eps=1e-12,
        activation="gelu",
    )


def load_text(source: Checkpoint | Path, config: TextConfig) -> dict:
    """Parameters of `TextTower`, without cross-attention or masked-language head.

    Returns:
      nested dict of float32 arrays on the host.

    Raises:
      UserError: tensors that are missing, unknown, or of another shape than `config`.
    """
    return tables.read_tree(
        text_table(config.num_layers),
        _open(source),
        dropped=(*DROPPED, HEAD),
        expected=expected_tree(config)["text"],
    )


def load_mlm_head(source: Checkpoint | Path, config: TextConfig) -> dict:
    """{"transform": ..., "bias": [V]} of a BertForMaskedLM.

    Raises:
      UserError: there is no such head, or it is not tied to the token embeddings.
    """
    files = _open(source)
    _check_head(files)
    expected = expected_tree(config)
    del expected["text"]
    return tables.read_tree(
        head_table(),
        files,
        dropped=(*DROPPED, *TIED, "embeddings.", "encoder."),
        expected=expected,
    )


def load_masked_language_model(source: Checkpoint | Path, config: TextConfig) -> dict:
    """Parameters of `MaskedLanguageModel`; errors as of the two functions above."""
    files = _open(source)
    _check_head(files)
    text = tables.moved(text_table(config.num_layers), "", ("text",))
    return tables.read_tree(
        [*text, *head_table()],
        files,
        dropped=(*DROPPED, *TIED),
        expected=expected_tree(config),
    )


def save_masked_language_model(
    folder: Path, params: Mapping, config: TextConfig, tokenizer_folder: Path
) -> None:
    """Writes a folder that Hugging Face's BertForMaskedLM and we load, as one change.

    Args:
      params: of `MaskedLanguageModel`, arrays that reach the host.
      tokenizer_folder: its vocab.txt and, if there, its other files go along.

    Raises:
      UserError: `folder` holds something else, or there is no vocab.txt.
    """
    tokenizer_folder = Path(tokenizer_folder)
    text = tables.write_tensors(text_table(config.num_layers), params["text"])
    tensors = {f"{PREFIX}{name}": array for name, array in text.items()}
    tensors |= tables.write_tensors(head_table(), params)
    folders.write_folder(
        Path(folder),
        _settings(config, tokenizer_folder),
        tensors,
        tokenizer_folder=tokenizer_folder,
    )


def save_text(
    folder: Path, params: Mapping, config: TextConfig, tokenizer_folder: Path
) -> None:
    """Writes a folder that Hugging Face's BertModel and we load, as one change.

    Args:
      params: of `TextTower`; its cross-attention is left out.
      tokenizer_folder, errors: as above.
    """
    tokenizer_folder = Path(tokenizer_folder)
    settings = _settings(config, tokenizer_folder) | {"architectures": ["BertModel"]}
    tensors = tables.write_tensors(text_table(config.num_layers), params)
    folders.write_folder(
        Path(folder), settings, tensors, tokenizer_folder=tokenizer_folder
    )


def _settings(config: TextConfig, tokenizer_folder: Path) -> dict:
    """config.json of a BertForMaskedLM."""
    vocabulary = tokenizer_folder / folders.VOCABULARY
    text = vocabulary.read_text(encoding="utf-8") if vocabulary.is_file() else ""
    tokens = text.split("\n")
    return {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.num_token_types,
        "layer_norm_eps": config.layer_norm_eps,
        "hidden_act": "gelu" if config.activation == "gelu" else "gelu_pytorch_tanh",
        "hidden_dropout_prob": config.dropout_rate,
        "attention_probs_dropout_prob": config.dropout_rate,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "pad_token_id": tokens.index("[PAD]") if "[PAD]" in tokens else 0,
    }


def _open(source: Checkpoint | Path) -> folders.Tensors:
    return tables.spell(open_layout(source).files, ((PREFIX, ""),))


def expected_tree(config: TextConfig) -> dict:
    """The tree of `MaskedLanguageModel` with shapes for leaves."""
    model = nnx.eval_shape(
        lambda: MaskedLanguageModel(config, ComputeConfig(), rngs=nnx.Rngs(0))
    )
    return nnx.to_pure_dict(nnx.split(model, nnx.Param)[1])


def _check_head(files: folders.Tensors) -> None:
    if not any(name.startswith(HEAD) for name in files.names):
        raise UserError(
            f"{files.path} has no masked-language head ({HEAD}*): train one with "
            f"`vilem train --config=editor "
            f"--config.model.text.start_from={files.path}`"
        )
    for copy, original in TIED.items():
        if copy not in files.names or original not in files.names:
            continue
        if not np.array_equal(files.read(copy), files.read(original)):
            first, second = files.stored[copy].name, files.stored[original].name
            raise UserError(
                f"in {files.path} {first} differs from {second}: only heads tied to "
                "the token embeddings are supported"
            )


def has_head(source: Checkpoint) -> bool:
    """Whether the checkpoint holds a masked-language head."""
    return any(name.startswith(HEAD) for name in _open(source).names)
