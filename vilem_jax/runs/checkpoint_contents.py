"""The content of a checkpoint: tensors by name, and checksums of its files."""

import contextlib
import logging
import os
import re
import shutil
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vilem_jax import integrity
from vilem_jax.distributed import processes
from vilem_jax.errors import UserError
from vilem_jax.files import reason
from vilem_jax.typing import JsonObject, PyTree

ORBAX_LOGGER = logging.getLogger("absl")
SILENT = logging.CRITICAL + 1
# The field of the state that holds the weights of each name.
FIELDS = {"online": "params", "momentum": "momentum_params"}

# dotted name -> array: of JAX, of NumPy, or only its shape and dtype
Flat = dict[str, PyTree]
Entry = JsonObject  # dtype and shape of one tensor


class CorruptError(Exception):
    """The bytes of a finished checkpoint are not those that were saved."""


class NoRoomError(OSError):
    """The disk has no room for a checkpoint; raised on all processes."""


def check_room(folder: Path, flat: Flat) -> None:
    """Raises NoRoomError if the disk is full: Orbax would fail late and at length."""
    free = processes.broadcast(shutil.disk_usage(folder).free)
    needed = 0.9 * sum(leaf.nbytes for leaf in flat.values())  # compressed by about 7 %
    if free < needed:
        raise NoRoomError(
            f"no space: {free / 1e6:,.1f} MB are free, {needed / 1e6:,.1f} needed"
        )


def flatten(tree: PyTree) -> Flat:
    """The leaves by dotted name, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in leaves
    }
    # {"a.b": x, "a": {"b": y}} would store one of the two and lose the other.
    if len(flat) < len(leaves):
        raise ValueError("two tensors of the state have the same name")
    return flat


def nest(flat: Flat) -> dict[str | int, PyTree]:
    """{"layers.0.kernel": a} as {"layers": {0: {"kernel": a}}}."""
    nested: dict[str | int, PyTree] = {}
    for name, leaf in flat.items():
        # Flax NNX numbers the layers of a list with int keys.
        *path, last = [int(p) if p.isdecimal() else p for p in name.split(".")]
        parent = nested
        for key in path:
            parent = parent.setdefault(key, {})
        parent[last] = leaf
    return nested


def with_sharding(leaf: PyTree) -> jax.ShapeDtypeStruct:
    """Shape and dtype of `leaf` with its sharding, or on the first device without."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def describe_shapes(flat: Flat) -> dict[str, Entry]:
    """The dtype and shape of each tensor, as JSON values."""
    return {
        name: {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}
        for name, leaf in flat.items()
    }


def read_description(checkpoint: Path, part: str = "tensors") -> JsonObject:
    """The dtype and shape of each tensor of a checkpoint; or its "metrics"."""
    with reading(), ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        return reader.restore(checkpoint / "tensors")[part]


def read_fields(checkpoint: Path, fields: Iterable[str]) -> dict[str, Flat]:
    """Some fields of the state in a checkpoint.

    Returns:
      {field: {name below it: array}}; the name is "" if the field is one array.

    Raises:
      UserError: if it has no such field.
      CorruptError: if its bytes are not those that were saved.
    """
    verify_files(checkpoint)
    saved = read_description(checkpoint)
    of_field = {
        field: [n for n in saved if n == field or n.startswith(f"{field}.")]
        for field in fields
    }
    for field, names in of_field.items():
        if not names:
            kind = {v: f"{k} weights" for k, v in FIELDS.items()}.get(field, field)
            raise UserError(f"{checkpoint} holds no {kind}")
    wanted = [name for names in of_field.values() for name in names]
    # Arrays without elements are described but not stored, see `Checkpoints.save`.
    empty = {n: saved[n] for n in wanted if 0 in saved[n]["shape"]}
    stored = [name for name in wanted if name not in empty]
    # The checkpoint may have been saved on devices that this machine does not have.
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    args = ocp.args.PyTreeRestore(
        dict.fromkeys(stored, 0),
        restore_args=dict.fromkeys(stored, as_numpy),
        partial_restore=True,
    )
    with reading(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        flat = reader.restore(checkpoint / "state", args=args)
    flat |= {n: np.zeros(e["shape"], e["dtype"]) for n, e in empty.items()}
    return {
        field: {n.removeprefix(field).removeprefix("."): flat[n] for n in names}
        for field, names in of_field.items()
    }


def finished_steps(folder: Path) -> list[int]:
    """The finished checkpoints in `folder`, oldest first; [] if there is no folder."""
    if not folder.is_dir():
        return []
    # Orbax appends a suffix to the name of an unfinished checkpoint.
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())


def verify_files(checkpoint: Path) -> None:
    """Raises CorruptError for the first file that is not what was written.

    Before Orbax reads the checkpoint: it prints a traceback for every tensor.
    """
    with reading():
        for problem in integrity.find_problems(checkpoint):
            raise CorruptError(problem)


def check_same(saved: dict[str, Entry], wanted: Flat, source: Path) -> None:
    """Raises UserError for the first of the `wanted` tensors that `source` differs in.

    Args:
      saved: from `describe_shapes` or `read_description` of what `source` holds.
    """
    expected = describe_shapes(wanted)
    for name, entry in expected.items():
        if name not in saved:
            raise UserError(
                f"{source} has no tensor {name}, which this model needs; it was saved "
                "with other settings"
            )
        for key in ("shape", "dtype"):
            # JSON has no tuples, but a shape is printed as one.
            found, needed = (
                tuple(value) if key == "shape" else value
                for value in (saved[name][key], entry[key])
            )
            if found != needed:
                raise UserError(
                    f"{source}: {name} has {key} {found} there and {needed} in this "
                    "model; use the settings it was saved with"
                )
    if extra := next((name for name in saved if name not in expected), None):
        raise UserError(
            f"{source} has a tensor {extra} that this model does not have; it was "
            "saved with other settings"
        )


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Raises CorruptError for any error of the block, and silences Orbax's warnings.

    Errors that say nothing about the bytes stay what they are: a lack of memory or of
    permission.
    """
    level = ORBAX_LOGGER.level  # of the program that called us, restored at the end
    ORBAX_LOGGER.setLevel(SILENT)
    try:
        yield
    except (CorruptError, MemoryError):
        raise
    except PermissionError as error:
        raise UserError(f"cannot read {error.filename}: {reason(error)}") from error
    # Corrupt bytes raise errors of many types in Orbax, TensorStore and json.
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):  # XLA: no memory left on the device
            raise
        raise CorruptError(failure(error)) from error
    finally:
        ORBAX_LOGGER.setLevel(level)


def quiet_threads() -> contextlib.ExitStack:
    """Lets Orbax's threads print nothing about a failed save; close it to end this.

    They log each failure with its traceback, asyncio those that nobody waits for, at
    any later time; TensorStore's print one if the event loop ends before they do.
    `failure` has the reason.
    """
    ORBAX_LOGGER.setLevel(SILENT)
    logging.getLogger("asyncio").addFilter(_is_not_of_orbax)  # the same one once
    before = sys.unraisablehook

    def print_others(found: Any) -> None:
        if str(found.exc_value) != "Event loop is closed":
            before(found)

    sys.unraisablehook = print_others
    stack = contextlib.ExitStack()
    stack.callback(setattr, sys, "unraisablehook", before)
    return stack


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    trace = "".join(traceback.format_exception(error))
    return "orbax" not in record.getMessage() + trace


def failure(error: BaseException) -> str:
    """The reason of an error in one line, without what Orbax and TensorStore add."""
    if "No space left" in str(error):
        return "no space left on the disk"
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(found[1])).lower()
    while isinstance(error.__cause__, OSError):
        error = error.__cause__
    return reason(error)
