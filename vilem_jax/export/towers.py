"""The two towers as functions with their weights inside, any number of rows.

They are what search runs: neither cross-attention nor heads are in them.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vilem_jax.config.schema import Config
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.errors import UserError
from vilem_jax.models.text import make_attention_mask
from vilem_jax.models.vilem import Params, model_graph
from vilem_jax.models.vision import normalize
from vilem_jax.weights import folders

DESCRIPTION, CARD = "towers.json", "README.md"
NUM_CHECKED = 3  # rows
MAX_DIFFERENCE = 1e-4  # of a unit embedding


class Tower(NamedTuple):
    """One tower, ready to be traced."""

    function: Callable[[jax.Array], jax.Array]  # rows -> float32 [B, E], unit rows
    dimensions: tuple[str, ...]  # of the rows; letters are free
    constraints: tuple[str, ...]  # on the free ones
    dtype: str  # of the rows
    meaning: str  # of the rows, for people
    sample: Callable[[int], np.ndarray]  # so many rows of noise


def make_towers(
    config: Config, params: Params, tokenizer: Tokenizer
) -> dict[str, Tower]:
    """{"image": ..., "text": ...} in float32.

    Image: uint8 [B, R, R, 3] pixels, normalised inside. Text: int32 [B, L] tokens, L
    up to the text tower's positions.
    """
    compute = dataclasses.replace(
        config.compute, dtype="float32", attention="xla", recompute=False
    )
    graph = model_graph(config.model, compute)
    params = jax.tree.map(jnp.asarray, params)
    pad_id, size = tokenizer.vocabulary.pad_id, config.model.vision.image_size
    limit, length = config.model.text.max_positions, config.evaluation.text_length

    def image(pixels):
        return nnx.merge(graph, params).encode_image(normalize(pixels, config.augment))

    def text(tokens):
        attention_mask = make_attention_mask(tokens, pad_id)
        return nnx.merge(graph, params).encode_text(tokens, attention_mask)

    def pixels(rows):
        rng = np.random.default_rng(rows)
        return rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8)

    def tokens(rows):
        """Of several lengths, padded."""
        rng = np.random.default_rng(rows)
        drawn = rng.integers(0, tokenizer.vocabulary.size, (rows, length))
        lengths = rng.integers(1, length + 1, (rows, 1))
        drawn = np.where(np.arange(length) < lengths, drawn, pad_id)
        drawn[:, 0] = tokenizer.vocabulary.cls_id
        return drawn.astype(np.int32)

    side = str(size)
    return {
        "image": Tower(
            image,
            ("B", side, side, "3"),
            (),
            "uint8",
            f"images squashed to {size} x {size} pixels, RGB, levels 0 to 255",
            pixels,
        ),
        "text": Tower(
            text,
            ("B", "L"),
            ("L >= 2", f"L <= {limit}"),
            "int32",
            f"tokens of cleaned captions, padded with {pad_id}; evaluation cuts at "
            f"{length}",
            tokens,
        ),
    }


def free_rows(tower: Tower) -> jax.ShapeDtypeStruct:
    """The rows a tower takes, with the dimensions that are left free."""
    shape = jax.export.symbolic_shape(
        ", ".join(tower.dimensions), constraints=tower.constraints
    )
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
    if not difference <= MAX_DIFFERENCE:  # nor where it is not a number
        raise UserError(
            f"{name} would differ from the model by {difference:.1e}, more than "
            f"{MAX_DIFFERENCE:.0e}: nothing is written"
        )
    return difference


def write_towers(
    folder: str | Path,
    files: Mapping[str, bytes],
    description: Mapping[str, Any],
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


def names_of(files) -> set[str]:
    """All that `write_towers` writes, and so may replace."""
    return {*files, DESCRIPTION, CARD, *folders.TOKENIZER_FILES}


def describe(
    towers: Mapping[str, Tower],
    file_of: Mapping[str, str],
    differences: Mapping[str, float],
    config: Config,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """What a program must know to call the files; JSON-ready."""
    width = config.model.embedding_width
    described: dict[str, Any] = {
        name: {
            "file": file_of[name],
            "input": {
                "dtype": tower.dtype,
                "shape": [int(d) if d.isdecimal() else d for d in tower.dimensions],
                "constraints": list(tower.constraints),
                "meaning": tower.meaning,
            },
            "output": {
                "dtype": "float32",
                "shape": ["B", width],
                "meaning": "unit rows: their products are cosines",
            },
            "largest_difference": differences[name],
        }
        for name, tower in towers.items()
    }
    vocabulary = tokenizer.vocabulary
    return described | {
        "tokenizer": {
            "cleaning": tokenizer.cleaning,
            "keeps_sep": tokenizer.keeps_sep,
            "text_length": config.evaluation.text_length,
            "pad_id": vocabulary.pad_id,
            "cls_id": vocabulary.cls_id,
            "sep_id": vocabulary.sep_id,
            "unk_id": vocabulary.unk_id,
        }
    }
