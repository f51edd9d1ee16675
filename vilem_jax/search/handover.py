"""Embeddings exported to a search engine, and its recall against exact search.

Exact search by matmul takes time in proportion to the rows. faiss and LanceDB can
compare a part of them: this writes their files and measures what they miss.
"""

import json
import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from vilem_jax.errors import UserError
from vilem_jax.files import new_folder, replacing, write_json
from vilem_jax.search.exact import ExactSearch, Found, put_on_devices, take_rows
from vilem_jax.search.vectors import Vectors
from vilem_jax.typing import JsonObject

To = Literal["faiss", "lancedb"]
Kind = Literal["flat", "ivf", "hnsw"]
Ask = Callable[[np.ndarray, int], np.ndarray]  # [Q, E], k -> int64 [Q, k], -1: none
BATCH = 65536  # rows written at a time
FAISS_FILE, NAMES, RECALL = "index.faiss", "names.jsonl", "recall.json"
TABLE = "images"  # LanceDB's
NEIGHBOURS = 32  # links of an image in HNSW
PER_CELL = 39  # faiss warns below so many images for the training of a cell of IVF
NUM_QUERIES = 1000


def hand_over(
    vectors: Vectors,
    out: str | Path,
    *,
    to: To,
    kind: Kind = "flat",
    queries: np.ndarray | None = None,
    top_k: int = 10,
) -> JsonObject:
    """Writes folder `out` for faiss or LanceDB, and measures its recall.

    Args:
      out: must not exist, or be empty.
      kind: "flat" compares all rows; "ivf" and "hnsw" a part of them.
      queries: embeddings of texts to measure the recall with, float32 [Q, E]; None
        takes `NUM_QUERIES` of the images', evenly spread.
      top_k: of the recall.

    Returns:
      the content of `out`/recall.json: {"to", "index", "images", "dimension",
      "queries", "top_k", ...}, and see `recall_against_exact`.

    Raises:
      UserError: the library is not installed; `out` is not empty or cannot be written;
        queries of another width.
    """
    if to not in _WRITERS:
        raise UserError(f"embeddings are exported to faiss or lancedb, not to {to!r}")
    if kind not in ("flat", "ivf", "hnsw"):
        raise UserError(f"an index is flat, ivf or hnsw, not {kind!r}")
    check_installed(to)
    search = put_on_devices(vectors.parts)
    what = "of the images" if queries is None else "texts"
    queries = own_queries(vectors) if queries is None else queries
    truth = search.top(queries, top_k)  # checks queries and top_k
    # The libraries raise RuntimeError if they cannot write.
    with new_folder(out, errors=(OSError, RuntimeError)) as folder:
        ask, about = _WRITERS[to](vectors, folder, kind)
        metrics = {
            "to": to,
            "index": kind,
            **about,
            "images": len(search),
            "dimension": search.width,
            "queries": f"{len(queries)} {what}",
            "top_k": truth.rows.shape[1],
            **recall_against_exact(search, ask, queries, truth),
        }
        write_json(folder / RECALL, metrics)
    return metrics


def check_installed(to: To) -> None:
    """Raises UserError if the library is not installed."""
    if find_spec(to) is None:
        raise UserError(
            f"{to} is not installed: pip install 'vilem-jax[search]' brings faiss and "
            "LanceDB"
        )


def own_queries(vectors: Vectors, count: int = NUM_QUERIES) -> np.ndarray:
    """`count` of the embeddings, evenly spread: float32 [count, E]."""
    rows = np.unique(np.linspace(0, len(vectors) - 1, count).astype(np.int64))
    return take_rows(vectors.parts, rows).astype(np.float32)


def recall_against_exact(
    search: ExactSearch, ask: Ask, queries: np.ndarray, truth: Found
) -> dict[str, float]:
    """The share of the exact best rows that an engine finds.

    A row counts if it scores as high as the last of the exact ones: ties are no error.

    Args:
      truth: of `search.top(queries, top_k)`.

    Returns:
      {"recall": mean over the queries, 0..1, "worst": the lowest of one query}.
    """
    found = ask(queries, truth.rows.shape[1])
    taken = take_rows(search.parts, np.maximum(found, 0)).astype(np.float64)
    scores = np.einsum("qe,qke->qk", queries.astype(np.float64), taken)
    # Engines compare float32 sums in an order of their own.
    is_good = (scores >= truth.scores[:, -1:] - 2e-6) & (found >= 0)
    recall = is_good.mean(axis=1)
    return {"recall": float(recall.mean()), "worst": float(recall.min())}


def _to_faiss(vectors: Vectors, folder: Path, kind: Kind) -> tuple[Ask, dict]:
    """index.faiss, and names.jsonl, whose line n is the name of row n."""
    import faiss

    count, width = len(vectors), vectors.parts[0].shape[1]
    about = {}
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 200, 128
        about = {"neighbours": NEIGHBOURS, "ef_construction": 200, "ef_search": 128}
    elif kind == "ivf":
        cells = _cells(count)
        coarse = faiss.IndexFlatIP(width)
        index = faiss.IndexIVFFlat(coarse, width, cells, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = _probes(cells)
        index.train(own_queries(vectors, 256 * cells))
        about = {"cells": cells, "probes": index.nprobe}
    else:
        index = faiss.IndexFlatIP(width)
    for _, rows in _batches(vectors):
        index.add(rows)
    faiss.write_index(index, str(folder / FAISS_FILE))
    with replacing(folder / NAMES) as file:
        for row in range(count):
            file.write(f"{json.dumps(str(vectors.path(row)))}\n".encode())
    return (lambda queries, top_k: index.search(queries, top_k)[1]), about


def _to_lancedb(vectors: Vectors, folder: Path, kind: Kind) -> tuple[Ask, dict]:
    """A table `images` of row, name and vector."""
    import lancedb
    import pyarrow
    from lancedb.index import HnswFlat, IvfFlat
    from lancedb.query import LanceVectorQueryBuilder

    dtype, width = vectors.parts[0].dtype, vectors.parts[0].shape[1]
    vector = pyarrow.list_(pyarrow.from_numpy_dtype(dtype), width)
    kinds = {"row": pyarrow.int64(), "name": pyarrow.string(), "vector": vector}
    schema = pyarrow.schema(kinds)
    table = lancedb.connect(str(folder)).create_table(TABLE, schema=schema)
    for first, rows in _batches(vectors):
        numbers = range(first, first + len(rows))
        flat = pyarrow.array(rows.astype(dtype).ravel())
        paths = (str(vectors.path(row)) for row in numbers)
        columns = {
            "row": pyarrow.array(numbers, pyarrow.int64()),
            # LanceDB stores UTF-8 alone; file names may be other bytes.
            "name": [path.encode("utf-8", "replace").decode() for path in paths],
            "vector": pyarrow.FixedSizeListArray.from_arrays(flat, width),
        }
        table.add(pyarrow.table(columns, schema=schema))
    cells, about = _cells(len(vectors)), {}
    if kind == "ivf":
        config = IvfFlat(distance_type="dot", num_partitions=cells)
        about = {"cells": cells, "probes": _probes(cells)}
        table.create_index("vector", config=config)
    elif kind == "hnsw":
        config = HnswFlat(distance_type="dot", num_partitions=1, m=NEIGHBOURS)
        about = {"neighbours": NEIGHBOURS, "ef_search": 128}
        table.create_index("vector", config=config)

    def ask(queries: np.ndarray, top_k: int) -> np.ndarray:
        found = np.full((len(queries), top_k), -1, np.int64)
        for number, query in enumerate(queries):
            asked = table.search(query, query_type="vector")
            assert isinstance(asked, LanceVectorQueryBuilder)
            asked = asked.distance_type("dot").limit(top_k)
            if kind == "ivf":
                asked = asked.nprobes(_probes(cells))
            elif kind == "hnsw":
                asked = asked.ef(max(128, top_k))
            rows = asked.select(["row", "_distance"]).to_arrow()["row"].to_numpy()
            found[number, : len(rows)] = rows
        return found

    return ask, about


_WRITERS = {"faiss": _to_faiss, "lancedb": _to_lancedb}


def _batches(vectors: Vectors) -> Iterator[tuple[int, np.ndarray]]:
    """All rows in batches: the index of the first, and the rows in float32."""
    first = 0
    for part in vectors.parts:
        for start in range(0, len(part), BATCH):
            rows = np.ascontiguousarray(part[start : start + BATCH], np.float32)
            yield first + start, rows
        first += len(part)


def _cells(count: int) -> int:
    """Number of cells of IVF: about 4 sqrt(N), as faiss advises."""
    return max(1, min(int(4 * math.sqrt(count)), count // PER_CELL))


def _probes(cells: int) -> int:
    return min(cells, max(8, cells // 16))
