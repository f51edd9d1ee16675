"""Tables for the terminal line up."""

from vilem_jax.api import Word
from vilem_jax.evaluation.pairs import pairs_tables
from vilem_jax.evaluation.proofread import proofread_tables
from vilem_jax.evaluation.retrieval import retrieval_tables
from vilem_jax.report.tables import render, words_table

RECALLS = {"r1": 12.34, "r5": 50.0, "r10": 100.0}
METRICS = {
    "i2t": RECALLS | {"median_rank": 3.5},
    "t2i": RECALLS | {"median_rank": 4.0},
    "rsum": 324.68,
    "images": 8,
    "captions": 16,
}


def test_retrieval():
    chance = {"i2t": RECALLS, "t2i": RECALLS}
    lines = render(retrieval_tables(METRICS, chance)).splitlines()
    assert lines[2].split() == ["text", "to", "image", "12.3", "50.0", "100.0", "4"]
    assert lines[5].split()[:2] == ["by", "chance,"]
    assert lines[-1] == "rsum 324.7  (8 images, 16 captions)"
    columns = {line.rindex("50.0") for line in lines[2:6]}
    assert len(columns) == 1
    assert "chance" not in render(retrieval_tables(METRICS))


def test_pairs():
    metrics = {
        "accuracy": 62.5,
        "pairs": 8,
        "by_type": {"swap": 50.0, "count": 75.0},
        "pairs_by_type": {"swap": 4, "count": 4},
    }
    table = render(pairs_tables(metrics))
    rows = [line.split() for line in table.splitlines()[2:]]
    assert rows == [["swap", "50.0", "4"], ["count", "75.0", "4"], ["all", "62.5", "8"]]


def test_proofreading():
    branch = {
        "detect": {"precision": 0.5, "recall": 0.25, "f1": 1 / 3},
        "correct": {"top1": 0.1, "top3": 0.2},
    }
    both = {"local": branch, "global": branch}
    table = render(
        proofread_tables(both | {"shuffled": both, "captions": 3, "edits": 5})
    )
    assert table.count("0.333") == 4 and table.count("another image") == 2
    assert "(3 captions, 5 wrong words)" in table
    alone = render(proofread_tables(both | {"captions": 3, "edits": 5}))
    assert "another" not in alone
    part = {"global": {"correct": branch["correct"]}, "captions": 3, "edits": 5}
    assert render(proofread_tables(part)).splitlines()[2].split() == [
        "global",
        *"---",
        "0.100",
        "0.200",
    ]


def test_words():
    words = [Word("a", 0.1, ()), Word("red", 0.9, (("blue", 0.7), ("big", 0.2)))]
    lines = words_table(words).splitlines()
    assert not lines[2].startswith("wrong") and lines[3].startswith("wrong")
    assert lines[3].endswith("blue 0.70, big 0.20")
