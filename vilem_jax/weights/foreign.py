"""Foreign weights opened: a folder or a file, safetensors, .npz or a pickle."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from vilem_jax.errors import UserError
from vilem_jax.files import read_errors
from vilem_jax.parsing import read_arrays
from vilem_jax.weights import folders, pickles
from vilem_jax.weights.folders import Tensors, tensors_in_memory

KNOWN = (".safetensors", ".npz", *pickles.SUFFIXES)


def open_checkpoint(name: str | os.PathLike, *, allow_pickle: bool = False) -> Tensors:
    """Opens a file, a folder or a hub name.

    Args:
      allow_pickle: whether .pth, .pt and .bin may be read, by torch's `weights_only`.

    Raises:
      UserError: nothing there, no weights in it, several files of weights, a pickle
        without `allow_pickle`, a corrupt file.
    """
    path = Path(name).expanduser()
    if os.fspath(name) and path.is_file():
        return _unwrapped(_open_file(path, allow_pickle))
    pickled = ("pytorch_model*.bin",) if allow_pickle else ()
    folder = folders.read_folder(name, also=pickled)
    return _unwrapped(replace(_open_folder(folder, allow_pickle), path=folder))


def _unwrapped(tensors: Tensors) -> Tensors:
    """Without the names that torch's wrappers add: data parallel, compiled, sharded."""

    def plain(name: str) -> str:
        name = name.replace("_orig_mod.", "").replace("_fsdp_wrapped_module.", "")
        return name.removeprefix("module.")

    stored = {plain(name): tensor for name, tensor in tensors.stored.items()}
    if len(stored) < len(tensors.stored):
        raise UserError(f"{tensors.path} holds a tensor with and without a wrapper")
    return replace(tensors, stored=stored)


def _open_folder(folder: Path, allow_pickle: bool) -> Tensors:
    if (folder / folders.WEIGHTS).is_file() or (folder / folders.INDEX).is_file():
        folders.verify(folder)
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
            f"{found[1].name}: name one of the files"
        )
    if found != shards:
        return _open_file(found[0], allow_pickle)
    arrays: dict[str, np.ndarray] = {}
    for shard in shards:
        _check_allowed(shard, allow_pickle)
        arrays |= pickles.read_pickle(shard)
    return tensors_in_memory(folder, arrays)


def _open_file(path: Path, allow_pickle: bool) -> Tensors:
    if path.suffix == ".safetensors":
        return folders.open_file(path)
    if path.suffix == ".npz":
        why = "it is corrupt or no .npz of plain arrays; get it again"
        with read_errors(path, corrupt=f"{path} cannot be read: {why}"):
            return tensors_in_memory(path, read_arrays(path))
    if path.suffix not in pickles.SUFFIXES:
        raise UserError(
            f"{path} is not a known file of weights: they end in {', '.join(KNOWN)}"
        )
    _check_allowed(path, allow_pickle)
    return tensors_in_memory(path, pickles.read_pickle(path))


def _check_allowed(path: Path, allow_pickle: bool) -> None:
    if not allow_pickle:
        raise UserError(
            f"{path} is a pickle, which can run code when it is read: to read it, as "
            "tensors alone, give --allow-pickle, or in a config "
            "config.model.allow_pickle=True"
        )
