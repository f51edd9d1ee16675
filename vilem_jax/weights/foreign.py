"""Where foreign weights lie: a folder or a file, safetensors, .npz or a pickle."""

import dataclasses
import os
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from vilem_jax.errors import UserError
from vilem_jax.typing import JsonObject
from vilem_jax.weights import folders, pickles
from vilem_jax.weights.folders import Tensors

KNOWN = (".safetensors", ".npz", *pickles.SUFFIXES)


@dataclass(frozen=True)
class TensorsInMemory(Tensors):
    """Tensors that were read whole: of a pickle or a .npz."""

    folder: Path
    arrays: Mapping[str, np.ndarray]

    @property
    def names(self) -> Collection[str]:
        return self.arrays.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.arrays[name].shape)

    def array(self, name: str) -> np.ndarray:
        return self.arrays[name]


@dataclass(frozen=True)
class Foreign:
    """Foreign weights, open for reading."""

    path: Path  # the folder or the file
    files: Tensors

    @property
    def folder(self) -> Path:
        """Where config.json and vocab.txt would lie."""
        return self.path if self.path.is_dir() else self.path.parent

    @cached_property
    def settings(self) -> JsonObject:
        """config.json; a UserError where there is none."""
        return folders.read_config(self.folder)


@dataclass(frozen=True)
class PartOf(Tensors):
    """The tensors of one tower, under the names it would have alone."""

    whole: Tensors
    own: Mapping[str, str]  # its name alone -> in the whole

    @property
    def folder(self) -> Path:
        return self.whole.folder

    @property
    def names(self) -> Collection[str]:
        return self.own.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.whole.shape(self.own[name])

    def array(self, name: str) -> np.ndarray:
        return self.whole.array(self.own[name])


def part_of(source: Foreign, names: Mapping[str, str], prefix: str) -> Foreign:
    """What stands below `prefix`, as a source of its own.

    Args:
      names: the table's spelling of each name -> the file's own.
    """
    own = {n.removeprefix(prefix): o for n, o in names.items() if n.startswith(prefix)}
    return dataclasses.replace(source, files=PartOf(source.files, own))


def open_foreign(name: str | os.PathLike, *, allow_pickle: bool = False) -> Foreign:
    """Opens a file, a folder or a hub name.

    Args:
      allow_pickle: whether .pth, .pt and .bin may be read, by torch's `weights_only`.

    Raises:
      UserError: nothing there, no weights in it, several that could be meant, a pickle
        that was not asked for, a corrupt file.
    """
    path = Path(name).expanduser()
    if os.fspath(name) and path.is_file():
        return Foreign(path, _open_file(path, allow_pickle))
    folder = folders.read_folder(
        name, also=("pytorch_model*.bin",) if allow_pickle else ()
    )
    return Foreign(folder, _open_folder(folder, allow_pickle))


def _open_folder(folder: Path, allow_pickle: bool) -> Tensors:
    if (folder / folders.WEIGHTS).is_file() or (folder / folders.INDEX).is_file():
        return folders.open_tensors(folder)
    files = sorted(path for path in folder.iterdir() if path.suffix in KNOWN)
    shards = [path for path in files if path.match("pytorch_model*.bin")]
    safe = [path for path in files if path.suffix not in pickles.SUFFIXES]
    found = safe or shards or files
    if not found:
        raise UserError(
            f"{folder} has no weights: none of its files ends in {', '.join(KNOWN)}"
        )
    if len(found) > 1 and found != shards:
        raise UserError(
            f"{folder} has several files of weights, {found[0].name} and "
            f"{found[1].name}: name the file that is meant"
        )
    if found != shards:
        return _open_file(found[0], allow_pickle)
    arrays: dict[str, np.ndarray] = {}
    for shard in shards:
        _check_allowed(shard, allow_pickle)
        arrays |= pickles.read_pickle(shard)
    return TensorsInMemory(folder, arrays)


def _open_file(path: Path, allow_pickle: bool) -> Tensors:
    if path.suffix == ".safetensors":
        return folders.open_file(path)
    if path.suffix == ".npz":
        return TensorsInMemory(path, _read_npz(path))
    if path.suffix not in pickles.SUFFIXES:
        raise UserError(
            f"{path} is no file of weights that is known: they end in "
            f"{', '.join(KNOWN)}"
        )
    _check_allowed(path, allow_pickle)
    return TensorsInMemory(path, pickles.read_pickle(path))


def _check_allowed(path: Path, allow_pickle: bool) -> None:
    if not allow_pickle:
        raise UserError(
            f"{path} is a pickle, which can run code when it is read: if you want it "
            "read, as tensors alone, say --allow-pickle, or in a config "
            "config.model.allow_pickle=True"
        )


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here: of a corrupt file NumPy would leave its own open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError):
        raise UserError(
            f"{path} cannot be read: it is corrupt or no .npz of plain arrays; get it "
            "again"
        ) from None
