"""Opens and checks what edits the captions of a run: the editor, or an edit table."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vilem_jax.config.schema import Config, EditorConfig
from vilem_jax.data.corpus import Corpus
from vilem_jax.data.edit_table import StoredEditTable, describe
from vilem_jax.data.tokenizer import Tokenizer, Vocabulary
from vilem_jax.editing.editor import FrozenEditor, editor_graph, frozen_config
from vilem_jax.errors import UserError
from vilem_jax.objectives.editing import TokenTables
from vilem_jax.weights import folders
from vilem_jax.weights.formats import huggingface_bert


def needs_edits(config: Config) -> bool:
    return config.task == "vilem" and config.loss.has_proofreading


def check_edits(config: Config) -> EditorConfig:
    """`config.editor` with the digests of what edits captions: editor, edit table.

    Raises:
      UserError: they are missing, others than the digests it has name, or the editor
        is not that of the edit table.
    """
    editor = config.editor
    if not editor.edit_table:
        return dataclasses.replace(editor, sha256=check_editor(config))
    edits = StoredEditTable(editor.edit_table)
    # The editor itself is not needed here, so its path may be empty.
    found = check_editor(config) if editor.path else editor.sha256 or edits.made_by
    if found != edits.made_by:
        raise UserError(
            f"the edits in {edits.path} (config.editor.edit_table) were made by the "
            f"editor with SHA-256 {edits.made_by}, config.editor names another, {found}"
            ": leave config.editor.path and sha256 empty, or make others with `vilem "
            "data edit`"
        )
    digest = edits.sha256()
    if editor.edit_table_sha256 not in ("", digest):
        raise UserError(
            f"{edits.path} (config.editor.edit_table) holds other edits than this "
            f"run's: its SHA-256 is {digest}, config.editor.edit_table_sha256 is "
            f"{editor.edit_table_sha256}"
        )
    return dataclasses.replace(editor, sha256=found, edit_table_sha256=digest)


def open_edits(
    config: Config, corpus: Corpus, tokenizer: Tokenizer
) -> StoredEditTable | None:
    """The run's edit table; None if it has none, or needs none.

    Raises:
      UserError: they were made for other data, another vocabulary or other settings.
    """
    if not (needs_edits(config) and config.editor.edit_table):
        return None
    edits = StoredEditTable(config.editor.edit_table)
    edits.check(describe(corpus, tokenizer, config.data.text_length, config.editor))
    return edits


def check_editor(config: Config) -> str:
    """The SHA-256 of the editor's weights.

    Raises:
      UserError: if no editor is named, or `config.editor.sha256` is another one's.
    """
    editor = config.editor
    if not editor.path:
        raise UserError(
            "config.editor.path is empty: name the folder or hub name of a masked-"
            "language model such as bert-base-uncased, or train one with "
            "`vilem train --config=editor`; with edits made by `vilem data edit` "
            "(config.editor.edit_table), or without ViLEM's losses (the four switches "
            "of config.loss), none is needed"
        )
    found = folders.sha256(folders.read_folder(editor.path))
    if editor.sha256 and editor.sha256 != found:
        raise UserError(
            f"the editor in {editor.path} is not that of this run: its weights have "
            f"SHA-256 {found}, config.editor.sha256 is {editor.sha256}"
        )
    return found


def check_vocabulary(vocabulary: Vocabulary, config: Config, name: str) -> None:
    size = config.model.text.vocab_size
    if vocabulary.size != size:
        raise UserError(
            f"the tokenizer in {name} has {vocabulary.size} tokens, but "
            f"config.model.text.vocab_size is {size}: use the vocabulary that the text "
            "tower was trained with"
        )


def token_tables(tokenizer: Tokenizer) -> TokenTables:
    """The tables of the vocabulary for edits and flips, as device arrays [V]."""
    vocabulary = tokenizer.vocabulary
    # Images with a caption that has these words are not flipped.
    sides = tokenizer.encode(["left", "right"], 3)[:, 1]  # after [CLS]
    is_side = np.isin(np.arange(vocabulary.size), sides) & vocabulary.is_editable
    return TokenTables(
        is_editable=jnp.asarray(vocabulary.is_editable),
        is_piece=jnp.asarray(vocabulary.is_piece),
        is_side=jnp.asarray(is_side),
        pad_id=vocabulary.pad_id,
        mask_id=vocabulary.mask_id,
    )


def open_editor(
    config: Config, tokenizer: Tokenizer
) -> tuple[nnx.GraphDef | None, FrozenEditor]:
    """`load_editor`, or the tables of the vocabulary alone if the run has no editor."""
    if config.loss.has_proofreading and config.editor.path:
        return load_editor(config, tokenizer)
    return None, FrozenEditor({}, token_tables(tokenizer))


def load_editor(
    config: Config, tokenizer: Tokenizer
) -> tuple[nnx.GraphDef, FrozenEditor]:
    """The graph of the frozen masked-language model, and its arrays.

    Its parameters are on the host, the tables of the vocabulary on the device.

    Raises:
      UserError: if its vocabulary is not the tokenizer's, if it has no head, or if
        captions may be longer than its number of positions.
    """
    folder = folders.read_folder(config.editor.path)
    shape = huggingface_bert.read_text_config(folder, config.model.text)
    own = frozen_config(config, shape)
    text = own.model.text
    check_same_vocabulary(folder, tokenizer)
    check_vocabulary(tokenizer.vocabulary, own, config.editor.path)
    length = max(config.data.text_length, config.evaluation.text_length)
    if length > text.max_positions:
        raise UserError(
            f"the editor {config.editor.path} has {text.max_positions} positions, and "
            f"captions may have {length} tokens: lower config.data.text_length and "
            "config.evaluation.text_length, or name another editor"
        )
    params = huggingface_bert.load_masked_language_model(folder, text)
    return editor_graph(own), FrozenEditor(params, token_tables(tokenizer))


def check_same_vocabulary(folder: Path, tokenizer: Tokenizer) -> None:
    """Raises UserError if the folder's vocab.txt has other tokens."""
    vocabulary = folder / folders.VOCABULARY
    if not vocabulary.is_file():
        return
    theirs = Tokenizer(str(folder)).pieces
    if theirs != tokenizer.pieces:
        raise UserError(
            f"{vocabulary} is not the run's vocabulary ({len(theirs)} words against "
            f"{len(tokenizer.pieces)}, or in another order): editor, text tower and "
            "config.data.tokenizer must share one"
        )
