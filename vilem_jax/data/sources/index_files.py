"""Indexes of large files: built once, stored as plain arrays, found again."""

import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from vilem_jax.files import replacing

Arrays = Mapping[str, np.ndarray]


def load_or_build(
    data: Path, part: str, version: str, build: Callable[[], Arrays]
) -> dict[str, np.ndarray]:
    """The index of `data`, from its file or from `build`, which is then stored.

    The file lies beside the data, or in the cache folder where that cannot be written;
    where neither can, nothing is stored and the next run builds again.

    Args:
      data: the file or folder that is indexed.
      part: tells several indexes of one file apart; part of a file name.
      version: what the index depends on; one of another version is built anew.
      build: makes the arrays (no objects).
    """
    files = index_places(data, part)
    for file in files:
        if (arrays := _load(file, version)) is not None:
            return arrays
    arrays = {key: np.asarray(value) for key, value in build().items()}
    for file in files:
        try:
            _store(file, version, arrays)
            break
        except OSError:
            continue
    return arrays


def index_places(data: Path, part: str) -> tuple[Path, Path]:
    """Where the index of `data` may lie: beside it, or in the cache folder."""
    name = f"{data.name}.{part}.vilem-index.npz"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    # Two tars of one name in different folders must not share an index.
    where = hashlib.sha256(str(data.resolve().parent).encode()).hexdigest()[:16]
    return (
        data.parent / name,
        Path(cache).expanduser() / "vilem_jax" / where / name,
    )


def fingerprint(file: Path) -> str:
    """Changes when the file does: its size and time of change."""
    stat = file.stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def _load(file: Path, version: str) -> dict[str, np.ndarray] | None:
    try:
        with open(file, "rb") as opened, np.load(opened) as stored:
            arrays = dict(stored)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None  # absent, or cut short by hand: build it again
    return arrays if str(arrays.pop("version", "")) == version else None


def _store(file: Path, version: str, arrays: Arrays) -> None:
    """All or nothing: another run may read while this one writes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as target:
        np.savez(target, version=np.array(version), **arrays)
