"""Hugging Face's BertModel and BertForMaskedLM, in and out."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from vilem_jax.config.schema import TextConfig
from vilem_jax.errors import UserError
from vilem_jax.models.editor import MaskedLanguageModel
from vilem_jax.models.text import TextTower
from vilem_jax.weights import folders, tables
from vilem_jax.weights.folders import Tensors
from vilem_jax.weights.settings import Settings, layer_settings
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


def read_text_config(source: Tensors | Path, base: TextConfig) -> TextConfig:
    """The shape, epsilon and activation of config.json; the rest from `base`.

    Raises:
      UserError: no config.json, not a BERT's, or something our BERT does not do.
    """
    settings = Settings(source, "bert")
    positions = settings.values.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise UserError(
            f"{settings.file}: position_embedding_type {positions!r} is not supported; "
            "'absolute' is"
        )
    return dataclasses.replace(
        base,
        vocab_size=settings.number("vocab_size"),
        max_positions=settings.number("max_position_embeddings"),
        # The configs of the first BERTs omit these two.
        num_token_types=settings.number("type_vocab_size", default=2),
        **settings.layers(epsilon=1e-12),
    )


def shape_config(files: Tensors, base: TextConfig, *, num_heads: int = 0) -> TextConfig:
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


def load_text(source: Tensors | Path, config: TextConfig) -> dict:
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
        expected=tables.shapes_of(TextTower, config),
    )


def load_masked_language_model(source: Tensors | Path, config: TextConfig) -> dict:
    """Parameters of `MaskedLanguageModel`; errors as of `load_text`.

    Raises:
      UserError: there is no head, or it is not tied to the token embeddings.
    """
    files = _open(source)
    _check_head(files)
    text = tables.moved(text_table(config.num_layers), "", ("text",))
    return tables.read_tree(
        [*text, *head_table()],
        files,
        dropped=(*DROPPED, *TIED),
        expected=tables.shapes_of(MaskedLanguageModel, config),
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
    table = tables.moved(text_table(config.num_layers), PREFIX, ("text",))
    tensors = tables.write_tensors([*table, *head_table()], params)
    _write(folder, "BertForMaskedLM", tensors, config, tokenizer_folder)


def save_text(
    folder: Path, params: Mapping, config: TextConfig, tokenizer_folder: Path
) -> None:
    """Writes a folder that Hugging Face's BertModel and we load, as one change.

    Args:
      params: of `TextTower`; its cross-attention is left out.
      tokenizer_folder, errors: as above.
    """
    tensors = tables.write_tensors(text_table(config.num_layers), params)
    _write(folder, "BertModel", tensors, config, tokenizer_folder)


def _write(
    folder: Path,
    architecture: str,
    tensors: Mapping[str, np.ndarray],
    config: TextConfig,
    tokenizer_folder: Path,
) -> None:
    vocabulary = tokenizer_folder / folders.VOCABULARY
    text = vocabulary.read_text(encoding="utf-8") if vocabulary.is_file() else ""
    tokens = text.split("\n")
    settings = {
        "architectures": [architecture],
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.num_token_types,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "pad_token_id": tokens.index("[PAD]") if "[PAD]" in tokens else 0,
        **layer_settings(config, config.dropout_rate),
    }
    folders.write_folder(folder, settings, tensors, tokenizer_folder=tokenizer_folder)


def _open(source: Tensors | Path) -> Tensors:
    return tables.spell(folders.open_tensors(source), ((PREFIX, ""),))


def has_head(source: Tensors) -> bool:
    """Whether the checkpoint holds a masked-language head."""
    return any(name.startswith(HEAD) for name in source.names)


def _check_head(files: Tensors) -> None:
    if not has_head(files):
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
