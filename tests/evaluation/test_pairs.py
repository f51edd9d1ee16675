"""Caption pairs: accuracy by type, and files in SugarCrepe's layout."""

import json

import numpy as np
import pytest

from vilem_jax.config import UserError
from vilem_jax.data.images import resize_square
from vilem_jax.evaluation.pairs import (
    CaptionPair,
    evaluate_pairs,
    pair_scores,
    pairs_metrics,
    read_pairs,
)


def test_accuracy_by_type_and_ties_count_against():
    figures = pairs_metrics(
        [1.0, 0.5, 0.2, 0.9], [0.0, 0.5, 0.3, 0.1], ["swap", "count", "swap", "swap"]
    )
    assert figures["accuracy"] == 50.0
    assert figures["by_type"] == {"swap": pytest.approx(200 / 3), "count": 0.0}
    assert figures["pairs_by_type"] == {"swap": 3, "count": 1}


@pytest.mark.parametrize(("true", "words"), [([], "no pair"), ([np.nan], "not finite")])
def test_nothing_and_nan_are_refused(true, words):
    with pytest.raises(UserError, match=words):
        pairs_metrics(true, [0.0] * len(true), ["swap"] * len(true))


def test_each_picture_is_encoded_once_and_met_with_its_captions():
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


def test_a_model_judges_pairs_of_a_source(encoder, tokenizer, source):
    pairs = [
        CaptionPair(0, "a red dog", "a blue dog", "attribute"),
        CaptionPair(2, "a red dog", "a red dog", "same"),
    ]
    figures = evaluate_pairs(
        encoder, tokenizer, pairs, source.read_image, text_length=12
    )
    images = encoder.encode_images(
        resize_square(source.read_image(index), 16) for index in (0, 2)
    )
    texts = encoder.encode_texts(tokenizer.encode(["a red dog", "a blue dog"], 12))
    is_right = images[0] @ texts[0] > images[0] @ texts[1]
    assert figures["by_type"] == {"attribute": 100.0 * is_right, "same": 0.0}


def test_a_missing_picture_is_named(encoder, tokenizer, tmp_path):
    pairs = [CaptionPair("gone.jpg", "a red dog", "a blue dog", "attribute")]
    with pytest.raises(UserError, match=r"gone\.jpg cannot be read"):
        evaluate_pairs(
            encoder,
            tokenizer,
            pairs,
            lambda name: (tmp_path / name).read_bytes(),
            text_length=12,
        )


def write(path, entries):
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))


def entry(number):
    return {
        "filename": f"{number}.jpg",
        "caption": f"true {number}",
        "negative_caption": f"wrong {number}",
    }


def test_a_folder_gives_one_type_a_file(tmp_path):
    write(tmp_path / "swap_obj.json", {"0": entry(0), "1": entry(1)})
    write(tmp_path / "add_att.json", [entry(2)])
    pairs = read_pairs(tmp_path)
    assert [pair.kind for pair in pairs] == ["add_att", "swap_obj", "swap_obj"]
    assert pairs[1] == CaptionPair("0.jpg", "true 0", "wrong 0", "swap_obj")
    assert read_pairs(tmp_path / "add_att.json") == pairs[:1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ({}, "holds no caption pairs"),
        ({"7": {"filename": "a.jpg", "caption": "a"}}, "entry '7'.*negative_caption"),
        ({"7": entry(0) | {"caption": " "}}, "entry '7'.*'caption'"),
        ({"7": "a"}, "entry '7'"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, words):
    write(tmp_path / "swap.json", content)
    with pytest.raises(UserError, match=f"swap.json.*{words}"):
        read_pairs(tmp_path / "swap.json")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no \.json file"):
        read_pairs(tmp_path)
    with pytest.raises(UserError, match=r"cannot read .*none\.json"):
        read_pairs(tmp_path / "none.json")
