"""Mixed towers: the mean of the two crossed cosines, as unit rows."""

import jax
import numpy as np

from vilem_jax.evaluation.mixed_towers import mixed_encoder
from vilem_jax.evaluation.video import clip_embeddings


def test_the_score_is_the_mean_of_both_crossed_pairs(encoder, tokenizer):
    momentum = jax.tree.map(lambda value: 1.7 * value, encoder.params)
    other = type(encoder)(**{**vars(encoder), "params": momentum})
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    tokens = tokenizer.encode(["a red dog", "a small blue cat"], 12)
    mixed = mixed_encoder(encoder, momentum)
    images, texts = mixed.encode_pixels(pixels), mixed.encode_tokens(tokens)
    assert images.shape == (3, 16) and texts.shape == (2, 16)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
    crossed = [
        one.encode_pixels(pixels) @ two.encode_tokens(tokens).T
        for one, two in ((other, encoder), (encoder, other))
    ]
    assert np.abs(crossed[0] - crossed[1]).max() > 1e-3  # else the test shows nothing
    np.testing.assert_allclose(images @ texts.T, np.mean(crossed, axis=0), atol=1e-6)


def test_clips_too(encoder, tokenizer):
    momentum = jax.tree.map(lambda value: 1.7 * value, encoder.params)
    other = type(encoder)(**{**vars(encoder), "params": momentum})
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)  # 2 clips of 3
    tokens = tokenizer.encode(["a red dog", "a small blue cat"], 12)
    mixed = mixed_encoder(encoder, momentum)
    clips = clip_embeddings(mixed.project_frames(pixels), 3, mixed.parts)
    assert clips.shape == (2, 16)
    np.testing.assert_allclose(np.linalg.norm(clips, axis=1), 1, atol=1e-6)
    crossed = [
        clip_embeddings(one.project_frames(pixels), 3) @ two.encode_tokens(tokens).T
        for one, two in ((other, encoder), (encoder, other))
    ]
    assert np.abs(crossed[0] - crossed[1]).max() > 1e-3
    scores = clips @ mixed.encode_tokens(tokens).T
    np.testing.assert_allclose(scores, np.mean(crossed, axis=0), atol=1e-6)
