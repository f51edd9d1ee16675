"""A step with a NaN or Inf anywhere changes the counters and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.tiny import compiled_update, tiny_config, tiny_samples, tiny_state
from vilem_jax.training.optimizer import make_optimizer
from vilem_jax.training.step import apply_gradients

CONFIG = tiny_config()
COUNTERS = ("step", "skipped_total", "skipped_in_a_row")


@pytest.fixture(scope="module")
def trained():
    """A state with moments and a full queue."""
    update, state = compiled_update(CONFIG), tiny_state(CONFIG)
    for number in range(2):
        state, metrics = update(state, tiny_samples(number))
    assert metrics["queue_fill"] == 1 and np.isfinite(metrics["loss"])
    return state


def poisoned(tree, path, value):
    """`tree` with one element of one array replaced; path names its dict keys."""
    if not path:
        return tree.at[(0,) * tree.ndim].set(value)
    key, *rest = path
    return {**tree, key: poisoned(tree[key], rest, value)}


def with_moment(state, which, value):
    moments = poisoned(optax.tree.get(state.opt_state, which), KERNEL, value)
    opt_state = optax.tree.set(state.opt_state, **{which: moments})
    return dataclasses.replace(state, opt_state=opt_state)


KERNEL = ("text", "layers", 0, "mlp", "expand", "kernel")
PIXELS = ("vision", "patch_embedding", "kernel")
POSITIONS = {
    "pixels": None,
    "image tower": ("params", PIXELS),
    "text tower": ("params", KERNEL),
    "word": ("params", ("text", "embedding", "words")),
    "temperature": ("params", ("temperature",)),
    "correction logits": ("params", ("local_head", "correct_bias")),
    "detection logits": ("params", ("global_head", "detect", "bias")),
    "momentum image tower": ("momentum_params", PIXELS),
    "momentum text tower": ("momentum_params", KERNEL),
    "image queue": ("image_queue", ()),
    "text queue": ("text_queue", ()),
}


def poison(state, samples, where, value):
    if where == "pixels":
        return state, samples._replace(pixels=poisoned(samples.pixels, (), value))
    name, path = POSITIONS[where]
    changed = poisoned(getattr(state, name), path, value)
    return dataclasses.replace(state, **{name: changed}), samples


def assert_only_counters_change(before, after):
    for field in dataclasses.fields(before):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if field.name in COUNTERS:
            assert new == old + 1
            continue
        for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), field.name


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", POSITIONS)
def test_nonfinite_step_changes_only_the_counters(trained, where, value):
    if where in ("correction logits", "detection logits") and value == -np.inf:
        pytest.skip("a probability of exactly 0 for a word that is never the label")
    state, samples = poison(trained, tiny_samples(5), where, value)
    after, metrics = compiled_update(CONFIG)(state, samples)
    assert_only_counters_change(state, after)
    assert metrics["skipped_total"] == metrics["skipped_in_a_row"] == 1


@pytest.mark.parametrize("moment", ["mu", "nu"])
def test_nan_moment_is_skipped(trained, moment):
    """Loss and gradients are finite, the update is not."""
    state = with_moment(trained, moment, np.nan)
    after, metrics = compiled_update(CONFIG)(state, tiny_samples(5))
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
    assert_only_counters_change(state, after)


def test_overflowing_gradient_is_skipped(trained):
    """Features of 1e7 before a projection of 1e-20: only the gradient is infinite."""
    params = dict(trained.params)
    params["vision"] = dict(params["vision"])
    params["vision"]["norm"] = jax.tree.map(lambda x: x * 1e7, params["vision"]["norm"])
    projection = params["image_projection"]
    params["image_projection"] = jax.tree.map(lambda x: x * 1e-20, projection)
    params["temperature"] = jnp.float32(0.001)
    state = dataclasses.replace(trained, params=params)
    after, metrics = compiled_update(CONFIG)(state, tiny_samples(5))
    assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])
    assert_only_counters_change(state, after)


def test_three_skipped_steps_and_a_finite_one(trained):
    update, good = compiled_update(CONFIG), tiny_samples(6)
    _, not_finite = poison(trained, tiny_samples(5), "pixels", np.nan)
    state = trained
    for count in range(1, 4):
        state, metrics = update(state, not_finite)
        assert metrics["skipped_in_a_row"] == metrics["skipped_total"] == count
    after, metrics = update(state, good)
    assert metrics["skipped_in_a_row"] == 0 and metrics["skipped_total"] == 3
    # As without the skipped steps, except for the counters.
    unharmed = dataclasses.replace(trained, step=trained.step + 3)
    expected, _ = update(unharmed, good)
    after = dataclasses.replace(after, skipped_total=expected.skipped_total)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)
    words = after.params["text"]["embedding"]["words"]
    assert (words != trained.params["text"]["embedding"]["words"]).any()


def test_apply_gradients_keeps_the_state(trained):
    """The part of the step that the editor's step has too."""
    nan = jax.tree.map(lambda x: x + jnp.nan, trained.params)
    optimizer, rate = make_optimizer(CONFIG.optimizer), jnp.float32(1e-3)
    update = jax.jit(
        lambda s, g: apply_gradients(s, s.params, g, rate, optimizer, rate)
    )
    after, metrics = update(trained, nan)
    assert metrics["skipped_total"] == 1
    assert_only_counters_change(trained, after)
