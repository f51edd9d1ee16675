"""What docs/reliability.md promises, for as long as one likes.

    JAX_PLATFORMS=cpu python tests/soak.py [PART ...] [--long] [--seed=0] [--out=FILE]

PART is kills, signals, disk, images, captions, parsers, steps or calls; all if none is
named. Short by default (minutes), with the numbers of the promise with --long (half an
hour); --kills=50 and the like set one of them. Prints one Markdown table, and writes it
to FILE. The exit code is 1 if a part failed.
"""

import argparse
import datetime
import functools
import json
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import tests.conftest  # noqa: E402, F401  # XLA's flags, before JAX starts
from tests import fuzz  # noqa: E402
from tests.data.test_images import encode, rgb  # noqa: E402
from tests.training import test_kill, test_signals, tiny_runs  # noqa: E402
from vilem_jax.config.freeze import freeze  # noqa: E402
from vilem_jax.data.images import ImageError, decode  # noqa: E402
from vilem_jax.data.tokenizer import Tokenizer, train_vocabulary  # noqa: E402

# Part: short and long number.
NUMBERS = {
    "kills": (5, 50),
    "signals": (1, 3),  # in each of five phases
    "disk": (3, 10),
    "images": (2_000, 10_000),
    "captions": (1_000, 5_000),
    "parsers": (50, 500),  # mutants of each
    "steps": (500, 10_000),
    "calls": (500, 10_000),
}
FORMS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")


class Runs:
    """An uninterrupted training run, and the settings it has."""

    def __init__(self):
        from vilem_jax.training.run import train

        self._removed_at_exit = tempfile.TemporaryDirectory(prefix="soak")
        folder = Path(self._removed_at_exit.name)
        vocabulary = tiny_runs.write_vocabulary(folder / "vocabulary")
        settings = tiny_runs.run_settings("editor", vocabulary)
        train(freeze(settings), folder / "editor", num_devices=1)
        self.folder, self.whole = folder, folder / "whole"
        self.settings = tiny_runs.run_settings("vilem", folder / "editor" / "editor")
        test_kill.finish(test_kill.start(self.settings, self.whole, seconds=0))


@functools.cache
def runs() -> Runs:
    return Runs()


def kills(number: int, chance: random.Random) -> str:
    """`kill -9` at random moments of one run after another, resumed each time."""
    done = num_runs = in_a_save = 0
    while done < number:
        workdir = runs().folder / f"killed_{num_runs}"
        for _ in range(min(5, number - done)):
            step, saves = (
                chance.randrange(1, tiny_runs.NUM_STEPS),
                chance.random() < 0.4,
            )
            process = test_kill.start(runs().settings, workdir)
            test_kill.wait_until(
                process,
                lambda step=step, saves=saves, workdir=workdir: (
                    test_kill.last_step(workdir) >= step
                    and (not saves or test_kill.is_saving(workdir))
                ),
            )
            if process.poll() is not None:
                test_kill.finish(process)
                break
            in_a_save += test_kill.is_saving(workdir)
            test_kill.kill(process)
            done += 1
        test_kill.finish(test_kill.start(runs().settings, workdir, seconds=0))
        tiny_runs.assert_same_run(workdir, runs().whole)
        shutil.rmtree(workdir)
        num_runs += 1
    return f"{done} kills, {in_a_save} in a save, {num_runs} runs: bitwise equal"


def signals(number: int, chance: random.Random) -> str:
    """SIGTERM, SIGINT, SIGHUP in each phase of a run, resumed each time."""
    # Both are ignored in what a shell starts in the background, or under nohup.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = runs().folder / "signals"
    folder.mkdir()
    config = test_signals.settings_file(runs().folder / "editor" / "editor", folder)
    whole = folder / "whole"
    assert test_signals.vilem_train(config, whole) == 0
    codes: dict[str, list[int]] = {}
    for phase in test_signals.PHASES:
        for signal_number in chance.sample(test_signals.SIGNALS, number):
            workdir = folder / f"{phase}_{signal_number}"
            code = test_signals.check_phase(
                phase, signal_number, config, workdir, whole
            )
            codes.setdefault(phase, []).append(code)
    ends = [f"{phase} {sorted(found)}" for phase, found in codes.items()]
    return f"exit codes {', '.join(ends)}: resumed, bitwise equal"


def disk(number: int, chance: random.Random) -> str:
    """A disk that is full while a run saves; with room again it ends as if it was not.

    On a tmpfs if one can be mounted, else by a limit on the size of a file.
    """
    size = sum(f.stat().st_size for f in runs().whole.rglob("*") if f.is_file())
    kinds = set()
    for turn in range(number):
        mount = runs().folder / f"disk_{turn}"
        room = int(size * (0.1 + 0.8 * chance.random()))
        with small_disk(mount, room) as kind:
            kinds.add(kind)
            workdir = mount / "run"
            limit = room // 8 if kind == "file size" else None
            errors = limited(workdir, limit)
            assert "Traceback" not in errors or "checkpoint" in errors, errors[-2000:]
            if kind == "tmpfs":
                remount(mount, 4 * size)
            test_kill.finish(test_kill.start(runs().settings, workdir, seconds=0))
            tiny_runs.assert_same_run(workdir, runs().whole)
    return f"{number} sizes ({', '.join(sorted(kinds))}): resumed, bitwise equal"


def limited(workdir: Path, limit: int | None) -> str:
    """What the run says on a disk with too little room; its exit code may be any."""
    if limit is None:
        process = test_kill.start(runs().settings, workdir, seconds=0)
    else:
        # Of files: Python sees EFBIG, as it would see ENOSPC.
        with soft_limit(resource.RLIMIT_FSIZE, limit):
            process = test_kill.start(runs().settings, workdir, seconds=0)
    _, errors = process.communicate(timeout=test_kill.PATIENCE)
    assert process.returncode in (0, 1, 2), errors[-2000:]
    return errors


@contextmanager
def soft_limit(kind: int, value: int) -> Iterator[None]:
    """For the processes that are started inside."""
    before, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (before, hard))


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[str]:
    """A tmpfs of `size` bytes at `folder`; without the right to mount it, a folder."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(["mount", *options], capture_output=True).returncode
    except OSError:
        mounted = 1
    try:
        yield "file size" if mounted else "tmpfs"
    finally:
        if not mounted:
            subprocess.run(["umount", str(folder)], check=True)
        shutil.rmtree(folder)


def remount(folder: Path, size: int) -> None:
    options = f"remount,size={size}"
    subprocess.run(["mount", "-o", options, str(folder)], check=True)


def images(number: int, chance: random.Random) -> str:
    """Random bytes in files of every format: pixels or an ImageError, and soon."""
    rng = np.random.default_rng(chance.randrange(2**32))
    refused, slowest = 0, 0.0
    for turn in range(number):
        form = FORMS[turn % len(FORMS)]
        content = np.frombuffer(encode(rgb(turn % 7, 24, 24), form), np.uint8).copy()
        if rng.random() < 0.3:
            content = content[: rng.integers(0, len(content))]
        for _ in range(rng.integers(1, 8) if len(content) else 0):
            content[rng.integers(0, len(content))] = rng.integers(0, 256)
        began = time.perf_counter()
        try:
            pixels = decode(content.tobytes())
        except ImageError:
            refused += 1
        else:
            assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < 5
    return f"{number} files, {refused} refused, slowest {1000 * slowest:.0f} ms"


def captions(number: int, chance: random.Random) -> str:
    """Strings of any characters: rows of valid tokens, with one end each."""
    folder = Path(tempfile.mkdtemp(prefix="soak"))
    train_vocabulary([f"a red dog in way {i}" for i in range(50)], 120, folder)
    tokenizer = Tokenizer(folder)
    shutil.rmtree(folder)
    strange = ["", "\x00", ".", "\ud83d", "a" * 100_000, "dog " * 25_000, "犬" * 40]
    while len(strange) < number:
        top = chance.choice([0x80, 0x600, 0x11000, 0x110000])
        length = chance.randrange(0, 60)
        strange.append("".join(chr(chance.randrange(top)) for _ in range(length)))
    tokens = tokenizer.encode(strange, 30)
    vocabulary = tokenizer.vocabulary
    assert ((tokens >= 0) & (tokens < vocabulary.size)).all()
    assert ((tokens == vocabulary.sep_id).sum(axis=1) == 1).all()
    for row in tokens:
        tokenizer.words(row)
    without = int((~vocabulary.is_editable[tokens]).all(axis=1).sum())
    return f"{len(strange)} captions, {without} without a word"


def parsers(number: int, chance: random.Random) -> str:
    """Mutants of an intact file of each parser: values, or a sentence."""
    seed, faults, refused, slowest = chance.randrange(2**32), [], 0, 0.0
    for name in fuzz.PARSERS:
        with tempfile.TemporaryDirectory(prefix="soak") as folder:
            report = fuzz.run(name, number, Path(folder), seed=seed)
        faults += report.faults
        refused += report.outcomes["refused"]
        slowest = max(slowest, report.slowest)
    assert not faults, f"{len(faults)} faults: {faults[0]}"
    done = f"{len(fuzz.PARSERS)} parsers, {number} mutants each"
    return f"{done}, {refused} refused, slowest {1000 * slowest:.0f} ms"


def steps(number: int, chance: random.Random) -> str:
    """Training steps: nothing is compiled after the second, and memory is flat."""
    folder = Path(tempfile.mkdtemp(prefix="soak"))
    command = [sys.executable, "benchmarks/steady.py", f"--out={folder}"]
    subprocess.run(
        [*command, f"--steps={number}", f"--every={max(1, number // 10)}"],
        cwd=ROOT,
        env=tiny_runs.child_environment() | {"PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    found = json.loads((folder / "steady.json").read_text())
    shutil.rmtree(folder)
    assert found["compilations_after_step_2"] == 0
    growth = memory_growth([each["resident_mib"] for each in found["records"]])
    return f"{number} steps, 0 compilations, memory {growth}"


def calls(number: int, chance: random.Random) -> str:
    """Search, embed, evaluate and proofread in one process: memory is flat."""
    command = [sys.executable, "-m", "tests.many_calls", str(runs().whole), str(number)]
    finished = subprocess.run(
        command,
        cwd=ROOT,
        env=tiny_runs.child_environment(),
        check=True,
        stdout=subprocess.PIPE,
    )
    growth = memory_growth(json.loads(finished.stdout))
    return f"{number} calls, memory {growth}"


def memory_growth(resident: list[float]) -> str:
    """From the first tenth, which fills caches, to the end."""
    growth = resident[-1] / resident[0] - 1
    assert growth < 0.02, f"memory grew by {100 * growth:.1f} %"
    return f"{100 * growth:+.1f} %"


PARTS: dict[str, Callable[[int, random.Random], str]] = {
    "kills": kills,
    "signals": signals,
    "disk": disk,
    "images": images,
    "captions": captions,
    "parsers": parsers,
    "steps": steps,
    "calls": calls,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--long", action="store_true", help="the promised numbers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    for part in NUMBERS:
        parser.add_argument(f"--{part}", type=int, metavar="NUMBER")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"{', '.join(unknown)}: parts are {', '.join(PARTS)}")
    today = datetime.datetime.now(datetime.UTC).date()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}"
    lines = [
        f"{today}, {machine}, Python {platform.python_version()}, seed {options.seed}",
        "",
        "| part | result | found | seconds |",
        "| --- | --- | --- | ---: |",
    ]
    has_failed = False
    for part in options.parts or PARTS:
        number = getattr(options, part) or NUMBERS[part][options.long]
        began, result = time.monotonic(), "held"
        try:
            found = PARTS[part](number, random.Random(f"{part} {options.seed}"))
        except Exception as error:
            traceback.print_exc()
            has_failed, result = True, "**FAILED**"
            found = (str(error).splitlines() or [repr(error)])[0][:200]
        seconds = time.monotonic() - began
        lines.append(f"| {part} | {result} | {found} | {seconds:.0f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    page = "\n".join(lines) + "\n"
    print(page, end="")
    if options.out:
        options.out.write_text(page)
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
