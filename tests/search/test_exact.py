"""Exact search against a loop over all rows in float64."""

import numpy as np
import pytest

from vilem_jax.errors import UserError
from vilem_jax.search import exact


def brute_force(queries, rows, top_k):
    """Order by score, then by row; scores summed in float64, compared in float32."""
    scores = queries.astype(np.float64) @ rows.astype(np.float64).T
    scores = scores.astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return order, np.take_along_axis(scores, order, axis=1)


def unit(rng, *shape):
    rows = rng.standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def check(found, queries, rows, top_k):
    order, scores = brute_force(queries, rows, top_k)
    np.testing.assert_array_equal(found.rows, order)
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol=1e-6)


@pytest.fixture
def small_chunks(monkeypatch):
    """Several chunks of queries and of rows, in seconds."""
    monkeypatch.setattr(exact, "_chunks", lambda: (16, 2048))


@pytest.mark.parametrize("num_devices", [1, 2, 8])
@pytest.mark.parametrize(("num_rows", "top_k"), [(1, 1), (37, 5), (9001, 10)])
def test_it_is_a_loop_over_all_rows(small_chunks, num_devices, num_rows, top_k):
    rng = np.random.default_rng(num_rows)
    rows, queries = unit(rng, num_rows, 16), unit(rng, 35, 16)
    search = exact.put_on_devices([rows], num_devices=num_devices)
    check(search.top(queries, top_k), queries, rows, top_k)
    check(search.top(queries[:3], top_k), queries[:3], rows, top_k)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_ties_go_to_the_lower_row(small_chunks, num_devices):
    """Few different rows, so nearly all is tied, also where the cut falls."""
    rng = np.random.default_rng(3)
    kinds = rng.integers(-2, 3, (7, 8)).astype(np.float32)
    rows = kinds[rng.integers(0, 7, 6000)]
    queries = rng.integers(-2, 3, (9, 8)).astype(np.float32)
    search = exact.put_on_devices([rows], num_devices=num_devices)
    for top_k in (1, 10, 50):
        found = search.top(queries, top_k)
        order, scores = brute_force(queries, rows, top_k)
        np.testing.assert_array_equal(found.rows, order)
        np.testing.assert_array_equal(found.scores, scores)


def test_scores_closer_than_float32_resolves(small_chunks):
    """Rows that differ in the last bits: float32 sums alone would order them wrong."""
    rng = np.random.default_rng(5)
    base = unit(rng, 64)
    rows = base[None] + 3e-8 * rng.standard_normal((5000, 64)).astype(np.float32)
    queries = np.concatenate([base[None], unit(rng, 4, 64)])
    naive = np.argsort(-(queries @ rows.T), axis=1, kind="stable")[:, :20]
    assert (naive != brute_force(queries, rows, 20)[0]).any()  # or nothing is tested
    check(exact.put_on_devices([rows]).top(queries, 20), queries, rows, 20)


def test_more_than_there_are(small_chunks):
    rng = np.random.default_rng(0)
    rows, queries = unit(rng, 21, 8), unit(rng, 2, 8)
    found = exact.put_on_devices([rows]).top(queries, 1000)
    assert found.rows.shape == (2, 21)
    check(found, queries, rows, 1000)


@pytest.mark.parametrize("top_k", [1, 10, 9001])
@pytest.mark.parametrize("num_devices", [1, 8])
def test_padding_never_wins(small_chunks, num_devices, top_k):
    """All scores are below 0, the score of a row of zeros."""
    rng = np.random.default_rng(0)
    rows = -np.abs(unit(rng, 9001, 8))
    queries = np.abs(unit(rng, 3, 8))
    found = exact.put_on_devices([rows], num_devices=num_devices).top(queries, top_k)
    check(found, queries, rows, top_k)


def test_half_precision_and_parts(small_chunks):
    rng = np.random.default_rng(1)
    rows = unit(rng, 5003, 24).astype(np.float16)
    parts = [rows[:17], rows[17:17], rows[17:4000], rows[4000:]]
    queries = unit(rng, 40, 24)
    search = exact.put_on_devices(parts)
    assert search.chunks[0].dtype == np.float16
    check(search.top(queries, 10), queries, rows, 10)
    tied = np.repeat(rows[:1], 5003, axis=0)
    parts = [tied[:17], tied[17:]]
    assert list(exact.put_on_devices(parts).top(queries[:1], 4).rows[0]) == [0, 1, 2, 3]


def test_nothing_compiles_twice(monkeypatch):
    monkeypatch.setattr(exact, "_chunks", lambda: (32, 2048))
    rng = np.random.default_rng(1)
    search = exact.put_on_devices([unit(rng, 3000, 8)], num_devices=1)
    for count in (1, 3, 40):
        search.top(unit(rng, count, 8), 10)
    before = exact._best._cache_size()
    for count in (1, 2, 8, 9, 16, 17, 31, 100):
        for top_k in (5, 7, 10, 12):
            search.top(unit(rng, count, 8), top_k)
    assert exact._best._cache_size() == before


def test_the_sizes_in_use():
    """As above with the chunks that a CPU gets, more than one of both."""
    rng = np.random.default_rng(2)
    rows, queries = unit(rng, 40011, 32), unit(rng, 300, 32)
    search = exact.put_on_devices([rows], num_devices=1)
    assert len(search.chunks) > 1 and len(queries) > search.query_chunk
    check(search.top(queries, 10), queries, rows, 10)


@pytest.mark.parametrize(
    ("shape", "top_k", "words"),
    [
        ((2, 7), 1, r"\[2, 7\] cannot be compared with embeddings of width 8"),
        ((8,), 1, "give \\[Q, 8\\]"),
        ((0, 8), 1, "no query"),
        ((2, 8), 0, "top_k is 0"),
    ],
)
def test_wrong_queries_are_refused(shape, top_k, words):
    search = exact.put_on_devices([np.eye(8, dtype=np.float32)], num_devices=1)
    with pytest.raises(UserError, match=words):
        search.top(np.ones(shape, np.float32), top_k)
    with pytest.raises(UserError, match="not finite"):
        search.top(np.full((1, 8), np.nan), 1)


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 4500])
def test_a_row_that_is_not_finite(small_chunks, number, row):
    """Wherever it lies: each chunk has its own largest norm."""
    rows = unit(np.random.default_rng(0), 5000, 8)
    rows[row, 0] = number
    with pytest.raises(UserError, match="not finite"):
        exact.put_on_devices([rows], num_devices=1)


def test_wrong_rows_are_refused():
    rows = np.eye(8, dtype=np.float32)
    with pytest.raises(UserError, match="no embedding to search in"):
        exact.put_on_devices([rows[:0]])
    with pytest.raises(UserError, match=r"float16 \[N, 8\] and float32 \[N, 8\]"):
        exact.put_on_devices([rows, rows.astype(np.float16)])
    with pytest.raises(UserError, match="width"):
        exact.put_on_devices([rows, rows[:, :4]])
    with pytest.raises(UserError, match="not finite"):
        exact.put_on_devices([np.full_like(rows, np.inf)], num_devices=1)
