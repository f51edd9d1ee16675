"""Caption pairs: accuracy by type."""

import numpy as np
import pytest

from vilem_jax.data.images import resize_square
from vilem_jax.errors import UserError
from vilem_jax.evaluation.pairs import (
    CaptionPair,
    evaluate_pairs,
    pair_scores,
    pairs_metrics,
)


def test_accuracy_by_type_and_ties_count_against():
    metrics = pairs_metrics(
        [1.0, 0.5, 0.2, 0.9], [0.0, 0.5, 0.3, 0.1], ["swap", "count", "swap", "swap"]
    )
    assert metrics["accuracy"] == 50.0
    assert metrics["by_type"] == {"swap": pytest.approx(200 / 3), "count": 0.0}
    assert metrics["pairs_by_type"] == {"swap": 3, "count": 1}


@pytest.mark.parametrize(("true", "words"), [([], "no pair"), ([np.nan], "not finite")])
def test_nothing_and_nan_are_refused(true, words):
    with pytest.raises(UserError, match=words):
        pairs_metrics(true, [0.0] * len(true), ["swap"] * len(true))


def test_each_image_is_encoded_once_and_met_with_its_captions():
    vectors = {"a": [1, 0], "b": [0, 1], "b.jpg": [0, 1], "a.jpg": [1, 0]}
    encoded = []

    def encode(names):
        encoded.extend(names)
        return np.array([vectors[name] for name in names], np.float32)

    pairs = [
        CaptionPair("b.jpg", "b", "a", "object"),
        CaptionPair("a.jpg", "a", "b", "object"),
        CaptionPair("b.jpg", "a", "b", "swap"),
    ]
    true, wrong = pair_scores(pairs, encode, encode)
    assert encoded[:3] == ["b.jpg", "a.jpg", "b"]
    np.testing.assert_array_equal(true, [1, 1, 0])
    np.testing.assert_array_equal(wrong, [0, 0, 1])


def test_a_model_judges_pairs_of_a_source(encoder, source):
    pairs = [
        CaptionPair(0, "a red dog", "a blue dog", "attribute"),
        CaptionPair(2, "a red dog", "a red dog", "same"),
    ]
    metrics = evaluate_pairs(encoder, pairs, source)
    images = encoder.encode_pixels(
        resize_square(source.read_image(index), 16) for index in (0, 2)
    )
    texts = encoder.encode_captions(["a red dog", "a blue dog"])
    is_right = images[0] @ texts[0] > images[0] @ texts[1]
    assert metrics["by_type"] == {"attribute": 100.0 * is_right, "same": 0.0}


def test_a_missing_image_is_named(encoder, tmp_path):
    class Images:
        name = "mine"

        def image_name(self, name):
            return name

        def read_image(self, name):
            return (tmp_path / name).read_bytes()

    pairs = [CaptionPair("gone.jpg", "a red dog", "a blue dog", "attribute")]
    with pytest.raises(UserError, match=r"gone\.jpg of mine cannot be read"):
        evaluate_pairs(encoder, pairs, Images())


def test_all_wrong_captions_must_score_below_the_true_one():
    vectors = {"a": [1, 0], "b": [0, 1], "ab": [0.6, 0.8], "a.jpg": [1, 0]}

    def encode(names):
        return np.array([vectors[name] for name in names], np.float32)

    pairs = [
        CaptionPair("a.jpg", "a", ("b", "ab"), "order"),
        CaptionPair("a.jpg", "ab", ("b", "a"), "order"),
        CaptionPair("a.jpg", "ab", "b", "order"),
        CaptionPair("a.jpg", "a", ("b", "a"), "order"),
    ]
    true, wrong = pair_scores(pairs, encode, encode)
    np.testing.assert_allclose(true, [1, 0.6, 0.6, 1])
    np.testing.assert_allclose(wrong, [0.6, 1, 0, 1])
    assert pairs_metrics(true, wrong, ["order"] * 4)["accuracy"] == 50.0


def test_nan_of_one_wrong_caption_is_not_hidden_by_the_others():
    vectors = {"a": [1, 0], "b": [0, 1], "nan": [np.nan, 0], "a.jpg": [1, 0]}

    def encode(names):
        return np.array([vectors[name] for name in names], np.float32)

    pairs = [
        CaptionPair("a.jpg", "a", ("nan", "b"), "order"),
        CaptionPair("a.jpg", "a", ("b", "b"), "order"),
    ]
    true, wrong = pair_scores(pairs, encode, encode)
    np.testing.assert_array_equal(np.isnan(wrong), [True, False])
    with pytest.raises(UserError, match="not finite"):
        pairs_metrics(true, wrong, ["order"] * 2)


def test_groups_of_a_type_and_their_mean():
    metrics = pairs_metrics(
        [1.0, 1.0, 1.0, 0.0, 1.0],
        [0.0, 0.0, 0.0, 1.0, 0.0],
        ["relation"] * 4 + ["plain"],
        ["on", "on", "on", "under", ""],
    )
    assert metrics["by_type"] == {"relation": 75.0, "plain": 100.0}
    assert metrics["mean_over_groups"] == {"relation": 50.0}
    assert metrics["by_group"]["relation"]["on"] == {"accuracy": 100.0, "pairs": 3}
    assert "by_group" not in pairs_metrics([1.0], [0.0], ["plain"], [""])
