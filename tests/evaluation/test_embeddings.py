"""Figures of given features, and files that cannot be such."""

import numpy as np
import pytest

from vilem_jax.errors import UserError
from vilem_jax.evaluation.embeddings import Features, evaluate_embeddings, read_features
from vilem_jax.evaluation.recall import retrieval_metrics


def features(dtype=np.float32):
    rng = np.random.default_rng(0)
    image_of_text = np.array([0, 1, 1, 2, 3, 3, 3, 0])
    images = rng.normal(size=(4, 6))
    texts = images[image_of_text] + rng.normal(size=(8, 6))
    return {
        "image_embedding": images.astype(dtype),
        "text_embedding": texts.astype(dtype),
        "image_of_text": image_of_text,
    }


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_of_any_length_are_compared_by_their_cosine(tmp_path, dtype):
    given = features(dtype)
    rng = np.random.default_rng(1)
    for name in ("image_embedding", "text_embedding"):  # powers of 2 change no digit
        given[name] *= (2.0 ** rng.integers(-2, 3, (len(given[name]), 1))).astype(dtype)
    np.savez(tmp_path / "f.npz", extra=np.ones(3), **given)
    found = evaluate_embeddings(read_features(tmp_path / "f.npz"), name="f", folds=2)
    plain = features(dtype)
    expected = retrieval_metrics(
        unit(plain["image_embedding"].astype(float)),
        unit(plain["text_embedding"].astype(float)),
        plain["image_of_text"],
    )
    assert 0 < expected["t2i"]["r1"] < 100
    assert {name: found[name] for name in expected} == expected
    assert found["folds"]["images"] == 2
    assert found["measured"]["dtype"] == np.dtype(dtype).name
    assert set(found["measured"]["seconds"]) == {"similarity", "ranking"}
    assert found["protocol"]["rows"] == "brought to length 1"


def change(**arrays):
    return {
        name: value
        for name, value in (features() | arrays).items()
        if value is not None
    }


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (change(image_of_text=None), "has no image_of_text; it has: image_embedding"),
        (change(image_embedding=np.ones(4)), r"image_embedding must be .*\[4\]"),
        (
            change(text_embedding=np.ones((8, 6), int)),
            "text_embedding must be .* int64",
        ),
        (change(text_embedding=np.ones((8, 5))), "6 wide and text_embedding 5"),
        (change(image_of_text=np.zeros(7, int)), "each of the 8 rows"),
        (change(image_of_text=np.zeros(8)), "whole number .* float64"),
        (change(image_of_text=np.full(8, 4)), r"image_of_text\[0\] is 4.*rows 0 to 3"),
        (change(image_of_text=np.full(8, -1)), r"image_of_text\[0\] is -1"),
        (change(image_embedding=np.ones((0, 6))), "image_embedding must be"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, arrays, words):
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(UserError, match=rf"f\.npz.*{words}"):
        read_features(tmp_path / "f.npz")


def test_files_that_are_no_npz_are_named(tmp_path):
    file = tmp_path / "f.npz"
    with pytest.raises(UserError, match="does not exist"):
        read_features(file)
    contents = {
        "text": b"hello",
        "empty": b"",
        "cut zip": b"PK\x03\x04 and no more",
        "pickle": b"\x80\x04N.",
    }
    for content in contents.values():
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"cannot be read as an \.npz"):
            read_features(file)
    with open(file, "wb") as opened:
        np.save(opened, np.ones(3))
    with pytest.raises(UserError, match=r"as an \.npz of numbers: save .* np\.savez"):
        read_features(file)
    with open(file, "wb") as opened:
        np.savez(opened, **features() | {"image_of_text": np.array([None] * 8)})
    with pytest.raises(UserError, match="without Python objects"):
        read_features(file)


def test_rows_without_a_direction_are_named():
    for value, words in ((0.0, "all zeros"), (np.nan, "not finite")):
        given = features()
        given["text_embedding"][5] = value
        with pytest.raises(UserError, match=f"row 5 of text_embedding is {words}"):
            evaluate_embeddings(Features(**given), name="f")


def test_an_image_without_a_caption_is_named():
    given = features() | {"image_of_text": np.zeros(8, int)}
    with pytest.raises(UserError, match="image 1 has no caption"):
        evaluate_embeddings(Features(**given), name="f")
