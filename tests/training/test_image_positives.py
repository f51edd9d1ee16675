"""`positives="image"` in whole steps: ids beside keys, on devices, in microbatches."""

import jax
import numpy as np
import pytest

from tests.tiny import BATCH, Runner, tiny_batch, tiny_config
from vilem_jax.training.state import abstract_state

QUEUE = 40
OFF = dict.fromkeys(
    ("local_detect", "local_correct", "global_detect", "global_correct"), False
)
LOSS = {"queue_length": QUEUE, "positives": "image"}


def batch_of(step, ids):
    return tiny_batch(step) | {"image_id": np.asarray(ids, np.int32)}


def ids_of(step):
    """Few images, so that most rows have several captions in batch and queue."""
    return np.random.default_rng(step).integers(0, 9, BATCH).astype(np.int32)


def run(config, num_devices=1, *, num_steps=4, ids=ids_of):
    runner = Runner(config, num_devices)
    state, metrics = runner.init_state(config), []
    for step in range(num_steps):
        state, record = runner.step(state, batch_of(step, ids(step)))
        metrics.append(jax.device_get(record))
    return metrics, jax.device_get(state)


@pytest.fixture(scope="module")
def alone():
    return run(tiny_config(loss=LOSS | OFF))


def test_queue_of_ids_matches_the_queue_of_keys(alone):
    expected = []
    for step in range(4):
        expected = [*ids_of(step), *expected][:QUEUE]
    state = alone[1]
    np.testing.assert_array_equal(state.queue_image_ids, expected)
    assert state.queue_count == QUEUE
    start = Runner(tiny_config(loss=LOSS | OFF)).init_state(
        tiny_config(loss=LOSS | OFF)
    )
    np.testing.assert_array_equal(start.queue_image_ids, np.full(QUEUE, -1))


def test_run_with_own_positives_has_no_ids():
    """So that its checkpoints hold the same tensors as ever."""
    names = jax.tree_util.tree_leaves_with_path(abstract_state(tiny_config()))
    assert not any("queue_image_ids" in jax.tree_util.keystr(p) for p, _ in names)


@pytest.mark.slow
def test_devices_and_microbatches_change_nothing(alone):
    config = tiny_config(loss=LOSS | OFF, train={"num_microbatches": 2})
    metrics, state = run(config, num_devices=4)
    for now, then in zip(metrics, alone[0], strict=True):
        for name in ("loss", "loss_i2t", "loss_t2i"):
            np.testing.assert_allclose(now[name], then[name], rtol=1e-6)
    np.testing.assert_array_equal(state.queue_image_ids, alone[1].queue_image_ids)
    for name in ("image_queue", "text_queue"):
        ours, theirs = getattr(state, name), getattr(alone[1], name)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_repeated_images_change_the_loss(alone):
    own = run(tiny_config(loss={"queue_length": QUEUE} | OFF))[0]
    assert abs(own[0]["loss_i2t"] - alone[0][0]["loss_i2t"]) > 1e-3
    different = [BATCH * 4, *range(1, BATCH)]

    def distinct(step):
        return np.asarray(different) + step * BATCH * 8

    found = run(tiny_config(loss=LOSS | OFF), ids=distinct)[0]
    for now, then in zip(found, own, strict=True):
        np.testing.assert_allclose(now["loss"], then["loss"], rtol=1e-6)
