"""The two towers as functions with their weights inside, for any number of rows.

They are what search runs: cross-attention and heads are left out.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vilem_jax.config.schema import Config
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.errors import UserError
from vilem_jax.export.card import CARD
from vilem_jax.models.text import make_attention_mask
from vilem_jax.models.vilem import Params, model_graph
from vilem_jax.models.vision import normalize
from vilem_jax.typing import JsonObject
from vilem_jax.weights import folders

DESCRIPTION = "towers.json"
NUM_CHECKED = 3  # rows
MAX_DIFFERENCE = 1e-4  # of a unit embedding


class Tower(NamedTuple):
    """One tower, ready to be traced."""

    function: Callable[[jax.Array], jax.Array]  # rows -> float32 [B, E], unit rows
    shape: tuple[int | str, ...]  # of the rows; letters are free
    constraints: tuple[str, ...]  # on the free dimensions
    dtype: str  # of the rows
    meaning: str  # of the rows, for people
    sample: Callable[[int], np.ndarray]  # that number of rows of noise


def make_towers(
    config: Config, params: Params, tokenizer: Tokenizer
) -> dict[str, Tower]:
    """{"image": ..., "text": ...} in float32.

    Image: uint8 [B, R, R, 3] pixels, normalised inside. Text: int32 [B, L] tokens, L
    up to the text tower's positions.
    """
    # Attention by plain XLA operations: no kernel of one platform is in the program.
    compute = dataclasses.replace(
        config.compute, dtype="float32", attention="xla", recompute=False
    )
    graph = model_graph(config.model, compute)
    params = jax.tree.map(jnp.asarray, params)
    vocabulary, size = tokenizer.vocabulary, config.model.vision.image_size
    limit, length = config.model.text.max_positions, config.evaluation.text_length

    def encode_image(pixels: jax.Array) -> jax.Array:
        return nnx.merge(graph, params).encode_image(normalize(pixels, config.augment))

    def encode_text(tokens: jax.Array) -> jax.Array:
        attention_mask = make_attention_mask(tokens, vocabulary.pad_id)
        return nnx.merge(graph, params).encode_text(tokens, attention_mask)

    def sample_pixels(rows: int) -> np.ndarray:
        rng = np.random.default_rng(rows)
        return rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8)

    def sample_tokens(rows: int) -> np.ndarray:
        """Of several lengths, padded."""
        rng = np.random.default_rng(rows)
        tokens = rng.integers(0, vocabulary.size, (rows, length))
        lengths = rng.integers(1, length + 1, (rows, 1))
        tokens = np.where(np.arange(length) < lengths, tokens, vocabulary.pad_id)
        tokens[:, 0] = vocabulary.cls_id
        return tokens.astype(np.int32)

    return {
        "image": Tower(
            encode_image,
            ("B", size, size, 3),
            (),
            "uint8",
            f"images squashed to {size} x {size} pixels, RGB, levels 0 to 255",
            sample_pixels,
        ),
        "text": Tower(
            encode_text,
            ("B", "L"),
            ("L >= 2", f"L <= {limit}"),
            "int32",
            f"tokens of cleaned captions, padded with {vocabulary.pad_id}; evaluation "
            f"cuts at {length}",
            sample_tokens,
        ),
    }


def free_rows(tower: Tower) -> jax.ShapeDtypeStruct:
    """The rows a tower takes, with symbols for the free dimensions."""
    sizes = ", ".join(map(str, tower.shape))
    shape = jax.export.symbolic_shape(sizes, constraints=tower.constraints)
    return jax.ShapeDtypeStruct(shape, jnp.dtype(tower.dtype))


def largest_difference(
    tower: Tower, run: Callable[[np.ndarray], Any], name: str
) -> float:
    """Between what was exported and the tower itself, on rows of noise.

    Args:
      run: rows -> embeddings, by the exported file.

    Raises:
      UserError: it is above 1e-4.
    """
    rows = tower.sample(NUM_CHECKED)
    expected = np.asarray(jax.jit(tower.function)(rows))
    difference = float(np.abs(np.asarray(run(rows)) - expected).max())
    if not difference <= MAX_DIFFERENCE:  # NaN is refused too
        raise UserError(
            f"{name} would differ from the model by {difference:.1e}, more than "
            f"{MAX_DIFFERENCE:.0e}: nothing is written"
        )
    return difference


def describe(tower: Tower, width: int) -> JsonObject:
    """What a program must know to call a tower; JSON-ready.

    `width` is that of the embeddings.
    """
    return {
        "input": {
            "dtype": tower.dtype,
            "shape": list(tower.shape),
            "constraints": list(tower.constraints),
            "meaning": tower.meaning,
        },
        "output": {
            "dtype": "float32",
            "shape": ["B", width],
            "meaning": "unit rows: their products are cosines",
        },
    }


def describe_tokenizer(tokenizer: Tokenizer, text_length: int) -> JsonObject:
    """What a program must know to make the text tower's tokens; JSON-ready."""
    special = ("pad_id", "cls_id", "sep_id", "unk_id")
    return {
        "cleaning": tokenizer.cleaning,
        "keeps_sep": tokenizer.keeps_sep,
        "text_length": text_length,
        **{name: getattr(tokenizer.vocabulary, name) for name in special},
    }


def write_towers(
    folder: str | Path,
    files: Mapping[str, bytes],
    description: Mapping[str, object],
    tokenizer: Tokenizer,
    *,
    card: str,
) -> None:
    """Writes the files, their description and the tokenizer as one change.

    Raises:
      UserError: `folder` holds something else, or cannot be written.
    """
    is_earlier = folders.holds(DESCRIPTION, *files)
    with folders.whole_folder(folder, names_of(files), is_earlier=is_earlier) as new:
        for name, content in files.items():
            (new / name).write_bytes(content)
        tokenizer.save(new)
        (new / CARD).write_text(card, encoding="utf-8")
        text = json.dumps(description, indent=2)
        (new / DESCRIPTION).write_text(f"{text}\n", encoding="utf-8")


def names_of(files: Iterable[str]) -> set[str]:
    """All that `write_towers` writes, and so may replace."""
    return {*files, DESCRIPTION, CARD, *folders.TOKENIZER_FILES}
