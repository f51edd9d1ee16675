"""`vilem data show`: a page of what the model will see in its first step."""

import dataclasses
import os
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

import jax
import numpy as np

from vilem_jax.config.schema import AugmentConfig, Config
from vilem_jax.data.batches import open_corpus, train_batches
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.editing.editor import FrozenEditor, editor_graph
from vilem_jax.editing.loading import load_editor, open_edits, token_tables
from vilem_jax.files import write_bytes
from vilem_jax.keys import sample_keys
from vilem_jax.report.html import image_uri
from vilem_jax.runs.trained_model import open_tokenizer
from vilem_jax.training import starting
from vilem_jax.training.losses import Samples
from vilem_jax.training.step import make_preprocess

_NO_RUN = Path(os.devnull)  # in place of a work directory
_SWITCHES = ("local_detect", "local_correct", "global_detect", "global_correct")


@dataclasses.dataclass(frozen=True)
class SeenWord:
    """A word of an edited caption, and what stood there if the editor put it in."""

    word: str
    original: str | None


@dataclasses.dataclass(frozen=True)
class SeenPair:
    image: np.ndarray  # uint8 [R, R, 3], cropped and augmented
    words: tuple[SeenWord, ...]
    is_corrupt: bool  # a neighbour's image, in place of one that cannot be read


def write_batch_page(config: Config, path: str | Path, *, num_pairs: int = 24) -> None:
    """Draws the first pairs of the first step: augmented images, edited captions.

    They are those of `vilem train` with the same config, drawn by the same keys.
    Without `config.editor.path` and `prepared` captions stay as they are.

    Raises:
      UserError: as training would, before its first step; `path` cannot be written.
    """
    if not (config.editor.path or config.editor.edit_table):
        without = dataclasses.replace(config.loss, **dict.fromkeys(_SWITCHES, False))
        config = dataclasses.replace(config, loss=without)
    config = starting.complete(config, _NO_RUN)
    tokenizer = open_tokenizer(config, _NO_RUN)
    pairs = see_pairs(config, tokenizer, num_pairs)
    write_bytes(path, render(pairs, has_edits=config.loss.has_proofreading).encode())


def see_pairs(config: Config, tokenizer: Tokenizer, num_pairs: int) -> list[SeenPair]:
    """The first `num_pairs` of step 0, as `preprocess` makes them."""
    corpus = open_corpus(config.data)
    reader = train_batches(
        corpus,
        tokenizer,
        dataclasses.replace(config.data, num_workers=0),
        seed=config.seed,
        batch_size=num_pairs,  # the position of a pair does not depend on it
        image_size=config.model.vision.image_size,
        edits=open_edits(config, corpus, tokenizer),
        start_step=0,
    )
    with reader:
        batch = next(reader)
    samples = _prepare(config, tokenizer, batch)
    images = _as_images(np.asarray(samples.pixels), config.augment)
    before = after = batch["tokens"]
    if samples.edits is not None:
        after = np.asarray(samples.edits.tokens)
    return [
        SeenPair(image, _seen_words(tokenizer, *rows), bool(is_corrupt))
        for image, *rows, is_corrupt in zip(
            images, before, after, batch["is_corrupt"], strict=True
        )
    ]


def _prepare(config: Config, tokenizer: Tokenizer, batch: dict) -> Samples:
    vocabulary = tokenizer.vocabulary
    params, graph = {}, None
    if config.loss.has_proofreading and not config.editor.edit_table:
        own, params = load_editor(config, tokenizer)
        graph = editor_graph(own)
    preprocess = make_preprocess(
        config, graph, pad_id=vocabulary.pad_id, mask_id=vocabulary.mask_id
    )
    keys = sample_keys(jax.random.key(config.seed), 0, batch["sample_id"])
    editor = FrozenEditor(params, token_tables(tokenizer))
    return jax.jit(preprocess)(editor, batch, keys)


def _as_images(pixels: np.ndarray, config: AugmentConfig) -> np.ndarray:
    """Normalised pixels as uint8 again."""
    shares = pixels * np.asarray(config.std) + np.asarray(config.mean)
    return np.clip(np.round(255 * shares), 0, 255).astype(np.uint8)


def _seen_words(tokenizer, before: Sequence[int], after: Sequence[int]):
    words = []
    for word, start, stop in tokenizer.words(after):
        is_edit = (before[start:stop] != after[start:stop]).any()
        pieces = (tokenizer.pieces[token] for token in before[start:stop])
        original = "".join(piece.removeprefix("##") for piece in pieces)
        words.append(SeenWord(word, original if is_edit else None))
    return tuple(words)


def render(pairs: Sequence[SeenPair], *, has_edits: bool) -> str:
    """The page as text."""
    css = resources.files("vilem_jax.report").joinpath("page.css").read_text("utf-8")
    lead = (
        "Coloured words are the editor's; below them the caption as it was."
        if has_edits
        else "No editor is named in config.editor.path, so captions are as they were."
    )
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>What the model will see</title><style>{css}</style></head>\n"
        "<body><main><section><h2>What the model will see</h2>"
        f"<p>The first {len(pairs)} pairs of the first step, images cropped and "
        f"augmented. {lead}</p>"
        f'<div class="readings">{"".join(map(_pair, pairs))}</div>'
        "</section></main></body></html>\n"
    )


def _pair(pair: SeenPair) -> str:
    said = " ".join(
        escape(one.word)
        if one.original is None
        else f'<mark class="h0" title="was: {escape(one.original)}">'
        f"{escape(one.word)}</mark>"
        for one in pair.words
    )
    was = " ".join(
        escape(one.word) if one.original is None else f"<b>{escape(one.original)}</b>"
        for one in pair.words
    )
    note = "<p>this image cannot be read: a neighbour's instead</p>"
    return (
        f'<div class="card reading"><img alt="" src="{image_uri(pair.image)}">'
        f'<div><p class="said">{said}</p><p class="clean">Was: {was}</p>'
        f"{note if pair.is_corrupt else ''}</div></div>"
    )
