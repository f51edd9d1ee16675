"""Losses and gradients of a whole batch, part by part on every device.

Keys carry no gradient, so the losses separate over samples: a device works on its own
rows in microbatches, and one sum over the devices ends the step. Collectives of a step:
the keys all-gathered, gradients and sums all-reduced, each once however many
microbatches there are; with compute.sharding="fsdp" the parameters all-gathered too.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from vilem_jax.config.schema import Config
from vilem_jax.distributed.mesh import Layout, gather_rows, sum_over_devices
from vilem_jax.models.locked import join_params
from vilem_jax.models.vilem import Params, ViLEM, model_graph
from vilem_jax.training import length_buckets, losses
from vilem_jax.training.losses import Keys, LossSums, Samples, Shared
from vilem_jax.typing import PyTree


def device_gradients(
    params: Params,
    momentum_params: Params,
    locked_params: Params,
    shared: Shared,
    samples: Samples,
    row: jax.Array,
    *,
    config: Config,
    layout: Layout,
    param_specs: PyTree,
    locked_specs: PyTree,
    grad_specs: PyTree,
) -> tuple[Params, tuple[jax.Array, LossSums], Keys]:
    """Runs on each device, inside `layout.on_each_device`.

    Args:
      params, momentum_params: what trains, and its momentum copy: this device's
        shards, as `param_specs` says.
      locked_params: the other parameters, of both models, as `locked_specs` says.
      samples: this device's rows of the batch.
      row: int32 [b], which rows of the global batch these are.

    Returns:
      gradients, sharded as `grad_specs` says; the loss of the whole batch and what it
      is the sum of; the keys of the whole batch, for the queues.
    """
    # No-ops unless compute.sharding="fsdp".
    params = layout.gather_params(params, param_specs)
    momentum_params = layout.gather_params(momentum_params, param_specs)
    locked_params = layout.gather_params(locked_params, locked_specs)
    graph = model_graph(config.model, config.compute)

    def build(trained: Params) -> ViLEM:
        return nnx.merge(graph, join_params(trained, locked_params))

    momentum_model = build(momentum_params)

    # All keys of the global batch before any loss: every sample is contrasted with all.
    encode = partial(losses.momentum_keys, model=momentum_model, config=config.loss)
    image_keys, text_keys, locked = map_microbatches(encode, (samples,), config)
    image_ids = samples.image_id if config.loss.positives == "image" else None
    if config.loss.positives == "image" and image_ids is None:
        raise ValueError("config.loss.positives='image' needs Samples.image_id")
    keys = gather_rows(Keys(image_keys, text_keys, image_ids))

    # With the keys fixed, the loss is a sum over samples, so it can be cut anywhere.
    loss = partial(
        losses.batch_loss,
        build=build,
        momentum_model=momentum_model,
        keys=keys,
        shared=shared,
        config=config.loss,
        num_groups=layout.mesh.size if config.loss.negatives == "device" else 1,
    )
    gradient = partial(jax.value_and_grad(loss, has_aux=True), params)
    loss_and_sums, grads = map_microbatches(
        gradient, (samples, row, locked), config, is_summed=True
    )
    grads = layout.sum_gradients(grads, grad_specs)
    return grads, sum_over_devices(loss_and_sums), keys


def map_microbatches(
    function: Callable, rows: tuple, config: Config, *, is_summed: bool = False
) -> PyTree:
    """`function` of the device's microbatches, one after the other.

    Microbatches are strided: row i goes to microbatch i mod n. A contiguous reshape of
    the sharded batch would gather it.

    Args:
      function: of b / n rows of each of `rows`; the first of them are `Samples`. With
        `compute.text_lengths` their texts may come cut, see `length_buckets`.
      rows: trees of arrays [b, ...].
      is_summed: whether the results are summed; else they are trees of arrays
        [b / n, ...], which are put back into the order of the rows: [b, ...].
    """
    num_parts, lengths = config.train.num_microbatches, config.compute.text_lengths
    restore = _unchanged
    if lengths:
        # Sorted by length, so that most microbatches have short texts only.
        function = length_buckets.on_shortest(function, lengths)
        sort, restore = length_buckets.arrangement(rows[0], num_parts)
        rows = sort(rows)
    if num_parts == 1:
        result = function(*rows)  # no loop, and nothing in it for the compiler to undo
        return result if is_summed else restore(result)
    parts = split(rows, num_parts)
    if not is_summed:
        stacked = jax.lax.map(lambda part: function(*part), parts)
        return restore(jax.tree.map(unsplit, stacked))
    # `lax.scan` needs the sum's shapes before the first microbatch.
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, *first))

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(*part)), None

    return jax.lax.scan(add, zeros, parts)[0]


def _unchanged(tree: PyTree) -> PyTree:
    return tree


def split(tree: PyTree, num_parts: int) -> PyTree:
    """[b, ...] -> [n, b / n, ...], strided: row i goes to part i mod n."""
    return jax.tree.map(
        lambda x: x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1), tree
    )


def unsplit(values: jax.Array) -> jax.Array:
    """The inverse of `split`: [n, b / n, ...] -> [b, ...]."""
    return values.swapaxes(0, 1).reshape(-1, *values.shape[2:])
