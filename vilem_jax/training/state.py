"""What changes while training, how it starts, and where it lies on the devices."""

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp

from vilem_jax.config.schema import Config
from vilem_jax.distributed.mesh import WHOLE, Layout, on_mesh
from vilem_jax.models.locked import split_params
from vilem_jax.models.vilem import Params, new_params
from vilem_jax.training.optimizer import make_optimizer
from vilem_jax.typing import PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """All of a run that changes, for every task. What is not here is constant."""

    step: jax.Array  # int32, steps taken, skipped ones included
    params: Params
    opt_state: PyTree
    skipped_total: jax.Array  # int32, steps with a non-finite loss or gradient
    skipped_in_a_row: jax.Array  # int32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState(State):
    """The state of a ViLEM: the momentum model and the queues besides."""

    momentum_params: Params  # the tree of what trains of `params`: models/locked.py
    image_queue: jax.Array  # [Q, E], newest first
    text_queue: jax.Array  # [Q, E]
    queue_count: jax.Array  # int32, valid rows of both queues
    # int32 [Q], the image id of each row, -1 for none; None if positives="own".
    queue_image_ids: jax.Array | None


AnyState = TypeVar("AnyState", bound=State)


def init_params(config: Config, key: jax.Array) -> Params:
    """Random parameters: N(0, init_std) matrices, zero biases."""
    return new_params(config.model, config.compute, key)


def initial_fields(
    config: Config, params: Params, trained: Params
) -> dict[str, PyTree]:
    """Step 0 of what every state has, by the names of `State`.

    Args:
      trained: the part of `params` that the optimizer updates.
    """
    zero = jnp.zeros((), jnp.int32)
    return dict(
        step=zero,
        params=params,
        opt_state=make_optimizer(config.optimizer).init(trained),
        skipped_total=zero,
        skipped_in_a_row=zero,
    )


def init_state(
    config: Config, params: Params, momentum_params: Params | None = None
) -> TrainState:
    """Step 0: empty queues; the momentum parameters equal `params` if not given.

    Args:
      momentum_params: the tree of `params`; only its trained part is kept.
    """
    queue_shape = (config.loss.queue_length, config.model.embedding_width)
    has_ids = config.loss.positives == "image"
    trained, _ = split_params(params, config.model)
    if momentum_params is None:
        momentum_params = trained
    momentum_params, _ = split_params(momentum_params, config.model)
    return TrainState(
        **initial_fields(config, params, trained),
        # A copy: a donated state may not hold one buffer twice.
        momentum_params=jax.tree.map(jnp.copy, momentum_params),
        image_queue=jnp.zeros(queue_shape),
        text_queue=jnp.zeros(queue_shape),
        queue_count=jnp.zeros((), jnp.int32),
        queue_image_ids=jnp.full(queue_shape[:1], -1, jnp.int32) if has_ids else None,
    )


def abstract_state(config: Config) -> TrainState:
    """Shapes and dtypes of the state; costs no memory."""
    return jax.eval_shape(
        lambda key: init_state(config, init_params(config, key)), jax.random.key(0)
    )


def state_sharding(state: AnyState, layout: Layout) -> AnyState:
    """How each array of the state is sharded: queues and counters are replicated.

    With the whole queue on every device, enqueueing moves only the keys; a sharded one
    would be gathered for the logits of every step.
    """
    specs = jax.tree.map(lambda _: WHOLE, state)
    changes = {
        "params": layout.param_specs(state.params),
        "opt_state": layout.moment_specs(state.opt_state),
    }
    if isinstance(state, TrainState):
        changes["momentum_params"] = layout.param_specs(state.momentum_params)
    return on_mesh(dataclasses.replace(specs, **changes), layout.mesh)


def with_shardings(shapes: PyTree, shardings: PyTree) -> PyTree:
    """Shapes with the shardings that their arrays will have."""
    return jax.tree.map(lambda x, s: x.update(sharding=s), shapes, shardings)
