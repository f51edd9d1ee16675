"""Error detection and correction: Eqs. (8), (9).

Each function returns sums over its samples. Divided by counts of the whole batch, the
sums of its parts add up to the loss, so microbatches are exact.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vilem_jax.objectives.editing import IGNORE


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label] in nats; logits [..., C], int labels [...]."""
    # float32 at least; float64 stays, for tests.
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def detection_sum(
    logits: jax.Array, is_original: jax.Array, is_editable: jax.Array, reduction: str
) -> jax.Array:
    """Eq. (8) before its mean over texts: every token is judged right or wrong.

    Args:
      logits: [B, L, 2]; class 1 is "original".
      is_original: bool [B, L], Eq. (6).
      is_editable: bool [B, L]: special tokens, padding and punctuation are not judged.
      reduction: "sum" over a text's tokens (Eq. 8); "per_edit": that sum divided by
        the text's number of edits; "mean": summed here too, the caller divides by the
        number of tokens.

    Returns:
      scalar, nats; 0 if no token is judged.
    """
    each = cross_entropy(logits, is_original.astype(jnp.int32))  # [B, L]
    per_text = jnp.sum(jnp.where(is_editable, each, 0.0), axis=1)
    if reduction == "per_edit":
        num_edits = jnp.sum(~is_original & is_editable, axis=1)
        per_text = per_text / jnp.maximum(num_edits, 1)
    return jnp.sum(per_text)


def correction_sum(logits: jax.Array, correction: jax.Array) -> jax.Array:
    """Eq. (9) before its mean: the original token must win at each edited position.

    Args:
      logits: [B, K, V].
      correction: int32 [B, K], Eq. (7); IGNORE has no loss.

    Returns:
      scalar, nats; 0 if nothing was edited.
    """
    is_edit = correction != IGNORE
    # Any valid index will do where there is no loss: IGNORE would be out of range.
    each = cross_entropy(logits, jnp.where(is_edit, correction, 0))  # [B, K]
    return jnp.sum(jnp.where(is_edit, each, 0.0))


class DetectionCounts(NamedTuple):
    """Counts of tokens, "wrong" being the positive class; int32 scalars."""

    found: jax.Array  # flagged and wrong
    flagged: jax.Array
    wrong: jax.Array


def detection_counts(
    logits: jax.Array, is_original: jax.Array, is_editable: jax.Array
) -> DetectionCounts:
    """Counts for precision and recall; a token is flagged if P(original) < 0.5."""
    is_flagged = (logits[..., 0] > logits[..., 1]) & is_editable
    is_wrong = ~is_original & is_editable
    return DetectionCounts(
        jnp.sum(is_flagged & is_wrong), jnp.sum(is_flagged), jnp.sum(is_wrong)
    )


def correction_hits(logits: jax.Array, correction: jax.Array) -> jax.Array:
    """At how many edited positions the original token has the best logit."""
    is_edit = correction != IGNORE
    label = jnp.where(is_edit, correction, 0)[..., None]
    score = jnp.take_along_axis(logits, label, axis=-1)
    # Ties count against the model.
    rank = jnp.sum(logits >= score, axis=-1)
    return jnp.sum(is_edit & (rank == 1))
