"""`vilem data show`: a page of what the model will see in its first step."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vilem_jax.config.schema import Config
from vilem_jax.data.batches import BatchMaker, open_corpus
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.editing.loading import open_editor, open_edits
from vilem_jax.files import write_bytes
from vilem_jax.keys import sample_keys
from vilem_jax.report.collect import edited_words
from vilem_jax.report.html import image_uri
from vilem_jax.runs.trained_model import open_tokenizer
from vilem_jax.templates import render_template
from vilem_jax.training import starting
from vilem_jax.training.step import make_preprocess

_NO_RUN = Path(os.devnull)  # in place of a work directory
_SWITCHES = ("local_detect", "local_correct", "global_detect", "global_correct")


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
    # Images are shown as they enter the tower, of which only the image size is needed.
    vision = dataclasses.replace(config.model.vision, start_from="")
    model = dataclasses.replace(config.model, vision=vision)
    config = starting.complete(dataclasses.replace(config, model=model), _NO_RUN)
    page = render_template(
        "report/batch.html.j2",
        title="What the model will see",
        pairs=_first_pairs(config, open_tokenizer(config, _NO_RUN), num_pairs),
        has_edits=config.loss.has_proofreading,
        image_uri=image_uri,
    )
    write_bytes(path, page.encode())


def _first_pairs(config: Config, tokenizer: Tokenizer, num_pairs: int) -> list[dict]:
    """The first `num_pairs` of step 0, as `preprocess` makes them.

    Returns:
      {"image": uint8 [R, R, 3], cropped and augmented; "words": of `edited_words`;
      "is_corrupt": whether `image` is a neighbour's, as the pair's own cannot be read}.
    """
    corpus = open_corpus(config.data)
    # The index of a pair does not depend on the size of the batch.
    train = dataclasses.replace(config.train, batch_size=num_pairs)
    config = dataclasses.replace(config, train=train)
    size, edits = config.model.vision.image_size, open_edits(config, corpus, tokenizer)
    batch = BatchMaker(config, corpus, tokenizer, size, edits)(0)
    graph, editor = open_editor(config, tokenizer)
    step, sample_id = jnp.zeros((), jnp.int32), jnp.asarray(batch["sample_id"])
    keys = sample_keys(jax.random.key(config.seed), step, sample_id)
    samples = jax.jit(make_preprocess(config, graph))(editor, batch, keys)
    # Undoes the normalisation of float [B, R, R, 3].
    shares = np.asarray(samples.pixels) * config.augment.std + config.augment.mean
    images = np.clip(np.round(255 * shares), 0, 255).astype(np.uint8)
    original = batch["tokens"]  # [B, L]
    edited = original if samples.edits is None else np.asarray(samples.edits.tokens)
    return [
        {"image": image, "words": edited_words(tokenizer, *rows), "is_corrupt": corrupt}
        for image, *rows, corrupt in zip(
            images, original, edited, batch["is_corrupt"], strict=True
        )
    ]
