"""Indexes of large data files: built once and stored as plain arrays."""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from vilem_jax.errors import UserError
from vilem_jax.files import read_errors, replacing
from vilem_jax.parsing import read_arrays

Arrays = Mapping[str, np.ndarray]


def load_or_build(
    data: Path, part: str, version: str, build: Callable[[], Arrays]
) -> dict[str, np.ndarray]:
    """The index of `data`, from its file or from `build`, which is then stored.

    The file is stored beside the data, or in the cache folder if that fails. If both
    fail, nothing is stored and the next run builds the index again.

    Args:
      data: the file or folder that is indexed.
      part: which of several indexes of `data`; part of a file name.
      version: what the index depends on; an index of another version is rebuilt.
      build: returns the arrays (no objects).
    """
    files = _index_files(data, part)
    for file in files:
        with suppress(UserError), read_errors(file):  # missing or corrupt
            stored = read_arrays(file)
            if str(stored.pop("version", "")) == version:
                return stored
    arrays = {key: np.asarray(value) for key, value in build().items()}
    for file in files:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as target:  # another run may read it meanwhile
                np.savez(target, allow_pickle=False, version=version, **arrays)
            break
    return arrays


def _index_files(data: Path, part: str) -> tuple[Path, Path]:
    """Beside `data`, and in the cache folder."""
    name = f"{data.name}.{part}.vilem-index.npz"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    # Two tars of one name in different folders must not share an index.
    folder = hashlib.sha256(str(data.resolve().parent).encode()).hexdigest()[:16]
    return data.parent / name, cache / "vilem_jax" / folder / name


def fingerprint(file: Path) -> str:
    """The size and modification time of `file`."""
    stat = file.stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"
