"""Knowledge-based text edition, Sec. 3.2.1: where to edit, with what, and the labels.

Pure functions of per-sample keys and of the logits of the masked-language model
(`models/editor.py`), which `editing/editor.py` puts together.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vilem_jax.config.schema import EditorConfig
from vilem_jax.masking import NEG_INF

IGNORE = -1  # the label of a position without a loss; the paper's "none"


class Edits(NamedTuple):
    """Edited captions; the same edits as a mask and as K positions a caption."""

    tokens: jax.Array  # int32 [B, L], t^edit
    edit_here: jax.Array  # bool [B, L], e_i
    positions: jax.Array  # int32 [B, K], different positions of which some are edited
    is_edit: jax.Array  # bool [B, K], which of these positions are edited


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenTables:
    """What edits and flips need of the vocabulary."""

    is_editable: jax.Array  # bool [V]: not special, [UNK], unused or punctuation
    is_piece: jax.Array  # bool [V]: continues a word ("##ing")
    is_side: jax.Array  # bool [V]: "left" or "right", which a flip contradicts
    # Constants of a compiled program.
    pad_id: int = field(metadata={"static": True})
    mask_id: int = field(metadata={"static": True})


class ChosenPositions(NamedTuple):
    """Positions to edit: K a caption, of which the first few are."""

    positions: jax.Array  # int32 [B, K], all different
    is_edit: jax.Array  # bool [B, K]


def choose_positions(
    keys: jax.Array, is_editable: jax.Array, config: EditorConfig
) -> ChosenPositions:
    """Bernoulli(edit_rate) for each token; at least min_edits and at most K of them.

    One uniform number per position decides all three: positions below the rate are
    chosen; the smallest numbers come first, so that cutting at K, or raising to
    min_edits, keeps a random subset.

    Args:
      keys: typed keys [B].
      is_editable: bool [B, L], the positions that may be edited.
    """
    length = is_editable.shape[1]
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys)
    uniform = jnp.where(is_editable, uniform, 2.0)  # sorted last, above any rate
    num_editable = is_editable.sum(axis=1)
    num_edits = jnp.sum(uniform < config.edit_rate, axis=1)
    num_edits = jnp.maximum(num_edits, jnp.minimum(config.min_edits, num_editable))
    max_edits = min(config.max_edits, length)  # K
    positions = jnp.argsort(uniform, axis=1)[:, :max_edits].astype(jnp.int32)
    is_edit = jnp.arange(max_edits)[None, :] < num_edits[:, None]
    return ChosenPositions(positions, is_edit)


def candidate_logits(
    logits: jax.Array, original: jax.Array, tables: TokenTables, config: EditorConfig
) -> jax.Array:
    """Logits with everything that may not be sampled at NEG_INF.

    Args:
      logits: float32 [B, K, V], the editor's.
      original: int32 [B, K], the tokens to replace, which are never sampled.

    Returns:
      [B, K, V]; editable tokens alone, and pieces for pieces if `keep_pieces`.
    """
    vocabulary = jnp.arange(logits.shape[-1])
    allowed = tables.is_editable[None, None, :]  # [1, 1, V]
    allowed = allowed & (vocabulary[None, None, :] != original[..., None])
    if config.keep_pieces:
        was_piece = tables.is_piece[original]
        allowed = allowed & (tables.is_piece[None, None, :] == was_piece[..., None])
    if config.sampling == "vocabulary":  # Table 7 F: the editor has no say
        logits = jnp.zeros_like(logits)
    return jnp.where(allowed, logits, NEG_INF)


def sample_tokens(
    keys: jax.Array, logits: jax.Array, config: EditorConfig
) -> tuple[jax.Array, jax.Array]:
    """A wrong token for each position, from the top candidates.

    Args:
      keys: typed keys [B].
      logits: [B, K, V] from `candidate_logits`.

    Returns:
      tokens int32 [B, K], and has_candidate bool [B, K]: False if nothing is allowed.
    """
    if config.sampling == "vocabulary":  # all logits are equal: no sorting
        return _sample(keys, logits)
    num = min(config.num_candidates, logits.shape[-1])
    top, tokens = jax.lax.top_k(logits, num)  # [B, K, num]
    if config.sampling != "likely":  # uniform among the candidates
        top = jnp.where(top > NEG_INF / 2, 0.0, NEG_INF)
    index, has_candidate = _sample(keys, top)
    chosen = jnp.take_along_axis(tokens, index[..., None], axis=-1)[..., 0]
    return chosen.astype(jnp.int32), has_candidate


def _sample(keys: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An index of the last axis by softmax (Gumbel-max), and whether any is allowed."""
    # One key per caption: other captions in the batch do not change the sample.
    gumbel = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    is_allowed = logits > NEG_INF / 2
    index = jnp.argmax(jnp.where(is_allowed, logits + gumbel, NEG_INF), axis=-1)
    return index.astype(jnp.int32), is_allowed.any(axis=-1)


def apply_edits(
    tokens: jax.Array, chosen: ChosenPositions, replacements: jax.Array
) -> Edits:
    """Puts `replacements` [B, K] at the chosen positions of `tokens` [B, L]."""
    positions, is_edit = chosen
    rows = jnp.arange(tokens.shape[0])[:, None]  # [B, 1], broadcast over K
    original = jnp.take_along_axis(tokens, positions, axis=1)
    new = jnp.where(is_edit, replacements, original)
    # Positions are all different, so no write meets another.
    edited = tokens.at[rows, positions].set(new, unique_indices=True)
    nowhere = jnp.zeros(tokens.shape, bool)
    edit_here = nowhere.at[rows, positions].set(is_edit, unique_indices=True)
    return Edits(edited, edit_here, positions, is_edit)


def mask_positions(
    tokens: jax.Array, chosen: ChosenPositions, mask_id: int
) -> jax.Array:
    """t^mask: [MASK] at every chosen position, int32 [B, L]."""
    masks = jnp.full(chosen.positions.shape, mask_id, tokens.dtype)
    return apply_edits(tokens, chosen, masks).tokens


def detection_labels(edits: Edits) -> jax.Array:
    """Eq. (6): `is_original`, bool [B, L]; False (the paper's 0) where edited."""
    return ~edits.edit_here


def correction_labels(tokens: jax.Array, edits: Edits) -> jax.Array:
    """Eq. (7): the original token at each position, IGNORE if it was not edited."""
    original = jnp.take_along_axis(tokens, edits.positions, axis=1)
    return jnp.where(edits.is_edit, original, IGNORE)
