"""Encoders: any number of rows, two programs, the model's own numbers."""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vilem_jax.errors import UserError
from vilem_jax.evaluation.encoding import read_ahead
from vilem_jax.models.text import make_attention_mask
from vilem_jax.models.vision import normalize


def images(count, seed=0):
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8))


def test_any_number_of_images_and_no_recompiling(encoder, model, config):
    pixels = images(9)
    expected = model.encode_image(normalize(jnp.asarray(pixels), config.augment))
    for count in (1, 2, 4, 5, 9):
        found = encoder.encode_pixels(iter(pixels[:count]))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[:count], atol=1e-5)
    assert encoder.programs["images"]._cache_size() == 2


def test_texts_do_not_depend_on_padding(encoder, model, tokenizer):
    captions = ["a red dog", "the cat", "a", "", "small dogs on the left of a circle"]
    tokens = tokenizer.encode(captions, 12)
    found = encoder.encode_tokens(tokens)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    short = jnp.asarray(tokenizer.encode(captions[:3], 6))
    expected = model.encode_text(short, make_attention_mask(short, 0))
    np.testing.assert_allclose(found[:3], expected, atol=1e-5)


def test_other_parameters_use_the_same_programs(encoder):
    doubled = jax.tree.map(lambda values: values * 2, encoder.params)
    other = dataclasses.replace(encoder, params=doubled)
    before = encoder.encode_pixels(images(3))
    size = encoder.programs["images"]._cache_size()
    assert not np.allclose(other.encode_pixels(images(3)), before)
    assert encoder.programs["images"]._cache_size() == size


@pytest.mark.parametrize("branch", ["local", "global"])
def test_proofreading_is_the_model_s(encoder, model, config, tokenizer, branch):
    pixels = images(5)
    tokens = tokenizer.encode(["a red dog", "a cat", "blue dogs", "on", "a big cat"], 8)
    positions = np.array([[1, 2], [2, 1], [3, 1], [1, 0], [3, 2]], np.int32)
    labels = np.take_along_axis(tokens, positions, axis=1)
    both = encoder.proofread(pixels, tokens, positions, labels)
    alone = encoder.proofread(pixels, tokens, positions, labels, branches=(branch,))
    found = both[branch]
    for one, other in zip(found, alone[branch], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)

    features = model.image_features(normalize(jnp.asarray(pixels), config.augment))
    attention_mask = make_attention_mask(jnp.asarray(tokens), 0)
    if branch == "local":
        hidden = model.proofread_local(tokens, attention_mask, features.levels)
        logits = model.local_logits(hidden, positions)
    else:
        feature = model.image_global(features)
        hidden = model.proofread_global(tokens, attention_mask, feature)
        logits = model.global_logits(hidden, positions)
    detect, correct = (np.asarray(part, np.float64) for part in logits)
    probability = np.exp(correct) / np.exp(correct).sum(-1, keepdims=True)
    is_editable, is_piece = (
        tokenizer.vocabulary.is_editable,
        tokenizer.vocabulary.is_piece,
    )
    for row in range(5):
        wrong = 1 / (1 + np.exp(detect[row, :, 1] - detect[row, :, 0]))
        np.testing.assert_allclose(found.p_wrong[row], wrong, rtol=1e-4)
        for k in range(2):
            scores = correct[row, k]
            assert found.rank[row, k] == np.sum(scores >= scores[labels[row, k]])
            may_stand = is_editable & (
                is_piece == is_piece[tokens[row, positions[row, k]]]
            )
            words = [w for w in np.argsort(-scores) if may_stand[w]][:4]
            here = slice(len(words))  # behind them nothing, at a probability of 0
            np.testing.assert_array_equal(found.best[row, k, here], words)
            np.testing.assert_allclose(
                found.p_best[row, k, here], probability[row, k, words], rtol=1e-4
            )
            assert not found.p_best[row, k, len(words) :].any()


def test_nothing_to_encode_is_a_sentence(encoder):
    with pytest.raises(UserError, match="no image"):
        encoder.encode_pixels([])
    with pytest.raises(UserError, match="no caption"):
        encoder.encode_tokens(np.zeros((0, 4), np.int32))


def test_captions_longer_than_the_tower_are_refused(encoder, tokenizer):
    tokens = tokenizer.encode(["a red dog"], 17)
    with pytest.raises(UserError, match=r"17 tokens .* 16 positions"):
        encoder.encode_tokens(tokens)
    with pytest.raises(UserError, match="17 tokens"):
        encoder.proofread(images(1), tokens, tokens, tokens)


@pytest.mark.parametrize("num_images", [2, 4])
def test_each_caption_needs_an_image(encoder, tokenizer, num_images):
    tokens = tokenizer.encode(["a red dog"] * 3, 6)
    with pytest.raises(ValueError, match=f"3 captions .* not {num_images}"):
        encoder.proofread(images(num_images), tokens, tokens[:, :2], tokens[:, :2])


def test_images_come_in_order_and_square(encoder, source, capsys, monkeypatch):
    found = list(encoder.read_images(source, [2, 0, 2]))
    assert [image.shape for image in found] == [(16, 16, 3)] * 3
    np.testing.assert_array_equal(found[0], found[2])
    monkeypatch.setattr("vilem_jax.progress.SOON", 0.01)
    rows = [1] * 1000  # more than are read ahead
    shown = dataclasses.replace(encoder, show_progress=True).read_images(source, rows)
    assert next(shown).shape == (16, 16, 3)
    time.sleep(0.1)
    assert re.search(r"reading images, [\d,]+ of 1,000", capsys.readouterr().err)
    assert len(list(shown)) == 999
    assert list(read_ahead(lambda n: n * n, range(100))) == [n * n for n in range(100)]


def test_a_corrupt_image_is_named(encoder, source):
    class Unreadable(type(source)):
        def read_image(self, index):
            return b"no image"

    with pytest.raises(UserError, match=r"image 3\.png of four"):
        list(encoder.read_images(Unreadable(), [3]))
