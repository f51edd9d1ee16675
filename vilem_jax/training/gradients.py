"""Losses and gradients of a whole batch, part by part on every device.

Keys carry no gradient, so the losses separate over samples: a device works on its own
rows in microbatches, and one sum over the devices ends the step. Every sum is divided
by whole-batch counts, so that neither number changes the result.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vilem_jax.config.schema import Config
from vilem_jax.distributed.mesh import (
    ROWS,
    WHOLE,
    Layout,
    gather_rows,
    one_device,
    sum_over_devices,
)
from vilem_jax.models.vilem import Params, model_graph
from vilem_jax.training import length_buckets, losses
from vilem_jax.training.losses import Contrast, Samples, Shared
from vilem_jax.training.state import TrainState


def make_gradients(config: Config, layout: Layout | None = None) -> Callable:
    """`gradients(params, momentum_params, state, samples)`: gradients, sums of losses,
    and what the batch was contrasted with.

    Collectives of a step: the keys gathered, gradients and sums reduced, each once
    however many microbatches there are; with compute.sharding="fsdp" also the
    parameters gathered.

    Args:
      layout: of the run on its devices; None: all on one.
    """
    layout = layout or one_device()
    part_of_device = _make_device_part(config, layout)

    def gradients(params, momentum_params, state: TrainState, samples: Samples):
        param_specs = layout.param_specs(params)
        grad_specs = layout.moment_specs(params)

        def on_device(params, momentum_params, *rest):
            params = layout.gather_params(params, param_specs)
            momentum_params = layout.gather_params(momentum_params, param_specs)
            grads, sums, contrast = part_of_device(params, momentum_params, *rest)
            grads = layout.sum_gradients(grads, grad_specs)
            return grads, sum_over_devices(sums), contrast

        run = layout.on_each_device(
            on_device,
            in_specs=(param_specs, param_specs, WHOLE, ROWS, ROWS),
            out_specs=(grad_specs, WHOLE, WHOLE),
        )
        shared = Shared(
            _queued(config, state),
            losses.denominators(samples),
            ramp(config.loss.proofread_ramp_steps, state.step),
        )
        row = jnp.arange(samples.tokens.shape[0])
        return run(params, momentum_params, shared, samples, row)

    return gradients


def _queued(config: Config, state: TrainState) -> Contrast:
    """What a batch contrasts itself with, but for its own keys."""
    alpha = ramp(config.loss.soft_target_ramp_steps, state.step)
    return Contrast(
        image_keys=None,
        text_keys=None,
        image_queue=state.image_queue,
        text_queue=state.text_queue,
        queue_count=state.queue_count,
        soft_weight=config.loss.soft_target_weight * alpha,
        queue_image_ids=state.queue_image_ids,
    )


def _make_device_part(config: Config, layout: Layout) -> Callable:
    """What one device contributes, from whole parameters and its rows of the batch."""
    graph = model_graph(config.model, config.compute)
    groups = layout.mesh.size if config.loss.negatives == "device" else 1
    parts = config.train.num_microbatches
    lengths = config.compute.text_lengths

    def as_short_as_possible(function: Callable[[Samples], Any]):
        return length_buckets.on_shortest(function, lengths) if lengths else function

    def with_keys(contrast, momentum_model, pieces, samples, put_back) -> Contrast:
        @as_short_as_possible
        def keys_of(piece):
            return losses.momentum_keys(
                momentum_model, piece, has_dropout=config.loss.momentum_dropout
            )

        image_keys, text_keys = jax.tree.map(
            lambda keys: gather_rows(put_back(unsplit(keys))),
            jax.lax.map(keys_of, pieces),
        )
        is_by_image = config.loss.positives == "image"
        return contrast._replace(
            image_keys=image_keys,
            text_keys=text_keys,
            image_ids=gather_rows(samples.image_id) if is_by_image else None,
        )

    def part(
        params: Params,
        momentum_params: Params,
        shared: Shared,
        samples: Samples,
        row: jax.Array,
    ):
        momentum_model = nnx.merge(graph, momentum_params)
        arrange = put_back = _as_it_is
        if lengths:
            arrange, put_back = length_buckets.arrangement(samples, parts)
        pieces = split(arrange(samples), parts)
        contrast = with_keys(shared.contrast, momentum_model, pieces, samples, put_back)
        shared = shared._replace(contrast=contrast)

        def gradients_of(piece_and_row):
            piece, piece_row = piece_and_row

            def loss_of(params, piece):
                return losses.loss_sums(
                    nnx.merge(graph, params),
                    momentum_model,
                    piece,
                    piece_row,
                    shared,
                    config,
                    groups,
                )

            run = jax.value_and_grad(loss_of, has_aux=True)
            return as_short_as_possible(lambda piece: run(params, piece))(piece)

        (_, sums), grads = _summed(gradients_of, (pieces, split(arrange(row), parts)))
        return grads, sums, contrast

    return part


def _as_it_is(tree):
    return tree


def _summed(function: Callable, pieces):
    """The sum of `function` over the leading axis of `pieces`, one after the other."""
    first = jax.tree.map(lambda x: x[0], pieces)
    if jax.tree.leaves(pieces)[0].shape[0] == 1:
        return function(first)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, first)
    )

    def add(total, piece):
        return jax.tree.map(jnp.add, total, function(piece)), None

    return jax.lax.scan(add, zeros, pieces)[0]


def split(tree, parts: int):
    """[b, ...] -> [parts, b / parts, ...], strided: row i goes to part i mod parts."""
    return jax.tree.map(
        lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), tree
    )


def unsplit(values: jax.Array) -> jax.Array:
    """The inverse of `split`: [parts, b / parts, ...] -> [b, ...]."""
    return values.swapaxes(0, 1).reshape(-1, *values.shape[2:])


def ramp(num_steps: int, step: jax.Array) -> jax.Array:
    """Rises linearly from 0 at step 0 to 1 at `num_steps`; 1 where that is 0."""
    return jnp.minimum(1.0, step / num_steps) if num_steps else jnp.ones(())
