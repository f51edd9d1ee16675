"""The mesh and what lies where on it; the only file that names a mesh axis.

The state is replicated and the batch is split over `data`. Momentum keys are gathered
once a step, so that every device contrasts its samples with the whole global batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vilem_jax.config import UserError

DATA = "data"


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh over the first `num_devices` devices of all hosts; None takes all."""
    devices = jax.devices()[:num_devices]
    # Auto is spelt out: Explicit, the default, refuses products of two sharded arrays.
    return jax.make_mesh(
        (len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """Leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def check_batch(batch_size: int, num_microbatches: int, mesh: Mesh) -> None:
    """Raises a UserError where a microbatch does not divide over the devices."""
    num_devices = mesh.size
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


def put_replicated(tree: Any, mesh: Mesh) -> Any:
    """Host arrays, the same on every host, onto all devices.

    The copy matters: a donated state may not hold one buffer twice, nor a view of host
    memory that somebody else reads.
    """
    sharding = replicated(mesh)
    return jax.jit(lambda x: x, out_shardings=sharding)(tree)


def gather_over(mesh: Mesh):
    """A function that puts a whole array on every device (inside `jit`)."""
    sharding = replicated(mesh)
    return lambda values: jax.lax.with_sharding_constraint(values, sharding)


def on_own_rows(function: Callable, mesh: Mesh) -> Callable:
    """`function(shared, rows)` run by every device on its own part of the rows.

    Args:
      function: takes `shared`, the same on all devices, and a tree of rows
        [N / devices, ...]; what it returns has a leading axis.

    Returns:
      a function of `shared` and the rows [N, ...], for inside `jit`: what the devices
      return, joined along the leading axis.
    """
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(DATA)),
        out_specs=PartitionSpec(DATA),
        check_vma=False,  # else a scan could not begin with constants
    )
