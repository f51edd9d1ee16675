"""The order of a step and what each part does, on a tiny model without dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.tiny import (
    BATCH,
    NUM_STEPS,
    compiled_update,
    tiny_batch,
    tiny_config,
    tiny_editor,
    tiny_samples,
    tiny_state,
)
from vilem_jax.keys import sample_keys
from vilem_jax.models.vilem import model_graph
from vilem_jax.objectives import proofreading
from vilem_jax.training import losses
from vilem_jax.training.gradients import split, unsplit
from vilem_jax.training.optimizer import decays, make_schedule
from vilem_jax.training.step import ramp, step_metrics

CONFIG = tiny_config()
QUEUE = CONFIG.loss.queue_length


@pytest.fixture(scope="module")
def steps():
    """(state before, samples, state after, metrics) of three steps, on the host."""
    update, state, seen = compiled_update(CONFIG), tiny_state(CONFIG), []
    for number in range(3):
        samples = tiny_samples(number)
        after, metrics = update(state, samples)
        seen.append(jax.device_get((state, samples, after, metrics)))
        state = after
    return seen


@pytest.fixture(scope="module")
def embeddings():
    """`of(params, momentum_params, samples)`: embeddings and momentum keys."""
    graph = model_graph(CONFIG.model, CONFIG.compute)

    @jax.jit
    def of(params, momentum_params, samples):
        model = nnx.merge(graph, params)
        keys = losses.momentum_keys(
            samples, model=nnx.merge(graph, momentum_params), config=CONFIG.loss
        )[:2]
        text = model.encode_text(samples.tokens, samples.attention_mask)
        return model.encode_image(samples.pixels), text, *keys

    return of


def leaves(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf, float)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_no_variable_crosses_the_step(steps):
    """Arrays alone: Flax changed more than once what a jitted Variable is."""
    frozen = tiny_editor(CONFIG)
    crossing = jax.tree.leaves(
        (steps, frozen, tiny_batch()), is_leaf=lambda x: isinstance(x, nnx.Variable)
    )
    assert {type(leaf) for leaf in crossing} <= {np.ndarray, type(jnp.zeros(()))}


def test_momentum_moves_before_the_parameters_do(steps):
    """Eqs. (1), (2) with the parameters that the step began with."""
    for before, _, after, _ in steps:
        old, fast = leaves(before.momentum_params), leaves(before.params)
        for name, found in leaves(after.momentum_params).items():
            expected = 0.995 * old[name] + (1 - 0.995) * fast[name]
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    moved = leaves(steps[2][2].momentum_params)
    assert all((moved[n] != v).any() for n, v in leaves(steps[0][0].params).items())


def test_contrast_is_with_the_new_momentum_keys_and_the_old_queues(steps, embeddings):
    """Eqs. (3)-(5) from the embeddings, in float64."""
    for before, samples, after, metrics in steps:
        image, text, image_keys, text_keys = (
            np.asarray(values, float)
            for values in embeddings(before.params, after.momentum_params, samples)
        )
        count, temperature = int(before.queue_count), float(metrics["temperature"])
        for name, ours, keys, queue in (
            ("loss_i2t", image, text_keys, before.text_queue),
            ("loss_t2i", text, image_keys, before.image_queue),
        ):
            others = np.concatenate([keys, np.asarray(queue[:count], float)])
            logits = ours @ others.T / temperature
            total = np.log(np.exp(logits).sum(axis=1))
            loss = np.mean(total - np.diag(logits[:, :BATCH]))
            np.testing.assert_allclose(metrics[name], loss, rtol=1e-5)
        spread = image.std(axis=0).mean()
        np.testing.assert_allclose(metrics["embedding_std"], spread, rtol=1e-4)


def test_queues_take_the_keys_of_the_step_newest_first(steps, embeddings):
    count = 0
    for before, samples, after, metrics in steps:
        keys = embeddings(before.params, after.momentum_params, samples)[2:]
        for name, newest in zip(("image_queue", "text_queue"), keys, strict=True):
            old, new = getattr(before, name), getattr(after, name)
            np.testing.assert_allclose(new[:BATCH], newest, atol=1e-6)
            np.testing.assert_array_equal(new[BATCH:], old[: QUEUE - BATCH])
        count = min(count + BATCH, QUEUE)
        assert after.queue_count == count
        np.testing.assert_allclose(metrics["queue_fill"], count / QUEUE)


def test_parameters_move_by_adam_at_the_scheduled_rate(steps):
    """The first step's gradient is its first moment over 1 - beta1."""
    before, _, after, metrics = steps[0]
    grads = {
        name: value / 0.1
        for name, value in leaves(optax.tree.get(after.opt_state, "mu")).items()
    }
    norm = np.sqrt(sum(np.sum(grad**2) for grad in grads.values()))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    rate = make_schedule(CONFIG.optimizer, NUM_STEPS)(0)
    assert metrics["learning_rate"] == rate
    size = np.sqrt(sum(np.sum(old**2) for old in leaves(before.params).values()))
    np.testing.assert_allclose(metrics["param_norm"], size, rtol=1e-5)
    shapes = jax.tree_util.tree_leaves_with_path(before.params)
    for (path, old), found in zip(shapes, leaves(after.params).values(), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        direction = grads[name] / (np.abs(grads[name]) + 1e-8)
        if decays(path, old, CONFIG.optimizer):
            direction = direction + 0.02 * old
        np.testing.assert_allclose(found, old - rate * direction, atol=2e-7, rtol=1e-6)


def test_counters_advance_by_one(steps):
    for number, (before, _, after, metrics) in enumerate(steps):
        assert before.step == number and after.step == number + 1
        assert metrics["skipped_total"] == after.skipped_in_a_row == 0


@pytest.mark.parametrize("wild, clamped", [(0.9, 0.5), (1e-5, 0.001), (-1.0, 0.001)])
def test_temperature_is_clamped_before_the_losses(wild, clamped):
    state = tiny_state(CONFIG)
    state.params["temperature"] = jnp.float32(wild)
    after, metrics = compiled_update(CONFIG)(state, tiny_samples())
    assert metrics["temperature"] == np.float32(clamped)
    rate = float(metrics["learning_rate"])
    moved = abs(float(after.params["temperature"]) - clamped)
    assert moved < 1.01 * rate  # from the clamped value, one Adam step
    expected = 0.995 * 0.07 + 0.005 * clamped
    np.testing.assert_allclose(
        after.momentum_params["temperature"], expected, rtol=1e-6
    )


def test_correction_depends_only_on_edited_positions(steps):
    """For any tokens at the positions that are no edits."""
    state, samples, _, metrics = steps[0]
    positions = np.array(samples.edits.positions)
    spare = ~samples.edits.is_edit
    positions[spare] = 0
    edits = samples.edits._replace(positions=positions)
    _, changed = compiled_update(CONFIG)(state, samples._replace(edits=edits))
    for name, value in metrics.items():
        np.testing.assert_allclose(changed[name], value, rtol=1e-6, err_msg=name)


def test_accuracy_metrics_come_from_the_counts():
    samples = tiny_samples()
    num_edits = int(samples.edits.is_edit.sum())
    counts = proofreading.DetectionCounts(*map(jnp.asarray, (6, 8, 12)))
    loss = jnp.asarray(0.5)
    local = losses.ProofreadSums(loss, loss, counts, jnp.asarray(3))
    sums = losses.LossSums(
        i2t=loss,
        t2i=loss,
        branches={"local": local},
        embedding=jnp.asarray([BATCH * 0.5, 0.0]),
        embedding_square=jnp.asarray([BATCH * 0.5, BATCH * 0.04]),
    )
    metrics = step_metrics(jnp.asarray(1.5), sums, samples)
    np.testing.assert_allclose(metrics["local_detect_f1"], 2 * 6 / (8 + 12))
    np.testing.assert_allclose(metrics["local_correct_top1"], 3 / num_edits)
    np.testing.assert_allclose(metrics["edits_per_caption"], num_edits / BATCH)
    np.testing.assert_allclose(metrics["embedding_std"], (0.5 + 0.2) / 2, rtol=1e-6)
    assert metrics["loss"] == 1.5 and "global_detect_f1" not in metrics


def test_ramp_rises_to_one():
    found = [float(ramp(10, jnp.asarray(step))) for step in (0, 5, 10, 99)]
    np.testing.assert_allclose(found, [0.0, 0.5, 1.0, 1.0], rtol=1e-6)
    assert float(ramp(0, jnp.asarray(0))) == 1.0


def test_proofreading_losses_are_scaled_by_the_ramp():
    """Eq. (13) with both weights at their share of the ramp."""
    config = tiny_config(loss={"proofread_ramp_steps": 10})
    update, state = compiled_update(config), tiny_state(config)
    for step, share in ((0, 0.0), (3, 0.3), (20, 1.0)):
        now = dataclasses.replace(state, step=jnp.asarray(step, jnp.int32))
        _, metrics = update(now, tiny_samples(0))
        local, over_all = (
            metrics[f"loss_{branch}_detect"] + metrics[f"loss_{branch}_correct"]
            for branch in ("local", "global")
        )
        proofread = 0.8 * local + 0.2 * over_all
        contrast = (metrics["loss_i2t"] + metrics["loss_t2i"]) / 2
        expected = contrast + share * proofread
        np.testing.assert_allclose(metrics["loss"], expected, rtol=2e-6)
        assert proofread > 0.1


def test_sample_keys_depend_on_seed_step_and_sample_id_only():
    def of(seed, step, ids):
        keys = sample_keys(jax.random.key(seed), jnp.asarray(step), jnp.asarray(ids))
        return jax.random.key_data(keys)

    whole = of(0, 3, [7, 8, 9])
    np.testing.assert_array_equal(of(0, 3, [9, 7]), whole[np.array([2, 0])])
    assert (of(1, 3, [7]) != whole[:1]).any() and (of(0, 4, [7]) != whole[:1]).any()


def test_microbatches_join_to_the_batch():
    rows = jnp.arange(24).reshape(12, 2)
    parts = split(rows, 4)
    assert parts.shape == (4, 3, 2)
    np.testing.assert_array_equal(parts[1], rows[1::4])
    np.testing.assert_array_equal(unsplit(parts), rows)


def test_sixteen_pairs_are_learned():
    """Contrast and both branches fit what they see again and again."""
    update, state, samples = compiled_update(CONFIG), tiny_state(CONFIG), tiny_samples()
    first = None
    for _ in range(120):  # cross-attention begins as a whisper and is heard late
        state, metrics = update(state, samples)
        first = first or float(metrics["loss_i2t"])
    # A full queue holds older keys of the same 16 pairs: 20 more that look alike.
    floor = np.log(1 + QUEUE / BATCH)
    assert metrics["loss_i2t"] < floor + 0.3 * (first - floor)
    for branch in ("local", "global"):
        assert metrics[f"{branch}_detect_f1"] > 0.9
    assert metrics["local_correct_top1"] > 0.9
    assert metrics["global_correct_top1"] > 0.4
