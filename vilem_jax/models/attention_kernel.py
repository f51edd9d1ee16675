"""Which kernel computes the ViT's attention on a device."""

import dataclasses
import re
from typing import Literal

import jax

from vilem_jax.config.schema import Config
from vilem_jax.errors import UserError

MIN_CAPABILITY = 8.0  # of NVIDIA GPUs: Ampere, the first with the kernel in bfloat16
MAX_HEAD_WIDTH = 128  # more needs capability 9.0


def resolve_here(config: Config) -> Config:
    """`resolve_for` the devices of this process."""
    device = jax.devices()[0]
    found = str(getattr(device, "compute_capability", ""))  # "gfx90a" on AMD's GPUs
    is_nvidia = device.platform == "gpu" and re.fullmatch(r"\d+\.\d+", found)
    capability = float(found) if is_nvidia else None
    return resolve_for(config, capability, repr(device.platform))


def resolve_for(config: Config, capability: float | None, kind: str) -> Config:
    """`config` with `compute.attention` "auto" replaced by the best kernel of a device.

    Args:
      capability: of the NVIDIA GPU; None for other devices.
      kind: of the device, for the error.

    Raises:
      UserError: `compute.attention` is "cudnn", which the device or the ViT cannot use.
    """
    attention = config.compute.attention
    if attention == "xla" or config.task == "editor":  # which has no image tower
        return config
    reason = _why_not_cudnn(config, capability, kind)
    if reason and attention == "cudnn":
        raise UserError(
            f"config.compute.attention='cudnn' {reason}: set it to 'auto' or 'xla'"
        )
    return with_attention(config, "xla" if reason else "cudnn")


def with_attention(config: Config, kernel: Literal["auto", "xla", "cudnn"]) -> Config:
    compute = dataclasses.replace(config.compute, attention=kernel)
    return dataclasses.replace(config, compute=compute)


def _why_not_cudnn(config: Config, capability: float | None, kind: str) -> str:
    """The end of a sentence on why the ViT cannot use cuDNN's attention, or ""."""
    vision, dtype = config.model.vision, config.compute.dtype
    head_width = vision.width // vision.num_heads
    if capability is None:
        return f"needs NVIDIA GPUs, and the device is of kind {kind}"
    if capability < MIN_CAPABILITY:
        return (
            f"needs NVIDIA GPUs of compute capability {MIN_CAPABILITY} or more, and "
            f"this one has {capability}"
        )
    if dtype != "bfloat16":
        return f"computes in bfloat16, and config.compute.dtype is {dtype}"
    if head_width > MAX_HEAD_WIDTH or head_width % 8:
        return (
            f"needs heads of at most {MAX_HEAD_WIDTH} values, a multiple of 8, and the "
            f"image tower's have {head_width}"
        )
    return ""
