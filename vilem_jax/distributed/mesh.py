"""The device mesh and the shardings on it; the only file that names a mesh axis.

The mesh has two axes. Split arrays are split along `fsdp` and replicated along `data`.
The batch is split along both. Momentum keys are all-gathered once a step, so that each
device contrasts its samples with the whole global batch.

compute.sharding    parameters, momentum parameters    Adam's moments    gradients
replicated          replicated                         replicated        all-reduce
zero1               replicated                         split             reduce-scatter
fsdp                split, all-gathered once a step    split             reduce-scatter
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vilem_jax.config.schema import ComputeConfig
from vilem_jax.errors import UserError
from vilem_jax.typing import PyTree

DATA, FSDP = "data", "fsdp"
WHOLE = PartitionSpec()
ROWS = PartitionSpec((DATA, FSDP))  # the leading axis over all devices

# jax.Device is a variable for type checkers.
Devices = Sequence[jax.Device]  # pyright: ignore[reportInvalidTypeForm]

SMALLEST_SPLIT = 1024  # elements; norms and most biases do not justify a collective


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh over the first `num_devices` devices of all hosts; None for all."""
    return _mesh(jax.devices()[:num_devices], 1)


def _mesh(devices: Devices, fsdp: int) -> Mesh:
    """Neighbours, `fsdp` at a time, hold one copy of the split arrays."""
    # Not Explicit, the default, which rejects products of two sharded arrays.
    return jax.make_mesh(
        (len(devices) // fsdp, fsdp),
        (DATA, FSDP),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )


@dataclass(frozen=True)
class Layout:
    """The mesh of a run, and which arrays are split on it."""

    mesh: Mesh
    splits: Literal["replicated", "zero1", "fsdp"] = "replicated"

    def param_specs(self, params: PyTree) -> PyTree:
        """The spec of each leaf of the parameters, or of the momentum parameters."""
        return self._specs(params, is_split=self.splits == "fsdp")

    def moment_specs(self, moments: PyTree) -> PyTree:
        """The spec of each leaf of the gradients, or of Adam's moments."""
        return self._specs(moments, is_split=self.splits != "replicated")

    def _specs(self, tree: PyTree, is_split: bool) -> PyTree:
        count = self.mesh.shape[FSDP] if is_split else 1
        return jax.tree.map(lambda x: _split_spec(x.shape, count), tree)

    def on_each_device(
        self, function: Callable, in_specs: PyTree, out_specs: PyTree
    ) -> Callable:
        """`shard_map`: `function` on each device's shards, with explicit collectives.

        Inside, gradients stay on the device until `sum_gradients`. With plain `jit`,
        each microbatch would all-reduce its own.
        """
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            # The check would all-reduce each gradient at once, in each microbatch.
            check_vma=False,
        )

    def gather_params(self, params: PyTree, specs: PyTree) -> PyTree:
        """All-gathers parameters from their shards; inside `on_each_device`."""

        def gather(spec: PartitionSpec, value: jax.Array) -> jax.Array:
            axis = _split_axis(spec)
            if axis is None:
                return value
            return jax.lax.all_gather(value, FSDP, axis=axis, tiled=True)

        return _map_specs(gather, specs, params)

    def sum_gradients(self, gradients: PyTree, specs: PyTree) -> PyTree:
        """Sums over all devices; each keeps its shard; inside `on_each_device`."""

        def reduce(spec: PartitionSpec, value: jax.Array) -> jax.Array:
            axis = _split_axis(spec)
            if axis is None:
                return sum_over_devices(value)
            part = jax.lax.psum_scatter(value, FSDP, scatter_dimension=axis, tiled=True)
            return jax.lax.psum(part, DATA)

        return _map_specs(reduce, specs, gradients)


def one_device() -> Layout:
    return Layout(make_mesh(1))


def make_layout(
    compute: ComputeConfig,
    num_devices: int | None = None,
    *,
    devices: Devices | None = None,
) -> Layout:
    """The layout of a config.

    Args:
      num_devices: uses the first `num_devices` devices of all hosts; None for all.
      devices: uses these instead; planning passes devices that do not exist here.

    Raises:
      UserError: if the devices do not divide into groups of `compute.fsdp_devices`.
    """
    devices = jax.devices()[:num_devices] if devices is None else devices
    if compute.sharding == "replicated":
        return Layout(_mesh(devices, 1))
    count = len(devices)
    group = compute.fsdp_devices or count
    if count % group:
        raise UserError(
            f"config.compute.fsdp_devices={group} does not divide the {count} devices "
            "of this run; 0 takes all of them for one group"
        )
    return Layout(_mesh(devices, group), compute.sharding)


def _split_spec(shape: tuple[int, ...], count: int) -> PartitionSpec:
    """Splits the longest axis that `count` divides; small arrays are not split.

    A vocabulary of 30,522 tokens divides only by 2 and 3; its width by more.
    """
    axes = [axis for axis, length in enumerate(shape) if length % count == 0]
    if count == 1 or math.prod(shape) < SMALLEST_SPLIT or not axes:
        return WHOLE
    longest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * longest, FSDP)


def _split_axis(spec: PartitionSpec) -> int | None:
    return len(spec) - 1 if len(spec) else None


def _map_specs(function: Callable, specs: PyTree, *trees: PyTree) -> PyTree:
    return jax.tree.map(
        function, specs, *trees, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )


def on_mesh(specs: PyTree, mesh: Mesh) -> PyTree:
    """The shardings of one spec or a tree of specs."""
    return _map_specs(lambda spec: NamedSharding(mesh, spec), specs)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, WHOLE)


def over_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over all devices."""
    return NamedSharding(mesh, ROWS)


def gather_rows(values: PyTree) -> PyTree:
    """Trees of [B / devices, ...] -> [B, ...] on every device; in `on_each_device`."""
    return jax.lax.all_gather(values, (DATA, FSDP), tiled=True)


def sum_over_devices(values: PyTree) -> PyTree:
    """The sum of every device's values; inside `on_each_device`."""
    return jax.lax.psum(values, (DATA, FSDP))


def check_batch(batch_size: int, num_microbatches: int, num_devices: int) -> None:
    """Raises UserError if a microbatch does not divide over the devices."""
    if batch_size % (num_devices * num_microbatches):
        raise UserError(
            f"config.train.batch_size={batch_size} does not divide over {num_devices} "
            f"devices x config.train.num_microbatches={num_microbatches}; use a "
            f"multiple of {num_devices * num_microbatches}"
        )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays [B, ...] from the rows [B / processes, ...] of each process."""
    sharding = over_batch(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }


def device_put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Copies arrays, equal on all processes, to `shardings` (one or a tree).

    `jax.device_put` may not copy. But a donated state must not have the same buffer
    twice, or share host memory with arrays that are still in use.
    """
    return jax.jit(lambda x: x, out_shardings=shardings)(tree)


def put_replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies arrays, equal on all processes, to every device."""
    return device_put(tree, replicated(mesh))


def on_one_device(tree: PyTree) -> PyTree:
    """Whole arrays on the first local device; does not copy if they are replicated."""
    leaves = jax.tree.leaves(tree)
    split = next((leaf for leaf in leaves if not leaf.is_fully_replicated), None)
    if split is not None:  # in one program, not one for each array
        tree = put_replicated(tree, split.sharding.mesh)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
