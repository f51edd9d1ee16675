"""Exact search against faiss's flat index: similarity and top 10 (C4, G9).

    python benchmarks/search.py [--queries=5000 --rows=25000 --width=256 --top=10]
        [--rounds=7] [--out=FOLDER]

Every round times each way once, so that all run on the machine in the same state; the
ratio is taken within a round. Each has a process of its own: idle threads of NumPy spin
for a tenth of a second, and leave JAX one of two cores meanwhile. Needs faiss: pip
install '.[search]'. The benchmark reports for how many queries the two find other rows.
Two more rows show the machine's limits: only the scores and their maxima by JAX, one
product after the other, and only the scores by NumPy. On a GPU faiss-cpu still runs on
the CPU: then compare with those two rows.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import reporting
from turns import Child, in_turns, serve

OURS, PEER = "vilem_jax, exact", "faiss-cpu, flat"
CHUNK = 256  # queries per product by NumPy


def main() -> None:
    options = parse()
    if options.serve:
        return time_system(options)
    children = {name: Child(name) for name in WAYS}
    rounds = in_turns(children, options.rounds, pause=0.5)
    seconds = {name: [each[name]["seconds"] for each in rounds] for name in WAYS}
    ratios = [b / a for a, b in zip(seconds[OURS], seconds[PEER], strict=True)]
    found = [np.array(children[name].about["rows"]) for name in (OURS, PEER)]
    metrics = {
        "what": f"{options.queries} queries x {options.rows} rows x {options.width}, "
        f"top {options.top}, float32",
        "device": children[OURS].about["device"],
        "queries_found_differently": int((found[0] != found[1]).any(axis=1).sum()),
        "seconds": {name: reporting.spread(each) for name, each in seconds.items()},
        "faiss_over_ours": reporting.spread(ratios),
        "goal": "faiss_over_ours >= 1.0 on a CPU",
    }
    packages = ("jax", "numpy", "faiss-cpu")
    reporting.write("search", options.out, metrics, table(metrics), packages)


def parse():
    parser = reporting.arguments(__doc__)
    for name, value in (
        ("queries", 5000),
        ("rows", 25000),
        ("width", 256),
        ("top", 10),
        ("rounds", 7),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=str(value))
    parser.add_argument("--serve", choices=WAYS, help="used by the benchmark itself")
    options = parser.parse_args()
    if options.rounds < 5:
        parser.error("--rounds: a median needs 5 or more")
    return options


def time_system(options) -> None:
    """Reports the rows found, then the seconds of each search."""
    rng = np.random.default_rng(options.seed)
    rows = unit_rows(rng, options.rows, options.width)
    queries = unit_rows(rng, options.queries, options.width)
    about, way = WAYS[options.serve](queries, rows, options.top)

    def measure() -> dict[str, float]:
        start = time.perf_counter()
        way()
        return {"seconds": time.perf_counter() - start}

    measure()  # compiles
    serve(about, measure)


def unit_rows(rng, count: int, width: int) -> np.ndarray:
    rows = rng.standard_normal((count, width), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# ---- ways to search: (queries, rows, top) -> (report about it, timed function) ----


def ours(queries, rows, top: int) -> tuple[dict, Callable]:
    import jax

    from vilem_jax.search.exact import put_on_devices

    search = put_on_devices([rows])
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    found = search.top(queries, top).rows.tolist()
    return {"device": device, "rows": found}, lambda: search.top(queries, top)


def faiss_flat(queries, rows, top: int) -> tuple[dict, Callable]:
    try:
        import faiss
    except ImportError:
        sys.exit("faiss is not installed: pip install 'vilem-jax[search]'")
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    found = index.search(queries, top)[1].tolist()
    return {"rows": found}, lambda: index.search(queries, top)


def jax_scores(queries, rows, top: int) -> tuple[dict, Callable]:
    """All scores in the chunks of the search, and only the maximum of each row."""
    import jax
    import jax.numpy as jnp

    from vilem_jax.search.exact import put_on_devices

    search = put_on_devices([rows])
    size = search.query_chunk
    padding = -len(queries) % size
    parts = np.pad(queries, ((0, padding), (0, 0))).reshape(-1, size, search.width)

    @jax.jit
    def best(part, chunk):
        scores = jnp.matmul(part, chunk.T, precision=jax.lax.Precision.HIGHEST)
        return scores.max(axis=1)

    def all_scores():
        for part in parts:
            jax.block_until_ready([best(part, chunk) for chunk in search.chunks])

    return {}, all_scores


def numpy_scores(queries, rows, top: int) -> tuple[dict, Callable]:
    starts = range(0, len(queries), CHUNK)
    return {}, lambda: [queries[i : i + CHUNK] @ rows.T for i in starts]


WAYS = {
    OURS: ours,
    PEER: faiss_flat,
    "JAX, scores and maxima": jax_scores,
    "NumPy, scores": numpy_scores,
}


def table(metrics: dict) -> str:
    rows = [[name, reporting.cell(each)] for name, each in metrics["seconds"].items()]
    ratio = reporting.cell(metrics["faiss_over_ours"], 2)
    return "\n".join(
        [
            f"Exact search: {metrics['what']}; JAX on {metrics['device']}.",
            "",
            reporting.markdown(["", "s, median (range)"], rows),
            "",
            f"faiss over ours, by round: {ratio}. "
            "Queries for which the two find other rows or another order: "
            f"{metrics['queries_found_differently']}.",
        ]
    )


if __name__ == "__main__":
    main()
