"""Exports to faiss and LanceDB, and the recall that they report."""

import json

import numpy as np
import pytest

from tests.search.test_exact import brute_force, unit
from vilem_jax.errors import UserError
from vilem_jax.search import handover
from vilem_jax.search.exact import put_on_devices
from vilem_jax.search.handover import hand_over, recall_against_exact
from vilem_jax.search.vectors import Vectors


def made(count=600, width=16, dtype=np.float32, seed=0):
    rows = unit(np.random.default_rng(seed), count, width).astype(dtype)
    names = [f"{row}.jpg" for row in range(count)]
    return Vectors("one", "photos", names, (rows[: count // 3], rows[count // 3 :]))


def asked(count=20, width=16):
    return unit(np.random.default_rng(9), count, width)


def test_recall_counts_what_is_missed():
    rows = unit(np.random.default_rng(0), 200, 16)
    search, queries = put_on_devices([rows]), asked()
    truth = search.top(queries, 10)
    order, _ = brute_force(queries, rows, 20)

    def metrics(found_rows):
        report = recall_against_exact(search, lambda *_: found_rows, queries, truth)
        return report["recall"], report["worst"]

    assert metrics(order[:, :10]) == (1, 1)
    assert metrics(order[:, 9::-1]) == (1, 1)  # the order is not its business
    assert metrics(order[:, 10:]) == (0, 0)
    assert metrics(np.full((20, 10), -1)) == (0, 0)
    one_wrong = order[:, :10].copy()
    one_wrong[0, 3:] = order[0, 13:20]
    assert metrics(one_wrong) == (pytest.approx(1 - 0.7 / 20), pytest.approx(0.3))


def test_ties_are_nobody_s_fault():
    rows = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
    search, queries = put_on_devices([rows]), np.eye(4, dtype=np.float32)[:1]
    truth = search.top(queries, 2)
    assert truth.rows.tolist() == [[0, 1]]
    last = np.array([[3, 4]])
    assert recall_against_exact(search, lambda *_: last, queries, truth)["recall"] == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_faiss(tmp_path, kind, dtype):
    faiss = pytest.importorskip("faiss", reason="faiss is missing: [search]")
    vectors, queries = made(dtype=dtype), asked()
    out = tmp_path / "out"
    metrics = hand_over(vectors, out, to="faiss", kind=kind, queries=queries)
    assert json.loads((out / "recall.json").read_text()) == metrics
    assert metrics["images"] == 600 and metrics["top_k"] == 10
    assert metrics["queries"] == "20 texts"
    index = faiss.read_index(str(out / "index.faiss"))
    _, rows = index.search(queries, 10)
    exact = put_on_devices(vectors.parts).top(queries, 10)
    if kind == "flat":
        np.testing.assert_array_equal(rows, exact.rows)
        own = hand_over(vectors, tmp_path / "own", to="faiss")
        assert own["queries"] == "600 of the images"
        assert metrics["recall"] == 1
    # The reported recall is that of the file on disk.
    hits = [len(set(a) & set(b)) / 10 for a, b in zip(rows, exact.rows, strict=True)]
    assert metrics["recall"] == pytest.approx(np.mean(hits))
    assert metrics["recall"] > 0.5
    names = (out / "names.jsonl").read_text().splitlines()
    assert len(names) == 600 and json.loads(names[599]) == "photos/599.jpg"


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_lancedb(tmp_path, kind):
    lancedb = pytest.importorskip("lancedb", reason="lancedb is missing: [search]")
    vectors, queries = made(), asked(5)
    out = tmp_path / "out"
    metrics = hand_over(vectors, out, to="lancedb", kind=kind, queries=queries)
    assert json.loads((out / "recall.json").read_text()) == metrics
    assert metrics["recall"] == 1 if kind == "flat" else metrics["recall"] > 0.5
    table = lancedb.connect(str(out)).open_table("images")
    assert table.count_rows() == 600
    assert bool(table.list_indices()) == (kind != "flat")
    if kind == "flat":
        exact = put_on_devices(vectors.parts).top(queries, 3)
        query = table.search(queries[2]).distance_type("dot").limit(3)
        names = query.to_arrow()["name"].to_pylist()
        assert names == [f"photos/{row}.jpg" for row in exact.rows[2]]


def test_lancedb_keeps_half_precision(tmp_path):
    lancedb = pytest.importorskip("lancedb", reason="lancedb is missing: [search]")
    vectors = made(dtype=np.float16)
    metrics = hand_over(vectors, tmp_path / "out", to="lancedb", queries=asked(3))
    assert metrics["recall"] == 1
    table = lancedb.connect(str(tmp_path / "out")).open_table("images")
    assert "halffloat" in str(table.schema.field("vector").type)


def test_queries_of_its_own():
    vectors = made(50)
    own = handover.own_queries(vectors)
    np.testing.assert_array_equal(own, np.concatenate(vectors.parts))
    assert len(handover.own_queries(made(), 10)) == 10


def test_what_cannot_be_handed_over(tmp_path, monkeypatch):
    vectors = made(50)
    with pytest.raises(UserError, match="not to 'milvus'"):
        hand_over(vectors, tmp_path / "out", to="milvus")
    with pytest.raises(UserError, match="flat, ivf or hnsw"):
        hand_over(vectors, tmp_path / "out", to="faiss", kind="tree")
    monkeypatch.setattr(handover, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"lancedb is not installed: pip .*\[search\]"):
        hand_over(vectors, tmp_path / "out", to="lancedb")
    monkeypatch.setattr(handover, "find_spec", lambda name: True)
    narrow = np.ones((2, 7), np.float32)
    with pytest.raises(UserError, match="width 16"):
        hand_over(vectors, tmp_path / "out", to="faiss", queries=narrow)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").touch()
    with pytest.raises(UserError, match="is not an empty folder"):
        hand_over(vectors, tmp_path / "full", to="faiss")

    def fails(*_):
        raise RuntimeError("disk full")

    monkeypatch.setitem(handover._WRITERS, "faiss", fails)
    with pytest.raises(UserError, match=r"cannot write .*disk full"):
        hand_over(vectors, tmp_path / "out", to="faiss")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
