"""Pickled checkpoints (.pth, .pt, .bin), read as tensors alone and only when asked.

A pickle can run code when it is read. torch's `weights_only` lets nothing but tensors
and plain values through. The only module that knows torch, and only when it must.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vilem_jax.errors import UserError

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
WRAPPERS = ("model", "state_dict")  # what training scripts keep the weights under
PARALLEL = "module."  # of torch's DistributedDataParallel


def read_pickle(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of a checkpoint, unwrapped from "model" or "state_dict".

    bfloat16 becomes float32. What stands beside the weights (optimizer, settings) is
    left out.

    Raises:
      UserError: no torch, a corrupt file, one that holds more than tensors and plain
        values, or no tensors by name.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            f"reading the pickle {path} needs PyTorch, which is not installed: pip "
            "install torch, or convert the file to safetensors where there is one"
        ) from None
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupt file has many faces
        raise UserError(_what_is_wrong(path, error)) from None
    for wrapper in WRAPPERS:
        if isinstance(stored, Mapping) and isinstance(stored.get(wrapper), Mapping):
            stored = stored[wrapper]
    is_named = isinstance(stored, Mapping) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor)
        for name, value in stored.items()
    )
    if not is_named or not stored:
        raise UserError(
            f"{path} holds no tensors by name, at the top or under "
            f"{' or '.join(map(repr, WRAPPERS))}: it is not a checkpoint of weights"
        )
    return {name.removeprefix(PARALLEL): _array(t) for name, t in stored.items()}


def _array(tensor) -> np.ndarray:
    is_brain_float = str(tensor.dtype) == "torch.bfloat16"  # NumPy has none
    return (tensor.float() if is_brain_float else tensor).detach().numpy()


def _what_is_wrong(path: Path, error: Exception) -> str:
    refused = re.search(r"unsupported (global|class)", str(error), re.IGNORECASE)
    if isinstance(error, pickle.UnpicklingError) and refused:
        return (
            f"{path} holds other Python objects beside tensors, which could run code, "
            "and is not read: where you trust it, save its tensors alone as safetensors"
        )
    return (
        f"{path} cannot be read: it is corrupt or no checkpoint of torch; get it again"
    )
