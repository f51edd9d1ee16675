"""Accelerators by name: their peak, bandwidth and memory, and how many of them."""

import difflib
import math
import re
from dataclasses import dataclass, replace

from vilem_jax.errors import UserError

GB = 1e9
GIB = 2.0**30


@dataclass(frozen=True)
class Device:
    """A kind of chip and the number of chips.

    `peak` and `bandwidth` are measured if `is_measured`, else published, which no
    program reaches.
    """

    name: str
    kind: str  # a key of `_KINDS`
    peak: float | None  # FLOP/s of bfloat16 matrix products; None: unknown
    bandwidth: float | None  # of its memory, bytes/s
    memory: float | None  # bytes
    source: str
    goal: float = 0.5  # fraction of `peak` that the step should reach
    is_measured: bool = False
    num_chips: int = 1
    topology: str = ""  # of TPUs, in the compiler's spelling: "v5e:4x4"

    @property
    def capability(self) -> float | None:
        """The compute capability of an NVIDIA GPU; None for other devices."""
        return _CAPABILITIES.get(self.kind)

    @property
    def is_tpu(self) -> bool:
        return self.kind in _TPUS


_NVIDIA = "published: NVIDIA data sheet, dense, SXM"
_GOOGLE = "published: Google Cloud TPU documentation"
# Per kind: peak, bandwidth, memory and where they come from.
_KINDS = {
    "h200": (
        *(790e12, 4.3e12, 141 * GB),
        "measured: bfloat16 product of 8192 x 8192, copy of 8 GB (published: 989 "
        "TFLOP/s, 4.8 TB/s); memory published",
    ),
    "h100": (989e12, 3.35e12, 80 * GB, _NVIDIA),
    "a100": (312e12, 2.04e12, 80 * GB, f"{_NVIDIA}, 80 GB"),
    "v4": (275e12, 1.2e12, 32 * GIB, _GOOGLE),
    "v5e": (197e12, 0.82e12, 16 * GIB, _GOOGLE),
    "v5p": (459e12, 2.77e12, 95 * GIB, _GOOGLE),
    "v6e": (918e12, 1.64e12, 32 * GIB, _GOOGLE),
    "cpu": (None, None, None, "not known: no prediction"),
}
_CAPABILITIES = {"h200": 9.0, "h100": 9.0, "a100": 8.0}  # NVIDIA's list of GPUs
# v6e computes 560 FLOP in the time of one byte, the most here: memory limits the step
# before half of the peak.
_GOALS = {"v6e": 0.35}
# Per kind of TPU: the axes of its topologies, and the units per chip. Google's slice
# names count TensorCores for v4 and v5p, two per chip, and chips for v5e and v6e.
_TPUS = {"v4": (3, 2), "v5e": (2, 1), "v5p": (3, 2), "v6e": (2, 1)}
_SLICES = {  # the shapes that Google rents, by the number of axes
    2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: (
        *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
        *("8x8x8", "8x8x16", "8x16x16"),
    ),
}


def find_device(name: str) -> Device:
    """A device by name: "a100", "a100-32" (32 chips), "v5e-16", "v5e:4x4".

    Raises:
      UserError: the kind, or the slice of TPUs, is unknown.
    """
    kind = re.split("[-:]", name.lower())[0]
    size = name.lower().removeprefix(kind)  # "-16", ":4x4" or ""
    known = (
        f"{', '.join(kind for kind in _KINDS if kind not in _TPUS)} (a100-8 is eight), "
        f"{', '.join(f'{kind}-N' for kind in _TPUS)} as Google names slices, and "
        "topologies such as v5e:4x4 or v5p:2x2x1"
    )
    if kind not in _KINDS:
        near = difflib.get_close_matches(kind, _KINDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"there is no device {name!r}; {hint}known: {known}")
    device = Device(
        name.lower(),
        kind,
        *_KINDS[kind],
        goal=_GOALS.get(kind, 0.5),
        is_measured=kind == "h200",
    )
    if device.is_tpu:
        return _slice(device, size)
    if not size:
        return device
    if kind == "cpu" or not re.fullmatch(r"-0*[1-9]\d*", size):
        raise UserError(f"there is no device {name!r}; known: {known}")
    return replace(device, num_chips=int(size[1:]))


def _slice(device: Device, size: str) -> Device:
    """The TPU slice of a size in Google's count ("-16") or of a topology (":4x4")."""
    kind = device.kind
    num_axes, units_per_chip = _TPUS[kind]
    shapes = {f"-{_product(s) * units_per_chip}": s for s in _SLICES[num_axes]}
    sides = shapes.get(size, size.removeprefix(":"))
    if not re.fullmatch(num_axes * r"x[1-9]\d*", f"x{sides}"):
        names = ", ".join(f"{kind}{size}" for size in shapes)
        example = f"{kind}:{_SLICES[num_axes][3]}"
        raise UserError(
            f"there is no slice {device.name!r}; known: {names}, or a topology of "
            f"{num_axes} sides such as {example}"
        )
    return replace(device, num_chips=_product(sides), topology=f"{kind}:{sides}")


def _product(sides: str) -> int:
    """ "4x4x8" -> 128."""
    return math.prod(map(int, sides.split("x")))
