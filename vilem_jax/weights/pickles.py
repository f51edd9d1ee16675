"""Pickled checkpoints (.pth, .pt, .bin), read as tensors alone and only when asked.

A pickle can run code when it is read. torch's `weights_only` accepts nothing but
tensors and plain values. No other module imports torch.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vilem_jax.errors import UserError

if TYPE_CHECKING:
    import torch

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
WRAPPERS = ("model", "state_dict")  # keys under which training scripts store weights
SAFE_TORCH = (2, 6)  # `weights_only` of earlier ones runs code: CVE-2025-32434


def read_pickle(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of a checkpoint, unwrapped from "model" or "state_dict".

    bfloat16 becomes float32. Entries beside the weights (optimizer, settings) are left
    out.

    Raises:
      UserError: torch is missing, the file is corrupt, it holds other objects than
        tensors and plain values, or no tensors by name.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            f"reading the pickle {path} needs PyTorch, which is not installed: pip "
            "install torch, or convert the file to safetensors on a machine that has it"
        ) from None
    version = torch.__version__
    if tuple(map(int, version.split(".")[:2])) < SAFE_TORCH:
        raise UserError(
            f"PyTorch {version} runs code of a prepared pickle even when it reads "
            "tensors alone (CVE-2025-32434): install torch 2.6 or newer, or convert "
            f"{path} to safetensors"
        )
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # corrupt files raise errors of many types
        raise UserError(_explain(path, error)) from None
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
    return {name: _array(tensor) for name, tensor in stored.items()}


def _array(tensor: "torch.Tensor") -> np.ndarray:
    is_bfloat16 = str(tensor.dtype) == "torch.bfloat16"  # NumPy has none
    return (tensor.float() if is_bfloat16 else tensor).detach().numpy()


def _explain(path: Path, error: Exception) -> str:
    refused = re.search(r"unsupported (global|class)", str(error), re.IGNORECASE)
    if isinstance(error, pickle.UnpicklingError) and refused:
        return (
            f"{path} holds other Python objects beside tensors, which could run code, "
            "and is not read: if you trust it, save its tensors alone as safetensors"
        )
    return (
        f"{path} cannot be read: it is corrupt or not a torch checkpoint; get it again"
    )
