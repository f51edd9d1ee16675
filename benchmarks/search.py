"""Exact search against faiss's flat index: similarity and top 10.

    python benchmarks/search.py [--queries=5000 --rows=25000 --width=256 --top=10]
        [--out=FOLDER]

Every round times each way once, one after the other, so that all see the same
machine; the ratio is taken within a round. Needs faiss: pip install '.[search]'.
The matmul alone, by JAX and by NumPy, is the ceiling. All find the same rows, or the
benchmark says how many differ. On a GPU faiss-cpu remains on the CPU: the ratio then
compares machines, and the ceiling is what counts.
"""

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import reporting
from turns import seconds_in_turns

from vilem_jax import __version__
from vilem_jax.files import write_bytes, write_json
from vilem_jax.search.exact import place

OURS, PEER = "vilem_jax, exact", "faiss-cpu, flat"


def main() -> None:
    options = _options()
    faiss = _faiss()
    rng = np.random.default_rng(options.seed)
    rows = _unit(rng, options.rows, options.width)
    queries = _unit(rng, options.queries, options.width)
    search = place([rows])
    index = faiss.IndexFlatIP(options.width)
    index.add(rows)
    ways: dict[str, Callable] = {
        OURS: lambda: search.top(queries, options.top),
        PEER: lambda: index.search(queries, options.top),
        "JAX, matmul alone": _matmul(queries, search),
        "NumPy, matmul alone": lambda: [
            queries[start : start + 256] @ rows.T
            for start in range(0, len(queries), 256)
        ],
    }
    found = {name: way() for name, way in ways.items()}  # compiles
    differing = int((found[OURS].rows != found[PEER][1]).any(axis=1).sum())
    seconds = seconds_in_turns(ways, options.repeats)
    figures = {
        "what": f"{options.queries} queries x {options.rows} rows x {options.width}, "
        f"top {options.top}, float32",
        "command": shlex.join(["python", *sys.argv]),
        "machine": _machine(),
        "versions": {
            "vilem_jax": __version__,
            "jax": jax.__version__,
            "numpy": np.__version__,
            "faiss": faiss.__version__,
        },
        "repeats": options.repeats,
        "queries_found_differently": differing,
        "seconds": {name: reporting.spread(each) for name, each in seconds.items()},
        "faiss_over_ours": reporting.spread(
            [b / a for a, b in zip(seconds[OURS], seconds[PEER], strict=True)]
        ),
        "goal": "faiss_over_ours >= 1.0 on CPU",
    }
    page = _page(figures)
    print(page)
    if options.out:
        write_json(Path(options.out) / "search.json", figures)
        write_bytes(Path(options.out) / "search.md", page.encode())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (
        ("queries", 5000),
        ("rows", 25000),
        ("width", 256),
        ("top", 10),
        ("repeats", 7),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=str(value))
    parser.add_argument("--out", help="folder for search.json and search.md")
    options = parser.parse_args()
    if options.repeats < 5:
        parser.error("--repeats: a median wants 5 or more")
    return options


def _faiss():
    try:
        import faiss
    except ImportError:
        sys.exit("faiss is not installed: pip install 'vilem-jax[search]'")
    return faiss


def _unit(rng, count: int, width: int) -> np.ndarray:
    rows = rng.standard_normal((count, width), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _matmul(queries: np.ndarray, search) -> Callable:
    """All scores in the chunks of the search, of which only a sum is kept."""
    size, chunk = search.query_chunk, search.row_chunk
    padding = -len(queries) % size
    parts = np.pad(queries, ((0, padding), (0, 0))).reshape(-1, size, search.width)

    @jax.jit
    def scores(part, rows):
        def step(total, piece):
            product = jnp.matmul(part, piece.T, precision=jax.lax.Precision.HIGHEST)
            return jnp.maximum(total, product.max(axis=1)), None

        pieces = rows.reshape(-1, chunk, rows.shape[1])
        return jax.lax.scan(step, jnp.full(size, -jnp.inf), pieces)[0]

    return lambda: jax.block_until_ready([scores(p, search.rows) for p in parts])


def _machine() -> dict:
    device = jax.devices()[0]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": load,
        "jax_device": f"{jax.device_count()} x {device.device_kind}",
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [
        line.split(":", 1)[1].strip()
        for line in text.splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()


def _page(figures: dict) -> str:
    machine = figures["machine"]
    lines = [
        f"Exact search: {figures['what']}.",
        "",
        f"`{figures['command']}`",
        "",
        f"{machine['processor']}, {machine['cores']} cores, load "
        f"{machine['load_average']:.1f}; JAX on {machine['jax_device']}; "
        + ", ".join(f"{name} {value}" for name, value in figures["versions"].items()),
        "",
        f"| | seconds, median of {figures['repeats']} | least | most |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, each in figures["seconds"].items():
        told = (f"{each[key]:.3f}" for key in ("median", "least", "most"))
        lines.append(f"| {name} | {' | '.join(told)} |")
    ratio = figures["faiss_over_ours"]
    lines += [
        "",
        f"faiss takes {ratio['median']:.2f} x as long as ours (of one round each; "
        f"{ratio['least']:.2f} to {ratio['most']:.2f}). Queries for which the two find "
        f"other rows, or another order: {figures['queries_found_differently']}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
