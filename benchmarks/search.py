"""Exact search against faiss's flat index: similarity and top 10 (C4, G9).

    python benchmarks/search.py [--queries=5000 --rows=25000 --width=256 --top=10]
        [--rounds=7] [--out=FOLDER]

Every round times each method once, so that all run on the same machine state; the ratio
is taken within a round. Each method is a separate process: NumPy's threads spin for a
tenth of a second after their work, and beside them JAX gets half of two cores. Needs
faiss: pip install '.[search]'. Both find the same rows, or the benchmark reports how
many differ. Two more rows show the limits of the machine: the scores and their maxima
alone by JAX, one product after the other, and the scores alone by NumPy. On a GPU
faiss-cpu stays on the CPU: the ratio then compares machines; read those two rows.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import reporting
from turns import Child, in_turns, serve

OURS, PEER = "vilem_jax, exact", "faiss-cpu, flat"
CHUNK = 256  # queries of one product by NumPy


def main() -> None:
    options = _options()
    if options.serve:
        _serve(options)
        return
    children = {name: Child(name) for name in WAYS}
    rounds = in_turns(children, options.rounds, pause=0.5)
    seconds = {name: [each[name]["seconds"] for each in rounds] for name in WAYS}
    ratios = [b / a for a, b in zip(seconds[OURS], seconds[PEER], strict=True)]
    found = [np.array(children[name].about["rows"]) for name in (OURS, PEER)]
    metrics = {
        "machine": reporting.machine("jax", "numpy", "faiss-cpu"),
        "what": f"{options.queries} queries x {options.rows} rows x {options.width}, "
        f"top {options.top}, float32",
        "device": children[OURS].about["device"],
        "queries_found_differently": int((found[0] != found[1]).any(axis=1).sum()),
        "seconds": {name: reporting.spread(each) for name, each in seconds.items()},
        "faiss_over_ours": reporting.spread(ratios),
        "goal": "faiss_over_ours >= 1.0 on a CPU",
    }
    reporting.write("search", options.out, metrics, _page(metrics))


def _options():
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
    parser.add_argument("--serve", choices=WAYS, help="run one of the processes")
    options = parser.parse_args()
    if options.rounds < 5:
        parser.error("--rounds: a median needs 5 or more")
    return options


def _serve(options) -> None:
    """Answers the parent: the rows found, then seconds."""
    rng = np.random.default_rng(options.seed)
    rows = _unit(rng, options.rows, options.width)
    queries = _unit(rng, options.queries, options.width)
    about, way = WAYS[options.serve](queries, rows, options.top)

    def measure() -> dict[str, float]:
        start = time.perf_counter()
        way()
        return {"seconds": time.perf_counter() - start}

    measure()  # compiles
    serve(about, measure)


def _unit(rng, count: int, width: int) -> np.ndarray:
    rows = rng.standard_normal((count, width), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# ---- the methods: queries, rows, top -> description, function to time ----


def _ours(queries, rows, top: int) -> tuple[dict, Callable]:
    import jax

    from vilem_jax.search.exact import place

    search = place([rows])
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    found = search.top(queries, top).rows.tolist()
    return {"device": device, "rows": found}, lambda: search.top(queries, top)


def _faiss(queries, rows, top: int) -> tuple[dict, Callable]:
    try:
        import faiss
    except ImportError:
        sys.exit("faiss is not installed: pip install 'vilem-jax[search]'")
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    found = index.search(queries, top)[1].tolist()
    return {"rows": found}, lambda: index.search(queries, top)


def _jax_scores(queries, rows, top: int) -> tuple[dict, Callable]:
    """All scores in the chunks of the search; only the largest is kept."""
    import jax
    import jax.numpy as jnp

    from vilem_jax.search.exact import place

    search = place([rows])
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


def _numpy_scores(queries, rows, top: int) -> tuple[dict, Callable]:
    starts = range(0, len(queries), CHUNK)
    return {}, lambda: [queries[i : i + CHUNK] @ rows.T for i in starts]


WAYS = {
    OURS: _ours,
    PEER: _faiss,
    "JAX, scores and maxima": _jax_scores,
    "NumPy, scores": _numpy_scores,
}


def _page(metrics: dict) -> str:
    rows = [[name, reporting.cell(each)] for name, each in metrics["seconds"].items()]
    ratio = reporting.cell(metrics["faiss_over_ours"], 2)
    return "\n".join(
        [
            f"Exact search: {metrics['what']}; JAX on {metrics['device']}.",
            "",
            reporting.markdown(["", "s, median (range)"], rows),
            "",
            f"faiss over ours, by round: {ratio}. "
            "Queries for which the two find other rows, or another order: "
            f"{metrics['queries_found_differently']}.",
        ]
    )


if __name__ == "__main__":
    main()
