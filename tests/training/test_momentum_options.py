"""Soft targets, their ramp, and dropout of the momentum model, in whole steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tiny import (
    BATCH,
    CONTRAST_ALONE,
    compiled_update,
    tiny_config,
    tiny_samples,
    tiny_state,
)
from vilem_jax.models.layers import for_site
from vilem_jax.models.vilem import model_graph
from vilem_jax.training.losses import CLEAN, MOMENTUM

WEIGHT, RAMP = 0.4, 10
SOFT = tiny_config(
    loss={
        **CONTRAST_ALONE,
        "soft_target_weight": WEIGHT,
        "soft_target_ramp_steps": RAMP,
        "momentum_dropout": True,
    }
)
HARD = tiny_config(loss=CONTRAST_ALONE)
SAMPLES = tiny_samples(1, dropout=True)


@pytest.fixture(scope="module")
def second_step():
    """The state after a step, in which the queues have rows, one parameter moved."""
    state, _ = compiled_update(SOFT)(tiny_state(SOFT), tiny_samples(0, dropout=True))
    return state


def encoded(params, stream: int | None):
    """Image and text embeddings [B, E]; with the dropout of a stream, or without."""
    seeds = None if stream is None else for_site(SAMPLES.dropout_seeds, stream)
    image, text = embeddings(params, seeds)
    return np.float64(image), np.float64(text)


@jax.jit
def embeddings(params, seeds):
    model = nnx.merge(model_graph(SOFT.model, SOFT.compute), params)
    text = model.encode_text(SAMPLES.tokens, SAMPLES.attention_mask, seeds=seeds)
    return model.encode_image(SAMPLES.pixels), text


def probabilities(logits):
    values = np.exp(logits - logits.max(axis=1, keepdims=True))
    return values / values.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("step, share", [(1, 0.1), (5, 0.5), (RAMP, 1.0), (99, 1.0)])
def test_soft_targets_are_those_of_albef(second_step, step, share):
    """(1 - alpha) one-hot + alpha softmax(own momentum key's similarities)."""
    before = dataclasses.replace(second_step, step=jnp.asarray(step, jnp.int32))
    after, metrics = compiled_update(SOFT)(before, SAMPLES)
    image, text = encoded(before.params, CLEAN)
    image_keys, text_keys = encoded(after.momentum_params, MOMENTUM)
    count, temperature = int(before.queue_count), float(metrics["temperature"])
    alpha = WEIGHT * share
    assert count == BATCH
    for name, ours, own, keys, queue in (
        ("loss_i2t", image, image_keys, text_keys, before.text_queue),
        ("loss_t2i", text, text_keys, image_keys, before.image_queue),
    ):
        others = np.concatenate([keys, np.float64(queue[:count])])
        one_hot = np.eye(BATCH, BATCH + count)
        soft = probabilities(own @ others.T / temperature)
        target = (1 - alpha) * one_hot + alpha * soft
        log = np.log(probabilities(ours @ others.T / temperature))
        loss = -np.mean(np.sum(target * log, axis=1))
        np.testing.assert_allclose(metrics[name], loss, rtol=1e-5)
        hard = -np.mean(np.sum(one_hot * log, axis=1))
        assert abs(loss - hard) > 1e-3 * hard


@pytest.mark.parametrize("config, stream", [(SOFT, MOMENTUM), (HARD, None)])
def test_momentum_keys_have_dropout_if_configured(config, stream):
    after, _ = compiled_update(config)(tiny_state(config), SAMPLES)
    image_keys, text_keys = encoded(after.momentum_params, stream)
    np.testing.assert_allclose(after.image_queue[:BATCH], image_keys, atol=1e-6)
    np.testing.assert_allclose(after.text_queue[:BATCH], text_keys, atol=1e-6)
    other = encoded(after.momentum_params, None if stream else MOMENTUM)[1]
    assert np.abs(after.text_queue[:BATCH] - other).max() > 1e-2
