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
# Copies of the word embeddings and of the head's bias, which some files repeat.
TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


def is_here(names: Collection[str]) -> bool:
    """Whether tensors of these names are in this format."""
    word = "embeddings.word_embeddings.weight"
    return word in names or PREFIX + word in names


def text_table(num_layers: int) -> list[Entry]:
    """BertModel without its pooler -> `TextTower` without cross-attention."""
    place = ("embedding",)
    table = [
        Entry("embeddings.word_embeddings.weight", (*place, "words"), SAME),
        Entry("embeddings.position_embeddings.weight", (*place, "positions"), SAME),
        Entry("embeddings.token_type_embeddings.weight", (*place, "token_types"), SAME),
        *tables.layer_norm("embeddings.LayerNorm", (*place, "norm")),
    ]
    for number in range(num_layers):
        name, place = f"encoder.layer.{number}", ("layers", number)
        table += attention_table(f"{name}.attention", (*place, "attention"))
        table += tables.linear(f"{name}.intermediate.dense", (*place, "mlp", "expand"))
        table += tables.linear(f"{name}.output.dense", (*place, "mlp", "contract"))
        table += tables.layer_norm(f"{name}.output.LayerNorm", (*place, "norm"))
    return table


def attention_table(name: str, place: tables.TreePath) -> list[Entry]:
    """BertAttention -> `Attention`, for self- and for cross-attention."""
    return [
        *tables.linear(f"{name}.self.query", (*place, "query")),
        *tables.linear(f"{name}.self.key", (*place, "key")),
        *tables.linear(f"{name}.self.value", (*place, "value")),
        *tables.linear(f"{name}.output.dense", (*place, "output")),
        *tables.layer_norm(f"{name}.output.LayerNorm", (*place, "norm")),
    ]


def transform_table(name: str, place: tables.TreePath) -> list[Entry]:
    """BertPredictionHeadTransform -> `Transform`."""
    return [
        *tables.linear(f"{name}.dense", (*place, "dense")),
        *tables.layer_norm(f"{name}.LayerNorm", (*place, "norm")),
    ]


def head_table() -> list[Entry]:
    """BertForMaskedLM's head -> what `MaskedLanguageModel` has beside its tower."""
    return [
        *transform_table(f"{HEAD}transform", ("transform",)),
        Entry(f"{HEAD}bias", ("bias",), SAME),
    ]


def read_text_config(folder: Path, base: TextConfig) -> TextConfig:
    """The folder's shape, epsilon and activation; dropout and the rest from `base`.

    Raises:
      UserError: no config.json, not a BERT's, or something our BERT does not do.
    """
    settings = folders.read_config(folder)
    folders.check_model_type(settings, folder, "bert")
    positions = settings.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise UserError(
            f"{Path(folder) / folders.CONFIG}: position_embedding_type {positions!r} "
            "is not supported; 'absolute' is"
        )

    def number(key):
        return folders.setting(settings, key, int, folder)

    return dataclasses.replace(
        base,
        vocab_size=number("vocab_size"),
        max_positions=number("max_position_embeddings"),
        num_token_types=number("type_vocab_size"),
        **folders.layer_settings(settings, folder),
    )


def shape_config(
    files: folders.Tensors,
    names: Mapping[str, str],
    base: TextConfig,
    *,
    num_heads: int = 0,
) -> TextConfig:
    """`base` with the shape that the tensors of a BERT have, and BERT's epsilon.

    Args:
      names: the spelling of `text_table` -> the file's own.
      num_heads: 0 where nobody has said it, see `tables.num_heads`.
    """

    def shape(name):
        return tables.shape_of(files, names, name, rank=2)

    vocab_size, width = shape("embeddings.word_embeddings.weight")
    types = "embeddings.token_type_embeddings.weight"
    return dataclasses.replace(
        base,
        vocab_size=vocab_size,
        width=width,
        num_layers=tables.depth(names, "encoder.layer."),
        num_heads=tables.num_heads(width, files, base, num_heads),
        mlp_width=shape("encoder.layer.0.intermediate.dense.weight")[0],
        max_positions=shape("embeddings.position_embeddings.weight")[0],
        num_token_types=shape(types)[0] if types in names else 1,
        layer_norm_eps=1e-12,
        activation="gelu",
    )


def load_text(
    folder: Path, config: TextConfig, files: folders.Tensors | None = None
) -> dict:
    """Parameters of `TextTower`, without cross-attention; a masked-language head stays.

    Args:
      files: the folder's tensors, where they are open already (a pickle's, say).

    Returns:
      nested dict of float32 arrays on the host.

    Raises:
      UserError: tensors that are missing, unknown, or of another shape than `config`.
    """
    files, names = _open(folder, files)
    return tables.read_tree(
        text_table(config.num_layers),
        files,
        names,
        dropped=(*DROPPED, HEAD),
        expected=expected_tree(config)["text"],
    )


def load_mlm_head(
    folder: Path, config: TextConfig, files: folders.Tensors | None = None
) -> dict:
    """{"transform": ..., "bias": [V]} of a BertForMaskedLM.

    Raises:
      UserError: the folder has no such head, or one that is not tied to its words.
    """
    files, names = _open(folder, files)
    _check_head(files, names)
    expected = expected_tree(config)
    del expected["text"]
    return tables.read_tree(
        head_table(),
        files,
        names,
        dropped=(*DROPPED, *TIED, "embeddings.", "encoder."),
        expected=expected,
    )


def load_masked_language_model(
    folder: Path, config: TextConfig, files: folders.Tensors | None = None
) -> dict:
    """Parameters of `MaskedLanguageModel`; errors as of the two functions above."""
    files, names = _open(folder, files)
    _check_head(files, names)
    text = [
        entry._replace(path=("text", *entry.path))
        for entry in text_table(config.num_layers)
    ]
    return tables.read_tree(
        [*text, *head_table()],
        files,
        names,
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
    words = (
        vocabulary.read_text(encoding="utf-8").split("\n")
        if vocabulary.is_file()
        else []
    )
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
        "pad_token_id": words.index("[PAD]") if "[PAD]" in words else 0,
    }


def _open(folder: Path, files: folders.Tensors | None = None):
    files = files or folders.open_tensors(folder)
    return files, tables.spell(files.names, prefix=PREFIX, folder=folder)


def expected_tree(config: TextConfig) -> dict:
    """The tree of `MaskedLanguageModel` with shapes for leaves."""
    model = nnx.eval_shape(
        lambda: MaskedLanguageModel(config, ComputeConfig(), rngs=nnx.Rngs(0))
    )
    return nnx.to_pure_dict(nnx.split(model, nnx.Param)[1])


def _check_head(files: folders.Tensors, names: Mapping[str, str]) -> None:
    if not any(name.startswith(HEAD) for name in names):
        raise UserError(
            f"{files.folder} has no masked-language head ({HEAD}*): train one with "
            f"`vilem train --config=editor "
            f"--config.model.text.start_from={files.folder}`"
        )
    for copy, original in TIED.items():
        if copy not in names or original not in names:
            continue
        same = np.array_equal(files.read(names[copy]), files.read(names[original]))
        if not same:
            raise UserError(
                f"in {files.folder} {names[copy]} differs from {names[original]}: only "
                "heads tied to the word embeddings are supported"
            )


def has_head(folder: Path, files: folders.Tensors | None = None) -> bool:
    """Whether the folder holds a masked-language head."""
    _, names = _open(folder, files)
    return any(name.startswith(HEAD) for name in names)
