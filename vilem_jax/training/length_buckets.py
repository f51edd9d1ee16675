"""Microbatches of captions of similar length, with little padding.

Captions are padded to one length, and most of them are half as long. With the rows of a
device sorted by length, most microbatches have short captions only, and are computed on
texts cut to the shortest of a few lengths that fits. Padding reaches no loss, so this
is exact.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from vilem_jax.training.losses import Samples
from vilem_jax.typing import PyTree


def arrangement(
    samples: Samples, num_parts: int
) -> tuple[Callable[[PyTree], PyTree], Callable[[PyTree], PyTree]]:
    """How to sort rows by length, and how to put them back.

    Sorted rows come as `gradients.split` takes them, strided: part p of `num_parts`
    gets the p-th run of the sorted rows, the shortest captions first.

    Returns:
      two functions of trees of arrays [b, ...], inverse to each other.
    """
    order = jnp.argsort(_lengths(samples))
    # [n, b / n] sorted runs -> the row order whose strided split gives these runs.
    strided = order.reshape(num_parts, -1).swapaxes(0, 1).reshape(-1)
    return partial(_take, strided), partial(_take, jnp.argsort(strided))


def on_shortest(function: Callable, lengths: tuple[int, ...]) -> Callable:
    """`function` of samples whose texts are cut to the shortest length that holds them.

    One branch is compiled for each length, and one runs.

    Args:
      function: of `Samples`, and of any other arrays.
      lengths: rising, all below the padded length, which is tried last.
    """

    def cut_and_run(length: int, samples: Samples, *others: PyTree):
        return function(cut(samples, length), *others)

    def run(samples: Samples, *others: PyTree):
        # Lengths are static in a compiled program: one branch each, chosen at run time.
        branches = [partial(cut_and_run, length) for length in lengths]
        which = jnp.searchsorted(jnp.asarray(lengths), _lengths(samples).max())
        return jax.lax.switch(which, [*branches, function], samples, *others)

    return run


def cut(samples: Samples, length: int) -> Samples:
    """Samples with texts [B, length]; all that is cut off must be padding."""
    edits = samples.edits
    if edits is not None:
        edits = edits._replace(
            tokens=edits.tokens[:, :length],
            edit_here=edits.edit_here[:, :length],
            # Positions without an edit are not read; they must only be in range.
            positions=jnp.minimum(edits.positions, length - 1),
        )
    return samples._replace(
        tokens=samples.tokens[:, :length],
        attention_mask=samples.attention_mask[:, :length],
        is_editable=samples.is_editable[:, :length],
        edits=edits,
    )


def _lengths(samples: Samples) -> jax.Array:
    """Tokens up to the last one that is not padding, int32 [b]."""
    positions = jnp.arange(1, samples.tokens.shape[1] + 1)
    return jnp.max(jnp.where(samples.attention_mask, positions[None, :], 0), axis=1)


def _take(rows: jax.Array, tree):
    return jax.tree.map(lambda x: x[rows], tree)
