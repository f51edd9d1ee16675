"""`vilem data edit`: the captions of the training data, edited before a run.

Variant v of a pair equals the edit of the pair in step v of a run with the same seed:
the same function with the same keys.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from vilem_jax.config.schema import Config
from vilem_jax.data.batches import open_corpus
from vilem_jax.data.edit_table import EditTable, StoredEditTable, describe
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.distributed.mesh import (
    make_mesh,
    over_batch,
    put_batch,
    put_replicated,
    replicated,
)
from vilem_jax.editing.editor import edit_captions
from vilem_jax.editing.loading import check_editor, load_editor
from vilem_jax.files import check_writable
from vilem_jax.keys import Purpose, fold_in, sample_keys
from vilem_jax.runs.trained_model import open_tokenizer
from vilem_jax.training import starting

ROWS = 256  # captions a device edits at a time
_NO_RUN = Path(os.devnull)  # a work directory that holds no run


def edit_corpus(config: Config, path: str, *, num_variants: int) -> StoredEditTable:
    """Edits every pair of `config.data.train`, for `config.editor.edit_table`.

    The edits depend on the seed, the pair's index and the variant, and on nothing else;
    all are in memory until they are written.

    Args:
      path: the file, written whole or not at all.
      num_variants: edits of each pair.

    Raises:
      UserError: no editor, settings or data that training would refuse, or `path`
        cannot be written.
    """
    live = dataclasses.replace(config.editor, edit_table="", edit_table_sha256="")
    config = dataclasses.replace(config, editor=live)
    made_by = check_editor(config)
    config = starting.complete(config, _NO_RUN)
    tokenizer = open_tokenizer(config, _NO_RUN)
    corpus = open_corpus(config.data)
    length = config.data.text_length
    about = describe(corpus, tokenizer, length, config.editor)
    about |= {"editor": made_by, "seed": config.seed}
    check_writable(path)  # before hours of work
    mesh = make_mesh()
    edit = _make_edit(config, tokenizer, mesh)
    num_positions = min(config.editor.max_edits, length)
    shape = (corpus.num_pairs, num_variants, num_positions)
    table = EditTable.empty(*shape, text_length=length, tokenizer=tokenizer)
    captions, size = corpus.captions(), ROWS * mesh.size
    bar = tqdm(total=corpus.num_pairs, unit=" pairs", disable=None, leave=False)
    with bar:
        for start in range(0, corpus.num_pairs, size):
            texts = list(itertools.islice(captions, size))
            tokens = tokenizer.encode(texts, length)
            rows = slice(start, start + len(texts))
            for variant in range(num_variants):
                edits = edit(tokens, start, variant)
                table.positions[rows, variant], table.tokens[rows, variant] = edits
            bar.update(len(texts))
    table.write(path, about)
    return StoredEditTable(path)


def _make_edit(config: Config, tokenizer: Tokenizer, mesh) -> Callable:
    """`edit(tokens, start, variant)` -> positions, tokens of the pairs from `start` on.

    Both are [n, K]; [PAD] stands for no edit.
    """
    graph, editor = load_editor(config, tokenizer)
    pad_id = tokenizer.vocabulary.pad_id
    editor = put_replicated(editor, mesh)
    key = jax.random.key(config.seed)
    whole, rows = replicated(mesh), over_batch(mesh)

    def run(editor, variant, batch):
        tokens = batch["tokens"]
        keys = sample_keys(key, variant, batch["sample_id"])
        keys = fold_in(keys, Purpose.EDIT)
        edits = edit_captions(graph, editor, tokens, keys, config.editor)
        new = jnp.take_along_axis(edits.tokens, edits.positions, axis=1)
        return edits.positions, jnp.where(edits.is_edit, new, pad_id)

    compiled = jax.jit(run, in_shardings=(whole, None, rows), out_shardings=rows)

    def edit(tokens: np.ndarray, start: int, variant: int) -> list[np.ndarray]:
        count = len(tokens)
        # Only full chunks, for one program: the last one is padded with empty captions.
        filling = ((0, -count % (ROWS * mesh.size)), (0, 0))
        tokens = np.pad(tokens, filling, constant_values=pad_id)
        sample_id = np.arange(start, start + len(tokens), dtype=np.int32)
        batch = put_batch({"tokens": tokens, "sample_id": sample_id}, mesh)
        edits = compiled(editor, jnp.int32(variant), batch)
        return [np.asarray(part)[:count] for part in edits]

    return edit
