"""What changes while training, and how it begins."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vilem_jax.config.schema import Config
from vilem_jax.distributed.mesh import Layout, on_mesh, replicated
from vilem_jax.models.vilem import Params, new_params
from vilem_jax.training.optimizer import make_optimizer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All of a run that changes. What is not here does not change."""

    step: jax.Array  # int32, steps taken, skipped ones included
    params: Params
    momentum_params: Params  # the tree of `params`
    opt_state: Any
    image_queue: jax.Array  # [Q, E], newest first
    text_queue: jax.Array  # [Q, E]
    queue_count: jax.Array  # int32, valid rows of both queues
    # int32 [Q], the image of each row, -1 for none; None with positives="own".
    queue_image_ids: jax.Array | None
    skipped_total: jax.Array  # int32, steps with a non-finite loss or gradient
    skipped_in_a_row: jax.Array  # int32


def initial_params(config: Config, key: jax.Array) -> Params:
    """Random parameters: N(0, init_std) matrices, zero biases."""
    return new_params(config.model, config.compute, key)


def initial_state(
    config: Config, params: Params, momentum_params: Params | None = None
) -> TrainState:
    """Step 0: queues are empty, momentum copies equal the parameters if not given."""
    queue_shape = (config.loss.queue_length, config.model.embedding_width)
    zero = jnp.zeros((), jnp.int32)
    has_ids = config.loss.positives == "image"
    return TrainState(
        step=zero,
        params=params,
        momentum_params=jax.tree.map(
            jnp.copy, params if momentum_params is None else momentum_params
        ),
        opt_state=make_optimizer(config.optimizer).init(params),
        image_queue=jnp.zeros(queue_shape),
        text_queue=jnp.zeros(queue_shape),
        queue_count=zero,
        queue_image_ids=jnp.full(queue_shape[:1], -1, jnp.int32) if has_ids else None,
        skipped_total=zero,
        skipped_in_a_row=zero,
    )


def abstract_state(config: Config) -> TrainState:
    """Shapes and dtypes of the state; costs no memory."""
    return jax.eval_shape(
        lambda key: initial_state(config, initial_params(config, key)),
        jax.random.key(0),
    )


def state_sharding(state: TrainState, layout: Layout) -> TrainState:
    """Where each array of the state lies: the queues and counters whole everywhere.

    With a whole queue on every device, enqueueing moves only the keys; a split one
    would be gathered for the logits of every step.
    """
    mesh = layout.mesh
    return dataclasses.replace(
        jax.tree.map(lambda _: replicated(mesh), state),
        params=on_mesh(layout.param_specs(state.params), mesh),
        momentum_params=on_mesh(layout.param_specs(state.momentum_params), mesh),
        opt_state=on_mesh(layout.moment_specs(state.opt_state), mesh),
    )


def with_shardings(state: Any, shardings: Any) -> Any:
    """Shapes with the shardings they will have; one sharding or a tree of them."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, state)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        state,
        shardings,
    )
