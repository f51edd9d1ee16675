"""What is read is what was written: checksums of bytes and files, finite numbers."""

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vilem_jax.errors import UserError
from vilem_jax.files import replace_file
from vilem_jax.typing import JsonObject

LISTING = "files.json"  # of a folder: {name: [size, checksum]}


def checksum(content: bytes | memoryview, before: int = 0) -> int:
    """CRC-32 of `content`, after content whose checksum is `before`."""
    return zlib.crc32(content, before)


def list_files(folder: Path, parts: Sequence[str] = (".",)) -> None:
    """Stores size and checksum of each file of `folder`, or of its `parts`, in it."""
    files = {
        file.relative_to(folder).as_posix(): [file.stat().st_size, _of_file(file)]
        for part in parts
        for file in sorted((folder / part).rglob("*"))
        if file.is_file() and file != folder / LISTING
    }
    listing = {"files": files, "crc32": _of_json(files)}
    replace_file(folder / LISTING, json.dumps(listing))


def find_problems(folder: Path, *, but: str = "") -> Iterator[str]:
    """A sentence for each file in the listing that is not what was written.

    Args:
      but: a name that is not compared.

    Raises:
      OSError: a file cannot be read.
    """
    try:
        listing = json.loads((folder / LISTING).read_text(encoding="utf-8"))
        files = listing["files"]
        if _of_json(files) != listing["crc32"]:
            raise ValueError("crc32")
    except FileNotFoundError:
        yield f"{LISTING} is missing"
        return
    except (ValueError, KeyError, TypeError):
        yield f"{LISTING} is not what was saved"
        return
    for name, (size, expected) in files.items():
        file = folder / name
        if name == but:
            continue
        if not file.is_file():
            yield f"{name} is missing"
        elif file.stat().st_size != size:
            yield f"{name} has another length than was saved"
        elif _of_file(file) != expected:
            yield f"{name} is not what was saved"


def check_finite(name: str, array: np.ndarray, source: str | Path) -> np.ndarray:
    """`array`, a tensor of weights; raises UserError if it holds NaN or infinity."""
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise UserError(
            f"the tensor {name} in {source} holds NaN or infinity: these weights are "
            "of no use, get or train them again"
        )
    return array


def _of_json(values: JsonObject) -> int:
    # Sorted: a reader need not keep the order of the keys.
    return checksum(json.dumps(values, sort_keys=True).encode())


def _of_file(file: Path) -> int:
    found = 0
    with open(file, "rb") as stream:
        while block := stream.read(1 << 24):  # 16 MB: a file may exceed the memory
            found = checksum(block, found)
    return found
