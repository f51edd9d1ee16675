"""The one place where a step is compiled, for a run, a plan, a test or a benchmark."""

from collections.abc import Callable

import jax

from vilem_jax.distributed.mesh import Layout, over_batch, replicated
from vilem_jax.training.state import state_sharding
from vilem_jax.typing import PyTree


def compile_step(
    step: Callable, state_shapes: PyTree, layout: Layout
) -> jax.stages.Wrapped:
    """`step` jitted over the devices of `layout`; compiled at its first call.

    Args:
      step: pure, (state, frozen, batch, key) -> (state, metrics).
      state_shapes: the state, or its shapes.

    Returns:
      a function of the same arguments. The state is donated: after the call, the one
      that was passed in is gone.
    """
    whole, rows = replicated(layout.mesh), over_batch(layout.mesh)
    shardings = state_sharding(state_shapes, layout)
    return jax.jit(
        step,
        in_shardings=(shardings, whole, rows, whole),
        out_shardings=(shardings, whole),
        # Without donation two states would be in memory at once.
        donate_argnums=0,
    )
