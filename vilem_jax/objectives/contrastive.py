"""Image-text contrast against momentum keys: Eqs. (1)-(4), and the queues."""

import jax
import jax.numpy as jnp

from vilem_jax.masking import NEG_INF


def momentum_update(momentum_params, params, momentum: float):
    """Eqs. (1), (2): theta^ = m theta^ + (1 - m) theta, over the whole tree.

    A momentum of 1 keeps the old, 0 copies the new.
    """
    return jax.tree.map(
        # m weighs the old value: the two weights are easily swapped.
        lambda old, new: momentum * old + (1.0 - momentum) * new,
        momentum_params,
        params,
    )


def info_nce(
    embedding: jax.Array,
    keys: jax.Array,
    queue: jax.Array,
    temperature: jax.Array,
    *,
    row: jax.Array,
    queue_count: jax.Array,
    num_groups: int = 1,
    image_ids: jax.Array | None = None,
    queue_image_ids: jax.Array | None = None,
    own_keys: jax.Array | None = None,
    soft_weight: jax.Array | float = 0.0,
) -> jax.Array:
    """Eq. (3) or (4) for each sample, in nats: its own key must win against all others.

    With `image_ids` every key of the sample's image must win, see `image_targets`: the
    cross-entropy with these targets, which are one-hot if no image comes twice.

    Two log-sum-exps, over the batch and over the queue, make one denominator; the
    logits are never concatenated.

    Args:
      embedding: [b, E], unit rows of one modality; a part of the batch or all of it.
      keys: [B, E], unit momentum keys of the other modality, the whole global batch.
      queue: [Q, E], keys of earlier steps, newest first; Q may be 0.
      temperature: scalar tau.
      row: int32 [b], the row of `keys` that is each sample's positive.
      queue_count: int32 scalar, how many queue rows are valid.
      num_groups: the batch falls into this many contiguous groups, and only keys of
        the sample's own group compete (negatives="device"); 1: all keys do.
      image_ids: int32 [B], whose keys they are; None: each sample's own key alone is
        positive.
      queue_image_ids: int32 [Q], likewise of the queue; needed with `image_ids`.
      own_keys: [B, E], momentum keys of the embedding's own modality, for soft targets.
      soft_weight: alpha; the target is (1 - alpha) of the hard one + alpha softmax(own
        key's similarities), as in ALBEF. 0 is Eq. (3) as printed.

    Returns:
      [b]. Gradients flow into `embedding` and `temperature`, never into keys or queue.
    """
    # Without gradients of keys the loss separates over samples: microbatches are exact.
    keys, queue = jax.lax.stop_gradient((keys, queue))
    batch_mask = _same_group(row, keys.shape[0], num_groups)
    queue_mask = (jnp.arange(queue.shape[0]) < queue_count)[None]
    batch_logits, queue_logits, total = _scores(
        embedding, keys, queue, temperature, batch_mask, queue_mask
    )
    if image_ids is None:
        positive = jnp.take_along_axis(batch_logits, row[:, None], axis=1)[:, 0]
    else:
        if queue_image_ids is None:
            raise ValueError("image_ids need the queue's too: queue_image_ids is None")
        targets = image_targets(image_ids, queue_image_ids, row, batch_mask, queue_mask)
        # [b]: the mean logit of the positives, wherever they are.
        positive = _weighted(targets[0], batch_logits)
        positive += _weighted(targets[1], queue_logits)
    hard = total - positive  # [b], -log of the positive's probability
    if own_keys is None:
        return hard
    own_key = jax.lax.stop_gradient(own_keys)[row]  # [b, E]
    # No gradient: not into the temperature of the targets either.
    soft_batch, soft_queue, soft_total = jax.lax.stop_gradient(
        _scores(own_key, keys, queue, temperature, batch_mask, queue_mask)
    )
    # Cross-entropy with the soft targets: total - sum_j p_j logit_j.
    expected = _expectation(soft_batch, soft_total, batch_logits, batch_mask)
    expected += _expectation(soft_queue, soft_total, queue_logits, queue_mask)
    return (1.0 - soft_weight) * hard + soft_weight * (total - expected)


def image_targets(
    image_ids: jax.Array,
    queue_image_ids: jax.Array,
    row: jax.Array,
    batch_mask: jax.Array,
    queue_mask: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Targets of fine-tuning: 1 / n for each of the n columns of the sample's image.

    Captions of one image are not negatives of each other, in batch or queue (ALBEF).

    Args:
      image_ids: int32 [B], of the keys of the batch.
      queue_image_ids: int32 [Q], of the queue's rows; Q may be 0.
      row: int32 [b], the samples' rows in the batch.
      batch_mask: bool [b, B], which keys of the batch compete; the sample's own must.
      queue_mask: bool [b or 1, Q], which rows of the queue do.

    Returns:
      float32 [b, B] and [b, Q], which sum to 1 over both, 0 for keys masked out.
    """
    mine = image_ids[row][:, None]  # [b, 1]
    in_batch = (mine == image_ids[None]) & batch_mask
    in_queue = (mine == queue_image_ids[None]) & queue_mask
    # At least 1: the sample's own key is in the batch.
    count = in_batch.sum(axis=1, keepdims=True) + in_queue.sum(axis=1, keepdims=True)
    return in_batch / count, in_queue / count


def enqueue(queue: jax.Array, keys: jax.Array) -> jax.Array:
    """The newest keys (or ids) first, the oldest dropped; any batch size: [Q, ...]."""
    # No write position to keep, and no batch size that must divide the queue's length.
    newest_first = jnp.concatenate([keys.astype(queue.dtype), queue])
    return newest_first[: queue.shape[0]]


def _same_group(row, batch_size, num_groups):
    """bool [b, B]: which keys of the batch compete for the sample in `row`."""
    group_size = batch_size // num_groups
    # Devices hold contiguous rows of the global batch.
    mine, theirs = row // group_size, jnp.arange(batch_size) // group_size
    return mine[:, None] == theirs[None]


def _scores(embedding, keys, queue, temperature, batch_mask, queue_mask):
    """Logits [b, B] and [b, Q] and their joint log-sum-exp [b], all float32."""
    batch_logits = _similarity(embedding, keys) / temperature
    batch_logits = jnp.where(batch_mask, batch_logits, NEG_INF)
    total = jax.nn.logsumexp(batch_logits, axis=1)
    if queue.shape[0] == 0:  # logsumexp over no columns would be -inf
        return batch_logits, jnp.zeros((embedding.shape[0], 0)), total
    queue_logits = _similarity(embedding, queue) / temperature
    queue_logits = jnp.where(queue_mask, queue_logits, NEG_INF)
    queue_total = jax.nn.logsumexp(queue_logits, axis=1)
    return batch_logits, queue_logits, jnp.logaddexp(total, queue_total)


def _similarity(embedding, keys):
    """[b, K], at least in float32: dividing by the temperature magnifies rounding."""
    kind = jnp.promote_types(embedding.dtype, jnp.float32)
    return jnp.einsum("be,ke->bk", embedding.astype(kind), keys.astype(kind))


def _weighted(weights, logits):
    """sum_j weight_j logit_j, [b]; a weight of 0 leaves a logit out."""
    return jnp.sum(jnp.where(weights > 0, weights * logits, 0.0), axis=1)


def _expectation(target_logits, target_total, logits, mask):
    """sum_j exp(target_logit_j - total) logit_j over the columns in `mask`: [b]."""
    probability = jnp.exp(target_logits - target_total[:, None])
    return jnp.sum(jnp.where(mask, probability * logits, 0.0), axis=1)
