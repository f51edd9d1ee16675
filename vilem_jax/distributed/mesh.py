"""The mesh and what lies where on it; the only file that names a mesh axis.

The mesh has two axes. Devices along `fsdp` together hold one copy of what is split,
devices along `data` hold copies of it. The batch is split over both. Momentum keys are
gathered once a step, so that every device contrasts its samples with the whole global
batch, for every way of sharding.

compute.sharding    parameters, momentum copies    Adam's moments    gradients
replicated          whole on each device           whole             all-reduced
zero1               whole                          split             reduce-scattered
fsdp                split, gathered once a step    split             reduce-scattered
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

SMALLEST_SPLIT = 1024  # elements; norms and most biases are not worth a collective


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh over the first `num_devices` devices of all hosts; None takes all."""
    return _mesh(jax.devices()[:num_devices], 1)


def _mesh(devices: Sequence[jax.Device], fsdp: int) -> Mesh:
    """Neighbours, `fsdp` at a time, share one copy of what is split."""
    # Auto is spelt out: Explicit, the default, refuses products of two sharded arrays.
    return jax.make_mesh(
        (len(devices) // fsdp, fsdp),
        (DATA, FSDP),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )


@dataclass(frozen=True)
class Layout:
    """How a run lies on its devices."""

    mesh: Mesh
    splits: Literal["replicated", "zero1", "fsdp"] = "replicated"

    def param_specs(self, params: PyTree) -> PyTree:
        """Per leaf, how parameters and their momentum copies are split."""
        return self._specs(params, is_split=self.splits == "fsdp")

    def moment_specs(self, moments: PyTree) -> PyTree:
        """Per leaf, how gradients and Adam's moments are split."""
        return self._specs(moments, is_split=self.splits != "replicated")

    def _specs(self, tree, is_split: bool):
        count = self.mesh.shape[FSDP] if is_split else 1
        return jax.tree.map(lambda x: _split_spec(x.shape, count), tree)

    def on_each_device(self, function: Callable, in_specs: PyTree, out_specs: PyTree):
        """`function` on every device's part of its arguments, collectives by hand.

        Inside, gradients stay on the device until `sum_gradients`: under plain `jit`
        every microbatch would all-reduce its own.
        """
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            # The check would sum a gradient where it arises, in each microbatch.
            check_vma=False,
        )

    def gather_params(self, params: PyTree, specs: PyTree) -> PyTree:
        """Whole parameters from their parts; inside `on_each_device`."""

        def gather(spec, value):
            axis = _split_axis(spec)
            if axis is None:
                return value
            return jax.lax.all_gather(value, FSDP, axis=axis, tiled=True)

        return _map_specs(gather, specs, params)

    def sum_gradients(self, gradients: PyTree, specs: PyTree) -> PyTree:
        """Sums over all devices, each keeping its part; inside `on_each_device`."""

        def reduce(spec, value):
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
    devices: Sequence[jax.Device] | None = None,
) -> Layout:
    """The layout that a config asks for.

    Args:
      num_devices: the first so many devices of all hosts; None takes all.
      devices: these instead, which may be elsewhere (planning).

    Raises:
      UserError: the devices do not divide into groups of `compute.fsdp_devices`.
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
    """Splits the longest axis that `count` divides; nothing where the array is small.

    A vocabulary of 30,522 words divides by 2 and 3 alone; its width does by more.
    """
    if count == 1 or math.prod(shape) < SMALLEST_SPLIT:
        return WHOLE
    axes = [axis for axis, length in enumerate(shape) if length % count == 0]
    if not axes:
        return WHOLE
    longest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * longest, FSDP)


def _split_axis(spec: PartitionSpec) -> int | None:
    return len(spec) - 1 if len(spec) else None


def _map_specs(function, specs, tree):
    return jax.tree.map(
        function, specs, tree, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )


def on_mesh(specs: PyTree, mesh: Mesh) -> PyTree:
    """Shardings from specs, one or a tree of them."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, WHOLE)


def over_batch(mesh: Mesh) -> NamedSharding:
    """Leading axis split over the devices."""
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
    """This host's rows [B / hosts, ...] as part of the global arrays [B, ...]."""
    sharding = over_batch(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }


def device_put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Arrays, the same on every host, to where `shardings` (one or a tree) says.

    The copy matters: a donated state may not hold one buffer twice, nor a view of host
    memory that somebody else reads.
    """
    return jax.jit(lambda x: x, out_shardings=shardings)(tree)


def put_replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """Arrays, the same on every host, whole onto all devices."""
    return device_put(tree, replicated(mesh))


def on_one_device(tree: PyTree) -> PyTree:
    """Whole arrays on this host's first device of the mesh; free where replicated."""
    leaves = jax.tree.leaves(tree)
    split = next((leaf for leaf in leaves if not leaf.is_fully_replicated), None)
    if split is not None:  # all at once: one program, not one an array
        tree = put_replicated(tree, split.sharding.mesh)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
