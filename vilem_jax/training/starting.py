"""From a config to what a run starts from: final settings, tokenizer and weights."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vilem_jax.config.freeze import to_dict, validate
from vilem_jax.config.schema import Config, EditorConfig
from vilem_jax.data.corpus import Corpus
from vilem_jax.data.edit_table import PreparedEdits, describe
from vilem_jax.data.tokenizer import Tokenizer, Vocabulary
from vilem_jax.errors import UserError
from vilem_jax.objectives.editing import WordTables
from vilem_jax.training.origin import (
    TOKENIZER_FOLDER,
    complete_model,
    origin_tokenizer,
)
from vilem_jax.training.workdir import CONFIG_FILE, read_config
from vilem_jax.weights import folders, huggingface_bert, starts
from vilem_jax.weights.tables import merge_into


def complete(config: Config, workdir: Path) -> Config:
    """`config` with what other files decide: shapes, and the digests of what edits.

    A run that is resumed keeps the shapes that it stored, so that the folders it
    once started from may be gone; what a config says beside them stays its own.

    Raises:
      UserError: a folder or hub name that cannot be read, an editor or prepared edits
        that are missing or others than `config.editor` names by their digests.
    """
    stored = read_config(workdir).model if (workdir / CONFIG_FILE).exists() else None
    model, editor = config.model, config.editor
    if model.start_from:
        model = complete_model(model, stored)
    text, vision, allow_pickle = model.text, model.vision, model.allow_pickle
    if text.start_from and stored and stored.text.start_from == text.start_from:
        text = dataclasses.replace(stored.text, dropout_rate=text.dropout_rate)
    elif text.start_from:
        text = starts.read_text_config(text.start_from, text, allow_pickle=allow_pickle)
    if vision.start_from and stored and stored.vision.start_from == vision.start_from:
        vision = dataclasses.replace(stored.vision, image_size=vision.image_size)
    elif vision.start_from:
        vision = starts.read_vision_config(
            vision.start_from, vision, allow_pickle=allow_pickle
        )
    if needs_edits(config):
        editor = check_edits(config)
    model = dataclasses.replace(model, text=text, vision=vision)
    config = dataclasses.replace(config, model=model, editor=editor)
    validate(config)
    return config


def needs_edits(config: Config) -> bool:
    return config.task == "vilem" and config.loss.has_proofreading


def check_edits(config: Config) -> EditorConfig:
    """`config.editor` with the digests of what edits captions: editor, prepared edits.

    Raises:
      UserError: they are missing, others than the digests it has name, or the editor
        is not that of the prepared edits.
    """
    editor = config.editor
    if not editor.prepared:
        return dataclasses.replace(editor, sha256=check_editor(config))
    edits = PreparedEdits(editor.prepared)
    found = check_editor(config) if editor.path else editor.sha256 or edits.made_by
    if found != edits.made_by:
        raise UserError(
            f"the edits in {edits.path} (config.editor.prepared) were made by the "
            f"editor with SHA-256 {edits.made_by}, config.editor names another, {found}"
            ": leave config.editor.path and sha256 empty, or make others with `vilem "
            "data edit`"
        )
    digest = edits.sha256()
    if editor.prepared_sha256 not in ("", digest):
        raise UserError(
            f"{edits.path} (config.editor.prepared) holds other edits than this run's: "
            f"its SHA-256 is {digest}, config.editor.prepared_sha256 is "
            f"{editor.prepared_sha256}"
        )
    return dataclasses.replace(editor, sha256=found, prepared_sha256=digest)


def open_edits(
    config: Config, corpus: Corpus, tokenizer: Tokenizer
) -> PreparedEdits | None:
    """The run's prepared edits; None where it has none, or needs none.

    Raises:
      UserError: they were made for other data, another vocabulary or other settings.
    """
    if not (needs_edits(config) and config.editor.prepared):
        return None
    edits = PreparedEdits(config.editor.prepared)
    length = config.data.text_length
    edits.check(describe(corpus, tokenizer, length, config.editor))
    return edits


def check_editor(config: Config) -> str:
    """The SHA-256 of the editor's weights, which must be the run's own.

    Raises:
      UserError: no editor is named, or `config.editor.sha256` is of another.
    """
    editor = config.editor
    if not editor.path:
        raise UserError(
            "config.editor.path is empty: name the folder or hub name of a masked-"
            "language model such as bert-base-uncased, or train one with "
            "`vilem train --config=editor`; with edits prepared by `vilem data edit` "
            "(config.editor.prepared), or without ViLEM's losses (the four switches of "
            "config.loss), none is needed"
        )
    found = folders.sha256(folders.read_folder(editor.path))
    if editor.sha256 and editor.sha256 != found:
        raise UserError(
            f"the editor in {editor.path} is another than this run's: its weights have "
            f"SHA-256 {found}, config.editor.sha256 is {editor.sha256}"
        )
    return found


def open_tokenizer(config: Config, workdir: Path) -> Tokenizer:
    """The run's tokenizer: the copy in the work directory, else the config's, else
    that of the model it starts from.

    Raises:
      UserError: none is named, or its vocabulary is not the text tower's.
    """
    origin = None
    if has_tokenizer(workdir):
        name = str(workdir / TOKENIZER_FOLDER)
    elif config.model.start_from:
        origin = origin_tokenizer(config.model.start_from)
        name = config.data.tokenizer or str(origin)
    else:
        name = config.tokenizer_name
    tokenizer = Tokenizer(
        name, cleaning=config.data.cleaning, keeps_sep=config.data.keeps_sep
    )
    check_vocabulary(tokenizer.vocabulary, config, name)
    if origin:
        check_same_words(origin, tokenizer)
    return tokenizer


def must_agree(config: Config, corpus: Corpus, tokenizer: Tokenizer) -> dict[str, Any]:
    """What several processes must hold alike, by what a person calls it."""
    return {
        "settings": to_dict(config),
        "training data": (
            corpus.epoch_length,
            [(source.name, len(source)) for source in corpus.sources],
        ),
        "words in the vocabulary": tokenizer.pieces,
    }


def has_tokenizer(workdir: Path) -> bool:
    """Whether the work directory holds the whole of its copy: vocab.txt comes last."""
    return (workdir / TOKENIZER_FOLDER / folders.VOCABULARY).is_file()


def check_vocabulary(vocabulary: Vocabulary, config: Config, name: str) -> None:
    size = config.model.text.vocab_size
    if vocabulary.size != size:
        raise UserError(
            f"the tokenizer in {name} has {vocabulary.size} words, but "
            f"config.model.text.vocab_size is {size}: use the vocabulary the text "
            "tower was made with"
        )


def word_tables(tokenizer: Tokenizer) -> WordTables:
    """What edits and flips need of the vocabulary, as device arrays."""
    vocabulary = tokenizer.vocabulary
    is_side = np.zeros(vocabulary.size, bool)
    for token in tokenizer.encode(["left", "right"], 3)[:, 1]:
        is_side[token] = vocabulary.is_word[token]
    return WordTables(
        jnp.asarray(vocabulary.is_word),
        jnp.asarray(vocabulary.is_piece),
        jnp.asarray(is_side),
    )


def load_editor(config: Config, tokenizer: Tokenizer) -> tuple[Config, Any]:
    """The frozen masked-language model's own config, and its parameters on the host.

    Raises:
      UserError: its vocabulary is not the tokenizer's, it has no head, or captions
        may be longer than it has positions.
    """
    folder = folders.read_folder(config.editor.path)
    text = huggingface_bert.read_text_config(folder, config.model.text)
    # Frozen: it never trains, so neither dropout nor recomputation.
    text = dataclasses.replace(text, dropout_rate=0.0)
    compute = dataclasses.replace(config.compute, recompute=False)
    own = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, text=text),
        compute=compute,
    )
    check_same_words(folder, tokenizer)
    check_vocabulary(tokenizer.vocabulary, own, config.editor.path)
    length = max(config.data.text_length, config.evaluation.text_length)
    if length > text.max_positions:
        raise UserError(
            f"the editor {config.editor.path} has {text.max_positions} positions, and "
            f"captions may have {length} tokens: lower config.data.text_length and "
            "config.evaluation.text_length, or name another editor"
        )
    return own, huggingface_bert.load_masked_language_model(folder, text)


def check_same_words(folder: Path, tokenizer: Tokenizer) -> None:
    """A UserError where the folder's own vocab.txt lists other words."""
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


def pretrained(config: Config, params: dict) -> dict:
    """Random `params` of a `ViLEM`, with the towers' starting weights put in.

    The heads' transforms start from the masked-language head where the text checkpoint
    has one.
    """
    text, vision = config.model.text, config.model.vision
    allow_pickle = config.model.allow_pickle
    if text.start_from:
        origin = text.start_from
        subtree, head = starts.load_text(origin, text, allow_pickle=allow_pickle)
        params = merge_into(params, subtree, at=("text",), origin=origin)
        if head is not None:
            params = _start_heads(params, head, origin)
    if vision.start_from:
        origin = vision.start_from
        subtree = starts.load_vision(origin, vision, allow_pickle=allow_pickle)
        params = merge_into(params, subtree, at=("vision",), origin=origin)
    return params


def _start_heads(params: dict, head: dict, origin: str) -> dict:
    for name in ("local_head", "global_head"):
        if name in params:
            started = {
                "detect_transform": head["transform"],
                "correct_transform": head["transform"],
                "correct_bias": head["bias"],
            }
            params = merge_into(params, started, at=(name,), origin=origin)
    return params


def pretrained_editor(config: Config, params: dict) -> dict:
    """Random `params` of a `MaskedLanguageModel`, with the starting BERT put in.

    A BertModel brings its layers; its head then starts at random.
    """
    text = config.model.text
    if not text.start_from:
        return params
    tower, head = starts.load_text(
        text.start_from, text, allow_pickle=config.model.allow_pickle
    )
    subtree = {"text": tower} | (head or {})
    return merge_into(params, subtree, origin=text.start_from)
