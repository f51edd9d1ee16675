"""Accelerators by name: their peak, bandwidth and memory, and how many of them."""

import difflib
import math
import os
import re
from dataclasses import dataclass, replace

import jax

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
_NVIDIA_PCIE = "published: NVIDIA data sheet, dense"
_WHITEPAPER = "published: NVIDIA whitepaper, dense, float32 sums"
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
    # GeForce: bfloat16 with float32 sums, dense. Appendix A of NVIDIA's whitepapers on
    # the architectures GA102 (Ampere), Ada and RTX Blackwell.
    "rtx3090": (71e12, 0.936e12, 24 * GB, _WHITEPAPER),
    "rtx4090": (165.2e12, 1.008e12, 24 * GB, _WHITEPAPER),
    "rtx5090": (209.5e12, 1.792e12, 32 * GB, _WHITEPAPER),
    # The data sheet of the L4 has 242 TFLOP/s with sparsity, which is twice the dense.
    "l4": (121e12, 0.3e12, 24 * GB, _NVIDIA_PCIE),
    "l40s": (362.05e12, 0.864e12, 48 * GB, _NVIDIA_PCIE),
    # Turing's matrix units have no bfloat16: XLA computes it in float32. Its 65 TFLOP/s
    # are float16's.
    "t4": (8.1e12, 0.32e12, 16 * GB, "published: NVIDIA data sheet, float32"),
    "v4": (275e12, 1.2e12, 32 * GIB, _GOOGLE),
    "v5e": (197e12, 0.82e12, 16 * GIB, _GOOGLE),
    "v5p": (459e12, 2.77e12, 95 * GIB, _GOOGLE),
    "v6e": (918e12, 1.64e12, 32 * GIB, _GOOGLE),
    "cpu": (None, None, None, "see `_cpu`"),
}
_CAPABILITIES = {  # NVIDIA's list of GPUs
    **{"h200": 9.0, "h100": 9.0, "a100": 8.0, "t4": 7.5, "l4": 8.9, "l40s": 8.9},
    **{"rtx3090": 8.6, "rtx4090": 8.9, "rtx5090": 12.0},
}
# Of an x86 core since 2013 (Intel) and 2019 (AMD): two units for 8 float32
# multiply-adds a cycle, by the vendors' optimization manuals; at 3 GHz. AVX-512 has up
# to twice that.
_CORE_PEAK = 2 * 8 * 2 * 3e9
# v6e computes 560 FLOP in the time of one byte, the most here: memory limits the step
# before half of the peak.
_GOALS = {"v6e": 0.35}
# Per kind of TPU: the axes of its topologies, and the units per chip. Google's slice
# names count TensorCores for v4 and v5p, two per chip, and chips for v5e and v6e.
_TPUS = {"v4": (3, 2), "v5e": (2, 1), "v5p": (3, 2), "v6e": (2, 1)}
# What JAX calls them, after "TPU ".
_TPU_NAMES = {
    **{"v5 lite": "v5e", "v5": "v5p", "v6 lite": "v6e"},
    **{kind: kind for kind in _TPUS},
}
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
    short = re.sub(r"rtx[ _-]*(?=\d{4})", "rtx", name.lower())
    kind = re.split("[-:]", short)[0]
    size = short.removeprefix(kind)  # "-16", ":4x4" or ""
    known = (
        f"{', '.join(kind for kind in _KINDS if kind not in _TPUS)} (a100-8 is eight), "
        f"{', '.join(f'{kind}-N' for kind in _TPUS)} as Google names slices, and "
        "topologies such as v5e:4x4 or v5p:2x2x1"
    )
    if kind not in _KINDS:
        (near,) = difflib.get_close_matches(kind, _KINDS, n=1, cutoff=0)
        raise UserError(
            f"there is no device {name!r}, the nearest known is {near}; known: {known}"
        )
    if kind == "cpu" and not size:
        return _cpu()
    device = Device(
        short,
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


def device_here() -> Device:
    """The devices that JAX finds on this machine.

    Raises:
      UserError: of a kind that is not known.
    """
    first, count = jax.devices()[0], jax.device_count()
    if first.platform == "cpu":
        return _cpu()
    words = re.sub(r"rtx\s*(?=\d{4})", "rtx", first.device_kind.lower())
    if first.platform == "tpu":
        kind = _TPU_NAMES.get(words.removeprefix("tpu "), words)
        return find_device(f"{kind}-{count * _TPUS.get(kind, (0, 1))[1]}")
    named = [kind for kind in _KINDS if kind in re.split(r"[\s-]", words)]
    if named:
        return find_device(f"{named[0]}-{count}" if count > 1 else named[0])
    (near,) = difflib.get_close_matches(words, _KINDS, n=1, cutoff=0)
    raise UserError(
        f"the plan does not know {first.device_kind!r}, the device of this machine; "
        f"the nearest known is --device={near}"
    )


def _cpu() -> Device:
    """This machine, whose cores compute one batch together."""
    cores = os.cpu_count() or 1
    memory = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    source = f"{cores} cores of 32 float32 FLOP a cycle (AVX2) at 3 GHz, published"
    return Device("cpu", "cpu", cores * _CORE_PEAK, None, memory, source)


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
