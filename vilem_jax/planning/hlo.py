"""Matrix products and collectives of a compiled program, counted from its HLO text.

XLA's own `cost_analysis` counts the body of a loop once, and every exp and erf as work.
Here a body counts as often as it runs, and only matrix products are work.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

# Bytes of an element if its name does not hold the number of bits, or holds another.
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
_TARGET = re.compile(r'custom_call_target="([^"]+)"')
# cuDNN's attention: products of queries and keys, and of probabilities and values;
# backward twice as many. That it computes the probabilities again is not counted.
_ATTENTION_PRODUCTS = {"__cudnn$fmhaSoftmax": 2, "__cudnn$fmhaSoftmaxBackward": 4}
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True)
class Instruction:
    shape: str  # as written: "f32[8,16]{1,0}" or a tuple of such
    opcode: str
    operands: tuple[str, ...]  # names of instructions
    attributes: str


Computation = dict[str, Instruction]  # by name


@dataclass(frozen=True)
class Collective:
    """One instruction that moves data between devices."""

    kind: str  # one of COLLECTIVES
    bytes: float  # per run and device: of what is reduced, or of what is gathered
    times: int  # runs per step
    in_loop: bool
    shape: str
    is_async: bool = False  # the device computes while the data move


@dataclass
class Program:
    """What one device does in one run of the program."""

    flops: float = 0.0  # of matrix products and convolutions
    num_products: int = 0  # instructions, not runs
    calls: Counter[str] = field(default_factory=Counter)  # runs of custom calls
    collectives: list[Collective] = field(default_factory=list)
    # Loops with any of the above and without a known number of runs: counted once.
    unknown_loops: int = 0


def read(text: str) -> Program:
    """Counts a module in HLO's text, as `compiled.as_text()` prints it.

    Raises:
      ValueError: the text is no HLO module.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if not line.startswith((" ", "}")) and (head := _HEAD.match(line)):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := _LINE.match(line)):
            current[found[1]] = _instruction(found[2])
    if not entry:
        raise ValueError("no ENTRY computation: this is no HLO module")
    program = Program()
    _count(computations, entry, 1, False, program)
    return program


def _instruction(text: str) -> Instruction:
    """The right side of `%name = shape opcode(operands), attributes`."""
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    opcode = text.partition("(")[0]
    end = _closing(text, len(opcode))
    operands = re.findall(r"%([\w.\-]+)", text[len(opcode) : end])
    return Instruction(shape, opcode, tuple(operands), text[end:])


def _closing(text: str, start: int) -> int:
    """The index after the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index + 1
    raise ValueError(f"no closing parenthesis in {text[:100]!r}")


def _count(
    computations: dict[str, Computation],
    name: str,
    times: int,
    in_loop: bool,
    program: Program,
) -> None:
    """Adds to `program` what computation `name` does when it runs `times` times."""
    instructions = computations[name]
    for one in instructions.values():
        kind = one.opcode.removesuffix("-start")
        if one.opcode in ("dot", "convolution"):
            count_flops = _dot_flops if one.opcode == "dot" else _convolution_flops
            program.num_products += 1
            program.flops += times * count_flops(one, instructions)
        elif kind in COLLECTIVES:
            size = _moved_bytes(one, kind, instructions)
            shape, is_async = _short_shape(one.shape), one.opcode.endswith("-start")
            program.collectives.append(
                Collective(kind, size, times, in_loop, shape, is_async)
            )
        elif one.opcode == "custom-call" and (target := _TARGET.search(one.attributes)):
            program.calls[target[1]] += times
            if target[1] in _ATTENTION_PRODUCTS:
                program.num_products += _ATTENTION_PRODUCTS[target[1]]
                program.flops += times * _attention_flops(one, target[1], instructions)
        for called in _called(one):
            is_loop = one.opcode == "while"
            known = _TRIPS.search(one.attributes) if is_loop else None
            trips = int(known[1]) if known else 1
            before = (program.num_products, len(program.collectives))
            _count(computations, called, times * trips, in_loop or trips > 1, program)
            has_work = (program.num_products, len(program.collectives)) != before
            program.unknown_loops += is_loop and not known and has_work


def _called(one: Instruction) -> Iterator[str]:
    """Names of the computations that an instruction runs."""
    yield from _CALLED.findall(one.attributes)
    if branches := _BRANCHES.search(one.attributes):
        yield from branches[1].replace("%", "").replace(" ", "").split(",")


# ---- sizes ----


def dims(shape: str) -> tuple[int, ...]:
    """ "bf16[8,16]{1,0}" -> (8, 16)."""
    found = _SHAPE.search(shape)
    return _numbers(found[2]) if found else ()


def num_bytes(shape: str) -> float:
    """Bytes of an array, or of all arrays of a tuple, without padding."""
    total = 0.0
    for kind, sizes in _SHAPE.findall(shape):
        size = _BYTES.get(kind)
        if size is None:  # f32, s8, f8e4m3fn: the first number is that of the bits
            bits = re.match(r"[a-z]+(\d+)", kind)
            size = int(bits[1]) / 8 if bits else 0  # a token holds no data
        total += size * math.prod(_numbers(sizes))
    return total


def _numbers(text: str) -> tuple[int, ...]:
    """ "8,16" -> (8, 16)."""
    return tuple(int(number) for number in text.split(",") if number)


def _short_shape(shape: str) -> str:
    """Without layouts; of a tuple the first array and the number of the others."""
    arrays = [f"{kind}[{sizes}]" for kind, sizes in _SHAPE.findall(shape)]
    more = f" and {len(arrays) - 1} more" if len(arrays) > 1 else ""
    return f"{arrays[0]}{more}" if arrays else "()"


def _moved_bytes(one: Instruction, kind: str, instructions: Computation) -> float:
    given = sum(num_bytes(instructions[name].shape) for name in one.operands)
    if kind != "all-gather":
        return given
    # An asynchronous one returns its operands beside its results.
    returned = num_bytes(one.shape)
    return returned - given if one.opcode.endswith("-start") else returned


# ---- work ----


def _dot_flops(one: Instruction, instructions: Computation) -> float:
    """2 x elements of the product x lengths of the axes that are summed over."""
    left = dims(instructions[one.operands[0]].shape)
    summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
    axes = _numbers(summed[1]) if summed else ()
    return 2.0 * math.prod(dims(one.shape)) * math.prod(left[axis] for axis in axes)


def _attention_flops(one: Instruction, name: str, instructions: Computation) -> float:
    """Queries [B, L, H, D], keys [B, S, H, D]: a product has 2 B H L S D."""
    query, key = (dims(instructions[operand].shape) for operand in one.operands[:2])
    return _ATTENTION_PRODUCTS[name] * 2.0 * math.prod(query) * key[1]


def _convolution_flops(one: Instruction, instructions: Computation) -> float:
    """2 x multiply-adds of real elements, not of padding or of a dilation's holes.

    TPUs write every matrix product as a convolution, and batched ones as a convolution
    over a padded, dilated batch, most of whose positions are holes.
    """
    left, kernel = (dims(instructions[name].shape) for name in one.operands[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    if not labels:
        raise ValueError(f"a convolution without dim_labels: {one.attributes[:100]!r}")
    of_left, of_kernel, of_product = labels.groups()
    groups = re.search(r"\bbatch_group_count=(\d+)", one.attributes)
    sums = kernel[of_kernel.index("i")] * kernel[of_kernel.index("o")]
    batch = left[of_left.index("b")] / (int(groups[1]) if groups else 1)
    total = 2.0 * sums * batch
    product = dims(one.shape)
    for axis, window in enumerate(_windows(one.attributes, len(product) - 2)):
        name = str(axis)
        length, taps = left[of_left.index(name)], kernel[of_kernel.index(name)]
        total *= _real_pairs(length, taps, product[of_product.index(name)], window)
    return total


def _windows(attributes: str, rank: int) -> Iterator[tuple[int, ...]]:
    """Stride, padding before, and both dilations of each spatial axis."""
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(re.findall(r"(\w+)=(\S+)", window[1])) if window else {}
    defaults = {"stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}
    # Of a padding "1_2" the first number is the one before.
    columns = [
        [int(number.split("_")[0]) for number in fields[name].split("x")]
        if name in fields
        else [int(default[0])] * rank
        for name, default in defaults.items()
    ]
    return zip(*columns, strict=True)


def _real_pairs(length: int, kernel: int, product: int, window: tuple[int, ...]) -> int:
    """Pairs of an output position and a kernel position that meet a real element.

    `window` is of `_windows`.
    """
    stride, pad, left_dilation, kernel_dilation = window
    dilated = (
        position * stride - pad + tap * kernel_dilation
        for tap in range(kernel)
        for position in range(product)
    )
    return sum(
        index % left_dilation == 0 and 0 <= index // left_dilation < length
        for index in dilated
    )
