"""What a checkpoint holds: tensors by name, and how corrupt ones are found."""

import contextlib
import json
import logging
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from vilem_jax.errors import UserError
from vilem_jax.files import reason, replace_file

FILES_LIST = "files.json"
ORBAX_LOGGER = logging.getLogger("absl")
SILENT = logging.CRITICAL + 1
# Which field of the state holds which weights.
FIELDS = {"online": "params", "momentum": "momentum_params"}

Flat = dict[str, Any]  # dotted name -> array, or its shape and dtype
Entry = dict[str, Any]  # dtype, shape and crc32 of one tensor


class CorruptError(Exception):
    """A finished checkpoint whose bytes are not what was saved."""


def flatten(tree: Any) -> Flat:
    """Leaves by dotted name, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in leaves
    }
    if len(flat) < len(leaves):
        raise ValueError("two tensors of the state have one name")
    return flat


def nest(flat: Flat) -> dict[str | int, Any]:
    """{"layers.0.kernel": a} as {"layers": {0: {"kernel": a}}}."""
    nested: dict[str | int, Any] = {}
    for name, leaf in flat.items():
        *path, last = [int(p) if p.isdecimal() else p for p in name.split(".")]
        parent = nested
        for key in path:
            parent = parent.setdefault(key, {})
        parent[last] = leaf
    return nested


def placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and where it shall lie: by its own sharding, or a device here."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def no_elements(leaf: Any) -> jax.Array:
    return jax.device_put(np.zeros(leaf.shape, leaf.dtype), placed(leaf).sharding)


def shapes(flat: Flat) -> dict[str, Entry]:
    return {
        name: {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}
        for name, leaf in flat.items()
    }


def describe(flat: Flat) -> dict[str, Any]:
    """What `read_description` reads back and trusts."""
    tensors = shapes(flat)
    for name, crc in _checksums(flat).items():
        tensors[name]["crc32"] = crc
    return {"tensors": tensors, "crc32": zlib.crc32(_canonical(tensors))}


def _canonical(values: dict[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True).encode()


def _checksums(flat: Flat) -> dict[str, int]:
    """CRC-32 of every array's bytes, about 3 GB/s a core."""

    def checksum(leaf) -> int:
        array = np.ascontiguousarray(leaf)
        return zlib.crc32(array.reshape(-1).view(np.uint8).data)

    # What is split over processes is gathered by all of them, one after another.
    split = {name: checksum(_gathered(v)) for name, v in flat.items() if _is_split(v)}
    rest = {name: leaf for name, leaf in flat.items() if name not in split}
    with ThreadPoolExecutor(max_workers=4) as pool:
        sums = dict(zip(rest, pool.map(checksum, rest.values()), strict=True))
    return {name: (split | sums)[name] for name in flat}


def _is_split(leaf: Any) -> bool:
    is_array = isinstance(leaf, jax.Array)
    return is_array and not (leaf.is_fully_addressable or leaf.is_fully_replicated)


def _gathered(leaf: jax.Array) -> np.ndarray:
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def read_description(where: Path, part: str = "tensors") -> dict[str, Any]:
    """Name -> dtype, shape, crc32 of what a checkpoint holds; or its "metrics"."""
    with (
        corrupt_if_unreadable(),
        quiet(),
        ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader,
    ):
        description = reader.restore(where / "tensors")
        tensors = description["tensors"]
        if zlib.crc32(_canonical(tensors)) != description["crc32"]:
            raise CorruptError("its list of tensors is not what was saved")
    return tensors if part == "tensors" else description.get(part, {})


def read_fields(where: Path, fields: Iterable[str]) -> dict[str, Flat]:
    """Some fields of the state in a checkpoint.

    Returns:
      Field -> {name below it: array}; of a field that is one array the
      name is "".

    Raises:
      UserError: it has no such field.
      CorruptError: its bytes are not what was saved.
    """
    verify_files(where)
    saved = read_description(where)
    of_field = {
        field: [n for n in saved if n == field or n.startswith(f"{field}.")]
        for field in fields
    }
    for field, names in of_field.items():
        if not names:
            kind = {v: f"{k} weights" for k, v in FIELDS.items()}.get(field, field)
            raise UserError(f"{where} holds no {kind}")
    wanted = [name for names in of_field.values() for name in names]
    empty = {n: saved[n] for n in wanted if 0 in saved[n]["shape"]}
    stored = [name for name in wanted if name not in empty]  # see `save`
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    args = ocp.args.PyTreeRestore(
        dict.fromkeys(stored, 0),
        restore_args=dict.fromkeys(stored, as_numpy),
        partial_restore=True,
    )
    with (
        corrupt_if_unreadable(),
        quiet(),
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader,
    ):
        flat = reader.restore(where / "state", args=args)
    verify(flat, saved)
    flat |= {n: np.zeros(e["shape"], e["dtype"]) for n, e in empty.items()}
    return {
        field: {
            name.removeprefix(field).removeprefix("."): flat[name] for name in names
        }
        for field, names in of_field.items()
    }


def finished_steps(folder: Path) -> list[int]:
    """Finished checkpoints in `folder`; Orbax's name for unfinished ones is longer."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())


def list_files(checkpoint: Path) -> None:
    """Stores size and checksum of a written checkpoint's files beside them, so that
    corrupt files are found before Orbax prints a traceback for every tensor."""
    files = {
        str(file.relative_to(checkpoint)): [file.stat().st_size, _file_checksum(file)]
        for item in ("state", "tensors")
        for file in sorted((checkpoint / item).rglob("*"))
        if file.is_file()
    }
    listing = {"files": files, "crc32": zlib.crc32(_canonical(files))}
    replace_file(checkpoint / FILES_LIST, json.dumps(listing))


def verify_files(checkpoint: Path) -> None:
    """Raises CorruptError for the first file that is not what was written.

    Without a list the tensors' own checksums still speak, see `verify`.
    """
    file = checkpoint / FILES_LIST
    if not file.exists():
        return
    with corrupt_if_unreadable():
        listing = json.loads(file.read_text())
        if zlib.crc32(_canonical(listing["files"])) != listing["crc32"]:
            raise CorruptError(f"{FILES_LIST} is not what was saved")
        for name, (size, checksum) in listing["files"].items():
            if not (checkpoint / name).exists():
                raise CorruptError(f"{name} is missing")
            if (checkpoint / name).stat().st_size != size:
                raise CorruptError(f"{name} has another length than was saved")
            if _file_checksum(checkpoint / name) != checksum:
                raise CorruptError(f"{name} is not what was saved")


def _file_checksum(file: Path) -> int:
    checksum = 0
    with open(file, "rb") as stream:
        while block := stream.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum


def check_same(saved: dict[str, Any], wanted: Flat, where: Path) -> None:
    """Raises a UserError that names the first tensor that differs."""
    expected = shapes(wanted)
    for name, entry in expected.items():
        if name not in saved:
            raise UserError(
                f"{where} has no tensor {name}, which this model needs; it was saved "
                "with other settings"
            )
        for what in ("shape", "dtype"):
            if saved[name][what] != entry[what]:
                raise UserError(
                    f"{where}: {name} has {what} {_show(saved[name][what])} there and "
                    f"{_show(entry[what])} in this model; use the settings it was "
                    "saved with"
                )
    extra = next((name for name in saved if name not in expected), None)
    if extra:
        raise UserError(
            f"{where} has a tensor {extra} that this model does not know; it was saved "
            "with other settings"
        )


def _show(value: Any) -> str:
    return str(tuple(value)) if isinstance(value, list) else str(value)


def verify(flat: Flat, saved: dict[str, Entry]) -> None:
    """Raises CorruptError for the first tensor that is not what was saved."""
    for name, crc in _checksums(flat).items():
        if crc != saved[name]["crc32"]:
            raise CorruptError(f"{name} is not what was saved")


@contextlib.contextmanager
def corrupt_if_unreadable() -> Iterator[None]:
    """Raises CorruptError for every error of the block, except lack of memory or of
    permission, which say nothing about the bytes."""
    try:
        yield
    except (CorruptError, MemoryError):
        raise
    except PermissionError as error:
        raise UserError(f"cannot read {error.filename}: {reason(error)}") from error
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise CorruptError(failure(error)) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Orbax's warnings, for a reader inside somebody else's program."""
    before = ORBAX_LOGGER.level
    ORBAX_LOGGER.setLevel(SILENT)
    try:
        yield
    finally:
        ORBAX_LOGGER.setLevel(before)


def failure(error: BaseException) -> str:
    """What went wrong in one line, without Orbax's and TensorStore's wrapping."""
    if "No space left" in str(error):
        return "no space left on the disk"
    while error.__cause__ is not None and isinstance(error.__cause__, OSError):
        error = error.__cause__
    return reason(error)
