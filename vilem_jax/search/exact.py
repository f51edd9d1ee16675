"""Exact search: the rows of largest inner product, on any devices.

The devices find a few more candidates than `top_k`, by one matmul in float32. The error
of float32 is bounded. If it could change the order of the candidates, the host sums
them again in float64; if it could hide a row, more candidates are searched for, and at
last the host sums all rows. So the result equals that of a loop over all rows in
float64, and does not depend on devices, chunks or the order of sums.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vilem_jax.distributed.mesh import ROWS, WHOLE, Layout, make_mesh, over_batch
from vilem_jax.errors import UserError

BLOCK = 32  # rows whose maximum is compared first
SPARE = 4  # candidates beyond top_k, at least
WIDER = 8  # factor of candidates for queries that they do not settle
MOST = 4096  # candidates; queries that they do not settle are summed by the host
FEW = (1, 16)  # queries of small chunks; padding a single one costs a third
HOST_NUMBERS = 1 << 24  # float64 that the host holds at a time: 134 MB


class Found(NamedTuple):
    """The best rows for each query, K = min(top_k, N) of them."""

    rows: np.ndarray  # int64 [Q, K], the best first; equal scores by lower row
    scores: np.ndarray  # float32 [Q, K]


@dataclasses.dataclass(frozen=True)
class ExactSearch:
    """Rows on the devices, ready to be searched. Made by `put_on_devices`."""

    parts: tuple[np.ndarray, ...]  # float32 or float16 [N_i, E], on the host
    # Rows in order, zeros at the end, in equal chunks [devices * M, E], each sharded.
    # An array a chunk, for a slice of a larger one would be copied for every product.
    chunks: tuple[jax.Array, ...]
    norm: float  # of the longest row
    mesh: jax.sharding.Mesh
    query_chunk: int

    @property
    def width(self) -> int:
        return self.parts[0].shape[1]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def top(self, queries: np.ndarray, top_k: int) -> Found:
        """The `top_k` rows of largest inner product for each query.

        Scores are summed in float64 and compared in float32, ties by lower row; the
        returned ones are float32 sums if no order depends on more.

        Args:
          queries: [Q, E], any Q.
          top_k: 1 or more; if there are fewer rows, all are found.

        Raises:
          UserError: queries of another width, none, or not finite; top_k below 1.
        """
        queries = self._checked(queries, top_k)
        top_k = min(top_k, len(self))
        rows = np.empty((len(queries), top_k), np.int64)
        scores = np.empty((len(queries), top_k), np.float32)
        error = self._error_of(queries)
        left, count = np.arange(len(queries)), _power_of_2(top_k + SPARE)
        while len(left):
            found = self._candidates(queries[left], count)
            is_settled = _is_settled(found, top_k, error[left], len(self))
            done = left[is_settled]
            found = Found(*(part[is_settled] for part in found))
            found = self._ordered(queries[done], found, top_k, error[done])
            rows[done], scores[done] = found
            left, count = left[~is_settled], count * WIDER
            if count > MOST:
                break
        for query in left:
            rows[query], scores[query] = self._by_host(queries[query], top_k)
        return Found(rows, scores)

    def _checked(self, queries: np.ndarray, top_k: int) -> np.ndarray:
        queries = np.asarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise UserError(
                f"queries of shape {list(queries.shape)} cannot be compared with "
                f"embeddings of width {self.width}: give [Q, {self.width}]"
            )
        if not len(queries):
            raise UserError("there is nothing to search for: no query")
        if not np.isfinite(queries).all():
            raise UserError("a query is not finite: has the run diverged?")
        if top_k < 1:
            raise UserError(f"top_k is {top_k}: ask for 1 or more images")
        return queries

    def _error_of(self, queries: np.ndarray) -> np.ndarray:
        """How far a float32 score can be off: [Q].

        E products and their sum, in any order, lose at most E ulp
        of sum |q_i x_i| <= |q| |x|; one more for the rounding of the exact score.
        """
        norms = np.linalg.norm(queries.astype(np.float64), axis=1)
        return (self.width + 1) * 2.0**-24 * norms * self.norm

    def _candidates(self, queries: np.ndarray, count: int) -> Found:
        """The `count` best rows, or all, by the devices' float32 scores."""
        most = self.query_chunk if count <= MOST // WIDER else FEW[-1]
        size = next((size for size in FEW if len(queries) <= size), most)
        parts = [queries[i : i + size] for i in range(0, len(queries), size)]
        # On one CPU two at a time: while one looks for the best, the other multiplies.
        # Programs of several devices must start in one order on each of them.
        two = jax.default_backend() == "cpu" and self.mesh.size == 1
        with ThreadPoolExecutor(2 if two else 1) as pool:
            found = list(pool.map(lambda q: self._search(q, size, count), parts))
        return Found(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def _search(self, queries: np.ndarray, size: int, count: int) -> Found:
        """`_candidates` of at most `size` queries."""
        padded = np.pad(queries, ((0, size - len(queries)), (0, 0)))
        # [chunks, devices]: the first row of each device in each chunk.
        shape = (len(self.chunks), self.mesh.size)
        first = np.arange(math.prod(shape)).reshape(shape)
        first *= len(self.chunks[0]) // self.mesh.size
        # All are started before the first one is read.
        best = [
            _best(padded, chunk, num_valid, count=count, mesh=self.mesh)
            for chunk, num_valid in zip(self.chunks, len(self) - first, strict=True)
        ]
        scores = np.stack([scores for scores, _ in best])  # [chunks, devices, Q, C]
        rows = np.stack([rows for _, rows in best]) + first[..., None, None]

        def by_query(found: np.ndarray) -> np.ndarray:  # [Q, all candidates]
            return np.moveaxis(found, 2, 0)[: len(queries)].reshape(len(queries), -1)

        return _best_of(by_query(scores), by_query(rows), min(count, len(self)))

    def _ordered(
        self, queries: np.ndarray, found: Found, top_k: int, error: np.ndarray
    ) -> Found:
        """The first `top_k` candidates in their true order."""
        gaps = found.scores[:, :-1] - found.scores[:, 1:]
        is_close = (gaps[:, :top_k] <= 2 * error[:, None]).any(axis=1)
        rows, scores = (np.array(part[:, :top_k]) for part in found)
        close = np.flatnonzero(is_close)
        step = max(1, HOST_NUMBERS // (found.rows.shape[1] * self.width))
        for start in range(0, len(close), step):
            here = close[start : start + step]
            candidates = found.rows[here]
            exact = np.einsum(
                "qe,qce->qc",
                queries[here].astype(np.float64),
                take_rows(self.parts, candidates).astype(np.float64),
            ).astype(np.float32)
            order = np.lexsort((candidates, -exact))[:, :top_k]
            rows[here] = np.take_along_axis(candidates, order, axis=1)
            scores[here] = np.take_along_axis(exact, order, axis=1)
        return Found(rows, scores)

    def _by_host(self, query: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """One query against all rows in float64: thousands of equal images."""
        query = query.astype(np.float64)
        rows, scores = np.empty(0, np.int64), np.empty(0, np.float32)
        step = max(1, HOST_NUMBERS // self.width)
        for start in range(0, len(self), step):
            block = _slice_rows(self.parts, start, start + step).astype(np.float64)
            exact = (block @ query).astype(np.float32)
            numbers = np.arange(start, start + len(block))
            if len(rows) == top_k:  # later rows lose a tie
                better = exact > scores[-1]
                exact, numbers = exact[better], numbers[better]
            rows = np.concatenate([rows, numbers])
            scores = np.concatenate([scores, exact])
            order = np.lexsort((rows, -scores))[:top_k]
            rows, scores = rows[order], scores[order]
        return rows, scores


def put_on_devices(
    parts: Sequence[np.ndarray], *, num_devices: int | None = None
) -> ExactSearch:
    """Puts rows on the devices, each its share, to be searched.

    Args:
      parts: float32 or float16 [N_i, E], all of one kind; may be memory-mapped.
      num_devices: of this process; None takes all.

    Raises:
      UserError: no row, several widths or kinds of number, a row that is not finite.
    """
    parts = tuple(part for part in parts if len(part))
    if not parts:
        raise UserError("there is no embedding to search in")
    kinds = sorted({f"{part.dtype} [N, {part.shape[1]}]" for part in parts})
    if len(kinds) > 1 or parts[0].dtype not in (np.float32, np.float16):
        raise UserError(
            f"embeddings of {' and '.join(kinds)} cannot be searched together: they "
            "must all be float32, or all float16, of one width"
        )
    mesh = make_mesh(num_devices)
    query_chunk, most_rows = _chunks()
    num_rows = sum(map(len, parts))
    num_chunks = -(-num_rows // (most_rows * mesh.size))
    unit = mesh.size * BLOCK
    size = -(-num_rows // (num_chunks * unit)) * unit

    def put_chunk(number: int) -> jax.Array:
        rows = _slice_rows(parts, number * size, (number + 1) * size)
        rows = np.pad(rows, ((0, size - len(rows)), (0, 0)))
        return jax.device_put(rows, over_batch(mesh))

    chunks = tuple(map(put_chunk, range(num_chunks)))
    norm = float(np.max([_largest_norm(chunk) for chunk in chunks]))  # a NaN stays
    if not np.isfinite(norm):
        raise UserError("an embedding is not finite: has the run diverged?")
    # A little more, for it was summed in float32.
    return ExactSearch(parts, chunks, norm * (1 + 1e-4), mesh, query_chunk)


def _chunks() -> tuple[int, int]:
    """Queries and rows of a chunk: their scores are held, in float32."""
    # 256 by 25,000 were fastest on a CPU of the sizes in docs/search.md.
    return (256, 32768) if jax.default_backend() == "cpu" else (1024, 131072)


def take_rows(parts: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Rows by their numbers in all parts, int64 [...] -> [..., E]."""
    starts = np.cumsum([0, *map(len, parts)])
    part_of = np.searchsorted(starts, rows, side="right") - 1
    taken = np.empty((*rows.shape, parts[0].shape[1]), parts[0].dtype)
    for part in np.unique(part_of):
        here = part_of == part
        taken[here] = parts[part][rows[here] - starts[part]]
    return taken


def _slice_rows(parts: Sequence[np.ndarray], first: int, stop: int) -> np.ndarray:
    """Rows first..stop of all parts, as far as there are any: [N, E]."""
    pieces, start = [], 0
    for part in parts:
        pieces.append(part[max(first - start, 0) : max(stop - start, 0)])
        start += len(part)
    pieces = [piece for piece in pieces if len(piece)]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _best_of(scores: np.ndarray, rows: np.ndarray, count: int) -> Found:
    """The `count` best of the candidates [Q, C], the best first."""
    # Only those are sorted: each chunk of each device has as many. Padding stands last.
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
    best = np.take_along_axis(best, order, 1)
    return Found(np.take_along_axis(rows, best, 1), np.take_along_axis(scores, best, 1))


def _is_settled(found: Found, top_k: int, error: np.ndarray, num_rows: int):
    """Whether no row outside the candidates can be among the best: bool [Q]."""
    if found.rows.shape[1] == num_rows:
        return np.ones(len(found.rows), bool)
    return found.scores[:, top_k - 1] - found.scores[:, -1] > 2 * error


@functools.partial(jax.jit, static_argnames=("count", "mesh"))
def _best(queries, chunk, num_valid, *, count: int, mesh):
    """The best rows of each device in one chunk: scores, rows, [devices, Q, C] each.

    Args:
      queries: [Q, E].
      chunk: [devices * M, E], each device its M rows.
      num_valid: [devices]; the rows from this one on are padding, if it is below M.
    """

    def on_device(queries, rows, num_valid):
        rows = rows.astype(jnp.float32)
        scores = jnp.matmul(queries, rows.T, precision=jax.lax.Precision.HIGHEST)
        row = jnp.arange(len(rows))
        if 2 * count * BLOCK > len(rows):
            scores = jnp.where(row < num_valid[0], scores, -jnp.inf)
            best = jax.lax.top_k(scores, min(count, len(rows)))
            return tuple(part[None] for part in best)
        # The best rows lie in the blocks of the best maxima: two short searches. Only
        # whole blocks of padding are masked first, since masking scores would copy
        # them. One block can have rows and padding: one more block is taken.
        blocks, row = scores.reshape(len(queries), -1, BLOCK), row.reshape(-1, BLOCK)
        maxima = jnp.where(row[:, 0] < num_valid[0], blocks.max(axis=-1), -jnp.inf)
        _, chosen = jax.lax.top_k(maxima, count + 1)
        inside = jnp.take_along_axis(blocks, chosen[..., None], axis=1)
        inside = jnp.where(row[chosen] < num_valid[0], inside, -jnp.inf)
        scores, at = jax.lax.top_k(inside.reshape(len(queries), -1), count)
        block = jnp.take_along_axis(chosen, at // BLOCK, axis=1)
        return scores[None], (block * BLOCK + at % BLOCK)[None]

    run = Layout(mesh).on_each_device(on_device, (WHOLE, ROWS, ROWS), out_specs=ROWS)
    return run(queries, chunk, num_valid)


@jax.jit
def _largest_norm(rows: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.max(jnp.sum(jnp.square(rows.astype(jnp.float32)), axis=1)))


def _power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()
