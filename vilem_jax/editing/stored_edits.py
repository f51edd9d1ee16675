"""Edits of a data set, stored so that every model judges the same ones."""

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vilem_jax.config.schema import Config
from vilem_jax.data.sources.source import Source
from vilem_jax.data.tokenizer import Tokenizer, vocabulary_digest
from vilem_jax.editing.editor import FrozenEditor, edit_captions
from vilem_jax.editing.loading import check_editor, load_editor
from vilem_jax.errors import UserError
from vilem_jax.files import check_format_version, read_errors, write_bytes
from vilem_jax.parsing import read_arrays

EDIT_ROWS = 64  # captions the editor takes at a time
FORMAT_VERSION = 1  # raised when a file means something else than before


_HOW_TO_MAKE = (
    "give --edits of `vilem evaluate proofread` a file that does not exist, and it "
    "makes the edits and stores them there"
)


@dataclasses.dataclass(frozen=True)
class StoredEdits:
    """Captions of a data set with some words replaced, once and for all."""

    source: str  # name of the data set
    captions: str  # digest of all captions of these images, to recognize the data set
    vocabulary: str  # digest of the vocabulary
    editor: str  # SHA-256 of the editor's weights
    manner: str  # JSON of `EditorConfig.manner`
    seed: int
    image: np.ndarray  # int32 [N], index of each caption's image in the data set
    tokens: np.ndarray  # int32 [N, L], the captions
    edited: np.ndarray  # int32 [N, L], with the wrong words in
    positions: np.ndarray  # int32 [N, K], K different positions
    is_edit: np.ndarray  # bool [N, K], which of them are edited

    @property
    def labels(self) -> np.ndarray:
        """The original words at the positions, int32 [N, K]."""
        return np.take_along_axis(self.tokens, self.positions, axis=1)


def make_edits(
    config: Config,
    graphdef: nnx.GraphDef,
    editor: FrozenEditor,
    tokenizer: Tokenizer,
    source: Source,
    *,
    seed: int,
    num_images: int | None = None,
) -> StoredEdits:
    """Edits one caption, chosen by `seed`, of each of the first images.

    Args:
      config: of the run; `config.evaluation` has L and the rate of edits.
      graphdef, editor: the masked-language model.
      num_images: how many images; None takes all.

    Returns:
      Captions with at least one edit; those without a word to edit are left out.
    """
    count = min(num_images or len(source), len(source))
    rng = np.random.default_rng(seed)
    captions = [source.captions(index) for index in range(count)]
    texts = [each[rng.integers(len(each))] if each else "" for each in captions]
    tokens = tokenizer.encode(texts, config.evaluation.text_length)
    how = config.evaluation_editor

    @jax.jit
    def run(editor, tokens, start):
        numbers = start + jnp.arange(EDIT_ROWS)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)
        return edit_captions(graphdef, editor, tokens, keys, how)

    # Whole chunks alone: the last one is filled up with rows that are dropped again.
    padded = np.pad(tokens, ((0, -count % EDIT_ROWS), (0, 0)), mode="edge")
    parts = [
        run(editor, padded[start : start + EDIT_ROWS], start)
        for start in range(0, len(padded), EDIT_ROWS)
    ]
    edits = jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *parts)
    keep = edits.edit_here.any(axis=1)
    if not keep.any():
        raise UserError(f"no caption of {source.name} has a word to edit")
    image = np.arange(count, dtype=np.int32)[keep]
    return StoredEdits(
        source=source.name,
        captions=captions_digest(source, image),
        vocabulary=vocabulary_digest(tokenizer),
        editor=how.sha256,
        manner=json.dumps(how.manner),
        seed=seed,
        image=image,
        tokens=tokens[keep],
        edited=edits.tokens[keep],
        positions=edits.positions[keep],
        is_edit=edits.is_edit[keep],
    )


def make_run_edits(
    config: Config, tokenizer: Tokenizer, source: Source, *, seed: int
) -> StoredEdits:
    """`make_edits` by the editor of the run that `config` and `tokenizer` are of.

    Raises:
      UserError: the run has no editor, or its file has moved, or was replaced.
    """
    if not config.editor.path:
        raise UserError(
            "this model has no editor to make wrong captions with (config.editor.path "
            "is empty, as in every exported model): give a stored set of edits"
        )
    check_editor(config)
    editor = load_editor(config, tokenizer)
    return make_edits(config, *editor, tokenizer, source, seed=seed)


def save_edits(edits: StoredEdits, path: str | Path) -> None:
    """Writes `edits` as .npz, whole or not at all."""
    content = io.BytesIO()
    fields = dataclasses.asdict(edits)
    np.savez_compressed(content, **fields, format_version=FORMAT_VERSION)
    write_bytes(path, content.getvalue())


def load_edits(path: str | Path, tokenizer: Tokenizer) -> StoredEdits:
    """What `save_edits` wrote.

    Raises:
      UserError: the file is corrupt or has another format version; its tokens are of
        another vocabulary, or have [SEP] and those of the model do not.
    """
    missing = f"there is no file {path} with stored edits"
    corrupt = f"{path} does not hold stored edits, or is corrupt: {_HOW_TO_MAKE}"
    with read_errors(path, missing=missing, corrupt=corrupt):
        arrays = read_arrays(Path(path).expanduser())
    # Names and numbers come back as arrays without axes.
    values: dict[str, Any] = {
        name: rows if rows.ndim else rows.item() for name, rows in arrays.items()
    }
    version = values.get("format_version")
    check_format_version(version, FORMAT_VERSION, Path(path), _HOW_TO_MAKE)
    names = [field.name for field in dataclasses.fields(StoredEdits)]
    if missing := [name for name in names if name not in values]:
        raise UserError(
            f"{path} does not hold {missing[0]!r} of stored edits: {_HOW_TO_MAKE}"
        )
    edits = StoredEdits(**{name: values[name] for name in names})
    if edits.vocabulary != vocabulary_digest(tokenizer):
        raise UserError(
            f"the edits in {path} are of another vocabulary than the model's: make "
            "others with the model's own editor"
        )
    has_sep = bool((edits.tokens == tokenizer.vocabulary.sep_id).any())
    if has_sep != tokenizer.keeps_sep:
        raise UserError(
            f"the captions in {path} are {'with' if has_sep else 'without'} [SEP], the "
            f"model's config.data.keeps_sep is {tokenizer.keeps_sep}: make other edits"
        )
    return edits


def captions_digest(source: Source, images: np.ndarray) -> str:
    captions = [source.captions(int(index)) for index in np.unique(images)]
    return hashlib.sha256(json.dumps(captions).encode()).hexdigest()
