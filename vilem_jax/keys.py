"""Where randomness comes from: a table of purposes, and the keys made for them.

Every random number of a step is drawn from (seed, step, sample id, purpose), so it does
not depend on the number of devices, processes, workers or microbatches. In the text
tower, the stream of a pass and the layer are folded in too (`models.layers.for_site`).
"""

import enum

import jax


class Purpose(enum.IntEnum):
    """What a sample's randomness is for; the number is folded into its key."""

    FLIP = 0
    AUGMENT = 1
    EDIT = 2
    DROPOUT = 3


def sample_keys(key: jax.Array, step: jax.Array, sample_id: jax.Array) -> jax.Array:
    """Typed keys [B] from (seed, step, sample id): a sample has the same random
    numbers on any device and in any batch."""
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key, sample_id)


def fold_in(keys: jax.Array, number: int) -> jax.Array:
    """Per-sample typed keys [B] for one purpose."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
