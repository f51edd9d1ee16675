"""From a tiny untrained model to a page: it shows the metrics."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import tiny_config
from vilem_jax.api import Model
from vilem_jax.data.scenes.hard_pairs import hard_pairs
from vilem_jax.data.scenes.source import ScenesSource
from vilem_jax.data.tokenizer import Tokenizer, train_vocabulary
from vilem_jax.editing.stored_edits import StoredEdits, captions_digest
from vilem_jax.evaluation.encoding import make_encoder
from vilem_jax.report.collect import edited_words, evaluate, make_report, run_charts
from vilem_jax.report.html import render
from vilem_jax.training.state import init_params

NUM_IMAGES = 10


@pytest.fixture(scope="module")
def source():
    return ScenesSource("test", size=32, num_images=NUM_IMAGES)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    whole = ScenesSource("test")
    captions = [c for index in range(len(whole)) for c in whole.captions(index)]
    train_vocabulary(captions, 256, folder)
    tokenizer = Tokenizer(folder)
    config = tiny_config(
        model={"text": {"vocab_size": tokenizer.vocabulary.size}},
        data={"text_length": 24},
        evaluation={"text_length": 24},
    )
    params = init_params(config, jax.random.key(0))
    return Model(make_encoder(config, params, tokenizer), "online")


@pytest.fixture(scope="module")
def edits(model, source):
    """The first word of each caption becomes another."""
    tokens = model.tokenizer.encode([source.captions(n)[0] for n in range(10)], 24)
    edited = tokens.copy()
    edited[:, 1] = model.tokenizer.encode(["green"], 3)[0, 1]
    positions = np.tile(np.array([[1, 2]], np.int32), (NUM_IMAGES, 1))
    return StoredEdits(
        source="test",
        captions=captions_digest(source, np.arange(NUM_IMAGES)),
        vocabulary="",
        editor="",
        manner="{}",
        seed=0,
        image=np.arange(NUM_IMAGES, dtype=np.int32),
        tokens=tokens,
        edited=edited,
        positions=positions,
        is_edit=np.tile([[True, False]], (NUM_IMAGES, 1)),
    )


@pytest.fixture(scope="module")
def evaluated(model, source, edits):
    return evaluate(model, source, edits=edits, pairs=hard_pairs(source))


def test_metrics_are_complete_and_json(evaluated, source):
    metrics = json.loads(json.dumps(evaluated[0], allow_nan=False))
    assert metrics["retrieval"]["images"] == NUM_IMAGES
    assert metrics["chance"]["t2i"]["r1"] == pytest.approx(100 / NUM_IMAGES)
    assert metrics["proofread"]["edits"] == NUM_IMAGES
    assert set(metrics["proofread"]["shuffled"]) == {"local", "global"}
    assert metrics["pairs"]["pairs"] == len(hard_pairs(source))


def test_the_page_shows_the_metrics(model, source, edits, evaluated, tmp_path):
    records = [
        {"step": step, "loss_i2t": 5.0 - step, "loss_local_detect": "NaN"}
        for step in (1, 2)
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(lines)
    report = make_report(
        model,
        source,
        *evaluated,
        title="A title",
        summary="A summary",
        run=tmp_path,
        edits=edits,
        facts={},
        seed=0,
    )
    assert len(report.queries) == 6
    for query in report.queries:
        assert query.caption in evaluated[1].captions
        assert len(query.images) == 5
        assert (query.right is None) == (query.rank > 5)
        (own,) = (n for n in range(10) if query.caption in source.captions(n))
        if query.right is not None:
            shown = query.images[query.right]
            np.testing.assert_array_equal(shown, source.read_image(own))
    assert len(report.proofread) == 9
    for example in report.proofread:
        (first, original), *others = example.words
        assert first.word == "green"
        assert original in ("a", "two", "three", "four", "against")
        assert {original for _, original in others} == {None}
    assert [chart.title for chart in report.charts] == ["Contrast: loss"]
    assert report.charts[0].curves[0].points == ((1, 4.0), (2, 3.0))
    assert "A title" in render(report)


def test_the_rank_of_a_query_is_that_of_the_metrics(model, source, edits):
    """If all embeddings are equal, every right image comes last: ties count against."""
    zero = jax.tree.map(jnp.zeros_like, model.encoder.params)
    blind = dataclasses.replace(
        model, encoder=dataclasses.replace(model.encoder, params=zero)
    )
    metrics, encoded = evaluate(blind, source, edits=edits, pairs=hard_pairs(source))
    report = make_report(
        blind,
        source,
        metrics,
        encoded,
        title="",
        summary="",
        run="/nowhere",
        edits=edits,
        facts={},
        seed=0,
    )
    assert {query.rank for query in report.queries} == {NUM_IMAGES}
    assert metrics["retrieval"]["t2i"]["median_rank"] == NUM_IMAGES


def test_curves_of_the_first_validation_source():
    records = [
        {"step": 10, "validation/coco/val/t2i/r1": 1.0, "validation/b/t2i/r1": 9.0},
        {"step": 20, "validation/coco/val/t2i/r1": 2.0, "validation/b/t2i/r1": 9.0},
    ]
    (chart,) = run_charts(records)
    assert chart.curves[0].name == "words to image"
    assert chart.curves[0].points == ((10, 1.0), (20, 2.0))
    assert run_charts([]) == ()


def test_edited_words_have_their_originals(model):
    encode = model.tokenizer.encode
    (original,), (edited,) = (
        encode([f"a {colour} circle"], 8) for colour in ("red", "blue")
    )
    words = edited_words(model.tokenizer, original, edited)
    assert words == [("a", None), ("blue", "red"), ("circle", None)]
    assert edited_words(model.tokenizer, edited, edited)[1] == ("blue", None)
