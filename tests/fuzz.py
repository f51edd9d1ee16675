"""Mutants of intact files: every parser reads them or refuses them in a sentence.

    python tests/fuzz.py --mutants=500 [PARSER ...]

A mutant is cut, or has bytes flipped, inserted, deleted, repeated or swapped. Any
exception but a UserError of one line is reported, and so is a parser that takes more
than ten seconds, or that accepts a mutant with other values though its format has
checksums. The same seed gives the same mutants.
"""

import argparse
import contextlib
import dataclasses
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.intact_files import PARSERS
from vilem_jax.errors import UserError

SECONDS = 10  # for one mutant
# What is inserted beside random bytes: what parsers stumble over.
ODD = (
    *(b"NaN", b"-Infinity", b"1e400", b"7" * 5000, b"[" * 5000, b'{"a":' * 5000),
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\r", b"\n\n", b"null"),
    *(b'"', b"\\ud800", b"../", b"true", b"-1", b"999999999", b",", b"}", b"{}"),
)


class Hang(BaseException):
    """A parser took too long; no Exception, so that no parser catches it."""


def mutant(content: bytes, rng: random.Random) -> bytes:
    """`content` with one to three changes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        first, second = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        second = min(second, first + 2 ** rng.randrange(12))
        kind = rng.choice(("cut", "flip", "insert", "delete", "repeat", "swap", "swap"))
        if kind == "cut":
            del data[first:]
        elif kind == "flip" and data:
            for _ in range(rng.choice((1, 1, 4, 32))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == "insert":
            data[first:first] = rng.choice((*ODD, rng.randbytes(rng.randrange(1, 9))))
        elif kind == "delete":
            del data[first:second]
        elif kind == "repeat":
            data[first:first] = data[first:second] * rng.choice((1, 2, 9))
        elif kind == "swap":
            data = bytearray(_swapped(bytes(data), rng))
    return bytes(data)


def _swapped(content: bytes, rng: random.Random) -> bytes:
    """Two fields exchanged, or one put in the place of the other."""
    parts = re.split(rb'([":,{}\[\]\n]+)', content)
    fields = range(0, len(parts), 2)
    first, second = rng.choice(fields), rng.choice(fields)
    odd = rng.choice((parts[second], parts[second], *ODD))
    parts[first], parts[second] = odd, rng.choice((parts[first], parts[second]))
    return b"".join(parts)


# ---- the loop ----


@dataclasses.dataclass
class Report:
    """What became of the mutants of one parser."""

    outcomes: Counter[str]
    faults: list[str]  # number of the mutant and what went wrong
    slowest: float  # seconds


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_):
        raise Hang(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(name: str, mutants: int, folder: Path, *, seed: int = 0) -> Report:
    """Reads `mutants` mutants of the file of parser `name`, made in `folder`."""
    parser = PARSERS[name]
    file = parser.make(folder)
    intact = file.read_bytes()
    expected = repr(parser.read(file))
    report = Report(Counter(), [], 0.0)
    for number in range(mutants):
        content = mutant(intact, random.Random(f"{seed} {name} {number}"))
        file.write_bytes(content)
        started = time.monotonic()
        try:
            with _limited():
                found = repr(parser.read(file))
            outcome, fault = "accepted", ""
            if parser.is_sealed and found != expected:
                outcome, fault = "changed", "accepted with other values"
        except UserError as error:
            outcome, fault = "refused", ""
            if "\n" in str(error):
                outcome, fault = "traceback", f"not a sentence: {error}"
        except BaseException:  # also of Rust, and Hang
            outcome, fault = "traceback", traceback.format_exc()
        report.outcomes[outcome] += 1
        report.slowest = max(report.slowest, time.monotonic() - started)
        if fault:
            report.faults.append(f"{name}, mutant {number}: {fault}")
    return report


def main() -> int:
    options = argparse.ArgumentParser(description="Reads mutants of intact files.")
    options.add_argument("parsers", nargs="*", default=list(PARSERS))
    options.add_argument("--mutants", type=int, default=500)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    columns = ("refused", "accepted", "changed", "traceback")
    print(f"{'parser':22} mutants {' '.join(columns)} seconds slowest")
    faults = []
    for name in given.parsers:
        folder = Path(tempfile.mkdtemp())
        started = time.monotonic()
        report = run(name, given.mutants, folder, seed=given.seed)
        counts = " ".join(f"{report.outcomes[c]:{len(c)}}" for c in columns)
        seconds = time.monotonic() - started
        times = f"{seconds:7.1f} {report.slowest:7.2f}"
        print(f"{name:22} {given.mutants:7} {counts} {times}", flush=True)
        faults += report.faults
        shutil.rmtree(folder)
    print("\n".join(faults), file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
