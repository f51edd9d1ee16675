"""Matrix products and collectives of a compiled program, counted from its HLO text.

`cost_analysis` counts the body of a loop once and every exp and erf as work; here a
body counts as often as it runs, and only what a matrix unit does is work.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

# Bytes of an element; what stands under none of these names (tokens) holds no data.
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16}
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_LINE = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True)
class Instruction:
    name: str
    shape: str  # as written: "f32[8,16]{1,0}" or a tuple of such
    opcode: str
    operands: tuple[str, ...]
    attributes: str


@dataclass(frozen=True)
class Collective:
    """One instruction that moves data between devices."""

    kind: str  # one of COLLECTIVES
    bytes: float  # of one run, on one device: what is reduced, or what is gathered
    times: int  # how often it runs a step
    in_loop: bool
    shape: str


@dataclass
class Program:
    """What one device does in one run of the program."""

    dot_flops: float = 0.0
    convolution_flops: float = 0.0
    num_products: int = 0  # instructions, not runs
    collectives: list[Collective] = field(default_factory=list)
    # Loops that hold any of the above and do not say how often they run: counted once.
    unknown_loops: int = 0

    @property
    def flops(self) -> float:
        return self.dot_flops + self.convolution_flops

    def collective_bytes(self, kind: str | None = None) -> float:
        """Bytes a step in collectives of this kind, or in all."""
        return sum(
            one.bytes * one.times
            for one in self.collectives
            if kind is None or one.kind == kind
        )


def read(text: str) -> Program:
    """Counts a module in HLO's text, as `compiled.as_text()` prints it."""
    computations, entry = parse(text)
    program = Program()
    _visit(computations, entry, 1, False, program)
    return program


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Computations by name, each its instructions by name; and the entry's name."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, here = "", None
    for line in text.splitlines():
        if not line.startswith((" ", "}")) and (head := _HEAD.match(line)):
            here = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            here = None
        elif here is not None and (found := _LINE.match(line)):
            instruction = _instruction(found[1], found[2])
            here[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation: this is no HLO module")
    return computations, entry


def _instruction(name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing(rest, len(opcode))
    operands = re.findall(r"%([\w.\-]+)", rest[len(opcode) : end])
    return Instruction(name, shape, opcode, tuple(operands), rest[end:])


def _closing(text: str, start: int) -> int:
    """The index after the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index + 1
    raise ValueError(f"no closing parenthesis in {text[:100]!r}")


def _visit(computations, name: str, times: int, in_loop: bool, program: Program):
    """Adds what computation `name` does when it runs `times` times."""
    instructions = computations[name]
    for one in instructions.values():
        kind = one.opcode.removesuffix("-start")
        if one.opcode == "dot":
            program.num_products += 1
            program.dot_flops += times * dot_flops(one, instructions)
        elif one.opcode == "convolution":
            program.num_products += 1
            program.convolution_flops += times * convolution_flops(one, instructions)
        elif kind in COLLECTIVES:
            size = _moved_bytes(one, kind, instructions)
            program.collectives.append(
                Collective(kind, size, times, in_loop, short_shape(one.shape))
            )
        for called, is_loop in _called(one):
            trips = 1
            if is_loop:
                found = _TRIPS.search(one.attributes)
                trips = int(found[1]) if found else 1
            before = (program.num_products, len(program.collectives))
            _visit(computations, called, times * trips, in_loop or trips > 1, program)
            after = (program.num_products, len(program.collectives))
            if is_loop and not found and after != before:
                program.unknown_loops += 1


def _called(one: Instruction) -> Iterator[tuple[str, bool]]:
    """Names of the computations that an instruction runs; whether it is a loop."""
    for name in _CALLED.findall(one.attributes):
        yield name, one.opcode == "while"
    if branches := _BRANCHES.search(one.attributes):
        for name in branches[1].replace("%", "").split(","):
            yield name.strip(), False


# ---- sizes ----


def dims(shape: str) -> tuple[int, ...]:
    """ "bf16[8,16]{1,0}" -> (8, 16)."""
    found = _SHAPE.search(shape)
    return tuple(int(n) for n in found[2].split(",") if n) if found else ()


def num_bytes(shape: str) -> float:
    """Of an array, or of all arrays of a tuple, without padding."""
    total = 0.0
    for kind, sizes in _SHAPE.findall(shape):
        each = _BYTES.get(kind)
        if each is None:  # f32, s8, f8e4m3fn: the number of bits comes first
            bits = re.match(r"[a-z]+(\d+)", kind)
            each = int(bits[1]) / 8 if bits else 0
        total += each * math.prod(int(n) for n in sizes.split(",") if n)
    return total


def short_shape(shape: str) -> str:
    """Without layouts; of a tuple the first array and the number of all."""
    arrays = [f"{kind}[{sizes}]" for kind, sizes in _SHAPE.findall(shape)]
    more = f" and {len(arrays) - 1} more" if len(arrays) > 1 else ""
    return f"{arrays[0]}{more}" if arrays else "()"


def _moved_bytes(one: Instruction, kind: str, instructions) -> float:
    given = sum(num_bytes(instructions[name].shape) for name in one.operands)
    if kind != "all-gather":
        return given
    made = num_bytes(one.shape)
    # An asynchronous one hands its operands on beside its results.
    return made - given if one.opcode.endswith("-start") else made


# ---- work ----


def dot_flops(one: Instruction, instructions) -> float:
    """2 x elements of the product x length of what is summed over."""
    left = dims(instructions[one.operands[0]].shape)
    summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
    lengths = [left[int(n)] for n in summed[1].split(",") if n] if summed else []
    return 2.0 * math.prod(dims(one.shape)) * math.prod(lengths)


def convolution_flops(one: Instruction, instructions) -> float:
    """Multiply-adds of elements that are there, not of padding or dilation's holes.

    TPUs write every matrix product as a convolution; batched ones as a convolution
    over a padded, dilated batch, most of whose places are holes.
    """
    left, kernel = (dims(instructions[name].shape) for name in one.operands[:2])
    product = dims(one.shape)
    names = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    of_left, of_kernel, of_product = names[1], names[2], names[3]
    groups = _number(one.attributes, "batch_group_count")
    sums = kernel[of_kernel.index("i")] * kernel[of_kernel.index("o")]
    total = 2.0 * sums * left[of_left.index("b")] / groups
    for number, window in enumerate(_windows(one.attributes, len(product) - 2)):
        axis = str(number)
        total *= _valid_places(
            left[of_left.index(axis)],
            kernel[of_kernel.index(axis)],
            product[of_product.index(axis)],
            **window,
        )
    return total


def _number(attributes: str, name: str) -> int:
    found = re.search(rf"\b{name}=(\d+)", attributes)
    return int(found[1]) if found else 1


def _windows(attributes: str, rank: int) -> list[dict[str, int]]:
    """Stride, padding before and both dilations of each spatial axis."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in found[1].split()) if found else {}

    def values(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * rank

    return [
        {
            "stride": int(stride),
            "pad": int(pad.split("_")[0]),
            "left_dilation": int(left_dilation),
            "kernel_dilation": int(kernel_dilation),
        }
        for stride, pad, left_dilation, kernel_dilation in zip(
            values("stride", "1"),
            values("pad", "0_0"),
            values("lhs_dilate", "1"),
            values("rhs_dilate", "1"),
            strict=True,
        )
    ]


def _valid_places(
    length: int,
    kernel: int,
    product: int,
    *,
    stride: int,
    pad: int,
    left_dilation: int,
    kernel_dilation: int,
) -> int:
    """How many pairs of an output place and a kernel place meet a real element."""
    count = 0
    for tap in range(kernel):
        for place in range(product):
            at = place * stride - pad + tap * kernel_dilation
            count += at % left_dilation == 0 and 0 <= at // left_dilation < length
    return count
