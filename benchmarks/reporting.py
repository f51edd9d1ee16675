"""How every benchmark here reports: the machine, tables, JSON and Markdown.

A benchmark prints a table and, with --out=FOLDER, writes FOLDER/NAME.json and NAME.md.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Run as `python benchmarks/NAME.py` in a checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with --out; `doc` is the docstring of the benchmark's file."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--out", help="folder for NAME.json and NAME.md")
    return parser


def machine(*packages: str) -> dict:
    """The processor, and the versions of Python and of `packages`."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "date": datetime.date.today().isoformat(),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most of what the rounds measured."""
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
    }


def cell(spread: dict[str, float], digits: int = 3) -> str:
    """A spread as text: "median (least-most)"."""
    middle, low, high = (
        f"{spread[key]:.{digits}f}" for key in ("median", "least", "most")
    )
    return f"{middle} ({low}-{high})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; the first column is aligned left, the others right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def write(
    name: str,
    out: str | None,
    metrics: dict,
    text: str,
    packages: Sequence[str] = ("jax", "jaxlib", "flax"),
) -> None:
    """Prints `text`; with `out` writes both files.

    Args:
      name: of the two files.
      metrics: for the JSON file; the command and the machine are added.
      packages: whose versions are reported.
    """
    print(text)
    if not out:
        return
    script = Path(sys.argv[0]).name
    command = shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]])
    found = machine(*packages)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    everything = {"command": command, "machine": found, **metrics}
    (folder / f"{name}.json").write_text(json.dumps(everything, indent=2) + "\n")
    about = ", ".join(
        [
            f"{found['processor']}, {found['cores']} cores",
            f"Python {found['python']}",
            *(f"{key} {value}" for key, value in found["packages"].items()),
            found["date"],
        ]
    )
    (folder / f"{name}.md").write_text(f"`{command}`\n\n{about}\n\n{text}\n")
    print(f"\n{folder / name}.json, .md")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if "model name" in line)
    return next(names, platform.machine())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
