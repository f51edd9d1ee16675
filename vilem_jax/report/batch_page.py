"""`vilem data show`: a page of what the model will see in its first step."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vilem_jax.config.schema import AugmentConfig, Config
from vilem_jax.data.batches import BatchMaker, open_corpus
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.editing.editor import FrozenEditor, editor_graph
from vilem_jax.editing.loading import load_editor, open_edits, token_tables
from vilem_jax.files import write_bytes
from vilem_jax.keys import sample_keys
from vilem_jax.report.collect import edited_words
from vilem_jax.report.html import image_uri
from vilem_jax.runs.trained_model import open_tokenizer
from vilem_jax.templates import render_template
from vilem_jax.training import starting
from vilem_jax.training.losses import Samples
from vilem_jax.training.step import make_preprocess

_NO_RUN = Path(os.devnull)  # in place of a work directory
_SWITCHES = ("local_detect", "local_correct", "global_detect", "global_correct")


@dataclasses.dataclass(frozen=True)
class TrainingPair:
    image: np.ndarray  # uint8 [R, R, 3], cropped and augmented
    # Each word of the edited caption, and the original word if the editor replaced it.
    words: list[tuple[str, str | None]]
    is_corrupt: bool  # `image` is a neighbour's, as the pair's own cannot be read


def write_batch_page(config: Config, path: str | Path, *, num_pairs: int = 24) -> None:
    """Writes a page of the first step's first pairs: augmented images, edited captions.

    `vilem train` with the same config draws the same pairs by the same keys. Without
    `config.editor.path` and `config.editor.edit_table` captions are not edited.

    Raises:
      UserError: as training would, before its first step; `path` cannot be written.
    """
    if not (config.editor.path or config.editor.edit_table):
        without = dataclasses.replace(config.loss, **dict.fromkeys(_SWITCHES, False))
        config = dataclasses.replace(config, loss=without)
    config = starting.complete(config, _NO_RUN)
    page = render_template(
        "report/batch.html.j2",
        title="What the model will see",
        pairs=first_pairs(config, open_tokenizer(config, _NO_RUN), num_pairs),
        has_edits=config.loss.has_proofreading,
        image_uri=image_uri,
    )
    write_bytes(path, page.encode())


def first_pairs(
    config: Config, tokenizer: Tokenizer, num_pairs: int
) -> list[TrainingPair]:
    """The first `num_pairs` of step 0, as `preprocess` makes them."""
    corpus = open_corpus(config.data)
    # The index of a pair does not depend on the size of the batch.
    train = dataclasses.replace(config.train, batch_size=num_pairs)
    config = dataclasses.replace(config, train=train)
    size, edits = config.model.vision.image_size, open_edits(config, corpus, tokenizer)
    batch = BatchMaker(config, corpus, tokenizer, size, edits)(0)
    samples = _preprocess(config, tokenizer, batch)
    images = _to_uint8(np.asarray(samples.pixels), config.augment)
    original = edited = batch["tokens"]  # [B, L]
    if samples.edits is not None:
        edited = np.asarray(samples.edits.tokens)
    return [
        TrainingPair(image, edited_words(tokenizer, *rows), bool(is_corrupt))
        for image, *rows, is_corrupt in zip(
            images, original, edited, batch["is_corrupt"], strict=True
        )
    ]


def _preprocess(config: Config, tokenizer: Tokenizer, batch: dict) -> Samples:
    params, graph = {}, None
    if config.loss.has_proofreading and not config.editor.edit_table:
        editor_config, params = load_editor(config, tokenizer)
        graph = editor_graph(editor_config)
    vocabulary = tokenizer.vocabulary
    preprocess = make_preprocess(
        config, graph, pad_id=vocabulary.pad_id, mask_id=vocabulary.mask_id
    )
    step = jnp.zeros((), jnp.int32)
    keys = sample_keys(jax.random.key(config.seed), step, batch["sample_id"])
    editor = FrozenEditor(params, token_tables(tokenizer))
    return jax.jit(preprocess)(editor, batch, keys)


def _to_uint8(pixels: np.ndarray, config: AugmentConfig) -> np.ndarray:
    """Undoes the normalisation of float [B, R, R, 3]."""
    shares = pixels * np.asarray(config.std) + np.asarray(config.mean)
    return np.clip(np.round(255 * shares), 0, 255).astype(np.uint8)
