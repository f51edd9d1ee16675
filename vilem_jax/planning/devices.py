"""What can be rented, and how much of it a step may hope for."""

import difflib
import math
import re
from dataclasses import dataclass, replace

from vilem_jax.errors import UserError

GB = 1e9
GIB = 2.0**30


@dataclass(frozen=True)
class Device:
    """One kind of chip, and how many of them.

    `peak` and `bandwidth` are measured where `source` says so, else published, which
    no program reaches.
    """

    name: str
    kind: str  # of the table below
    peak: float | None  # bfloat16 matrix products, FLOP/s; None: not known
    bandwidth: float | None  # of its memory, bytes/s
    memory: float | None  # bytes
    source: str
    goal: float = 0.5  # fraction of `peak` that the step should reach
    is_measured: bool = False
    num_chips: int = 1
    topology: str = ""  # of TPUs, as their compiler names it; "" without one

    @property
    def is_tpu(self) -> bool:
        return self.kind in _CORES_A_CHIP


_NVIDIA = "published: NVIDIA data sheet, dense, SXM"
_GOOGLE = "published: Google Cloud TPU documentation"
_KINDS = {
    "h200": Device(
        "h200",
        "h200",
        790e12,
        4.3e12,
        141 * GB,
        "measured: bfloat16 product of 8192 x 8192, copy of 8 GB (published: 989 "
        "TFLOP/s, 4.8 TB/s); memory published",
        is_measured=True,
    ),
    "h100": Device("h100", "h100", 989e12, 3.35e12, 80 * GB, _NVIDIA),
    "a100": Device("a100", "a100", 312e12, 2.04e12, 80 * GB, f"{_NVIDIA}, 80 GB"),
    "v4": Device("v4", "v4", 275e12, 1.2e12, 32 * GIB, _GOOGLE),
    "v5e": Device("v5e", "v5e", 197e12, 0.82e12, 16 * GIB, _GOOGLE),
    "v5p": Device("v5p", "v5p", 459e12, 2.77e12, 95 * GIB, _GOOGLE),
    # 918 TFLOP/s at 1.6 TB/s: the step is held back by memory before half of it.
    "v6e": Device("v6e", "v6e", 918e12, 1.64e12, 32 * GIB, _GOOGLE, goal=0.35),
    "cpu": Device("cpu", "cpu", None, None, None, "not known: no prediction"),
}
# Google's names count TensorCores of v4 and v5p, two a chip, and chips of v5e and v6e.
_CORES_A_CHIP = {"v4": 2, "v5e": 1, "v5p": 2, "v6e": 1}
_SLICES = {
    2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: (
        *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
        *("8x8x8", "8x8x16", "8x16x16"),
    ),
}
_AXES = {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2}


def find_device(name: str) -> Device:
    """A device by name: "a100", "a100-32" (so many), "v5e-16", "v5e:4x4".

    Raises:
      UserError: no such kind, or no such slice of TPUs.
    """
    kind, mark, size = re.fullmatch(r"([^-:]*)([-:]?)(.*)", name.lower()).groups()
    if kind not in _KINDS:
        near = difflib.get_close_matches(kind, _KINDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"there is no device {name!r}; {hint}known: {known_devices()}")
    device = replace(_KINDS[kind], name=name.lower())
    if device.is_tpu:
        return _slice(device, mark, size)
    if not mark:
        return device
    is_count = mark == "-" and size.isdecimal() and int(size) > 0 and kind != "cpu"
    if not is_count:
        raise UserError(f"there is no device {name!r}; known: {known_devices()}")
    return replace(device, num_chips=int(size))


def known_devices() -> str:
    names = [name for name in _KINDS if name not in _CORES_A_CHIP]
    slices = [f"{kind}-N" for kind in _CORES_A_CHIP]
    return (
        f"{', '.join(names)} (a100-8 is eight), {', '.join(slices)} as Google names "
        "slices, and topologies such as v5e:4x4 or v5p:2x2x1"
    )


def _slice(device: Device, mark: str, size: str) -> Device:
    kind, axes = device.kind, _AXES[device.kind]
    if mark == ":" and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        sides = [int(side) for side in size.split("x")]
        if len(sides) == axes:
            return replace(
                device, num_chips=math.prod(sides), topology=f"{kind}:{size}"
            )
    by_name = {
        _chips(sides) * _CORES_A_CHIP[kind]: f"{kind}:{sides}"
        for sides in _SLICES[axes]
    }
    if mark == "-" and size.isdecimal() and int(size) in by_name:
        topology = by_name[int(size)]
        chips = _chips(topology.partition(":")[2])
        return replace(device, num_chips=chips, topology=topology)
    names = ", ".join(f"{kind}-{number}" for number in by_name)
    example = f"{kind}:{_SLICES[axes][3]}"
    raise UserError(
        f"there is no slice {device.name!r}; known: {names}, or a topology of {axes} "
        f"sides such as {example}"
    )


def _chips(sides: str) -> int:
    return math.prod(int(side) for side in sides.split("x"))
