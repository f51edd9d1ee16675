"""The learning rate of every step, which parameters decay, and one whole AdamW step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import tiny_config
from vilem_jax.config.schema import OptimizerConfig
from vilem_jax.training.optimizer import decays, make_optimizer, make_schedule
from vilem_jax.training.state import init_params

PAPER = OptimizerConfig()


def rates(config, num_steps, steps, **settings):
    schedule = jax.jit(make_schedule(config, num_steps, **settings))
    return np.array([schedule(jnp.asarray(step)) for step in steps])


def test_warm_up_is_linear_and_wastes_no_step():
    expected = [3e-4 / 2000, 3e-4 * 500 / 2000, 3e-4]
    np.testing.assert_allclose(
        rates(PAPER, 49_800, [0, 499, 1999]), expected, rtol=1e-6
    )


def test_cosine_starts_at_the_peak_and_ends_at_the_final_rate():
    steps = np.array([2000, 10_000, 25_900, 49_800, 60_000])
    progress = np.clip((steps - 2000) / (49_800 - 2000), 0, 1)
    expected = 1e-5 + (3e-4 - 1e-5) * 0.5 * (1 + np.cos(np.pi * progress))
    assert expected[0] == 3e-4 and expected[3] == expected[4] == 1e-5
    np.testing.assert_allclose(rates(PAPER, 49_800, steps), expected, rtol=1e-5)


def test_rate_drops_per_epoch():
    config = OptimizerConfig(decay_per="epoch", warmup_steps=5)
    by_step = OptimizerConfig(warmup_steps=5)
    stairs = rates(config, 50, range(50), steps_per_epoch=10)
    smooth = rates(by_step, 50, range(0, 50, 10))
    np.testing.assert_allclose(stairs[5:10], 3e-4)
    for epoch in range(1, 5):
        np.testing.assert_allclose(stairs[10 * epoch : 10 * epoch + 10], smooth[epoch])


@pytest.mark.parametrize("num_steps", [1, 3])
def test_run_shorter_than_its_warm_up_has_positive_rates(num_steps):
    found = rates(OptimizerConfig(warmup_steps=3), num_steps, range(num_steps))
    assert np.isfinite(found).all() and (found > 0).all()


def test_without_warm_up_the_peak_is_first():
    found = rates(OptimizerConfig(warmup_steps=0), 10, [0, 10])
    np.testing.assert_allclose(found, [3e-4, 1e-5], rtol=1e-6)


def names_that_decay(config):
    params = jax.eval_shape(lambda: init_params(tiny_config(), jax.random.key(0)))
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): decays(
            path, value, config
        )
        for path, value in jax.tree_util.tree_leaves_with_path(params)
    }


def test_only_matrices_decay():
    found = names_that_decay(PAPER)
    decaying = {name for name, does in found.items() if does}
    assert {name.rsplit(".", 1)[-1] for name in decaying} == {
        "kernel",
        "words",
        "token_types",
    }
    assert "text.layers.0.cross_attention.key.kernel" in decaying
    assert "image_projection.kernel" in decaying


def test_albef_also_decays_class_token_positions_and_temperature():
    albef = names_that_decay(OptimizerConfig(decays_all_but_biases_and_norms=True))
    paper = names_that_decay(PAPER)
    assert {name for name in albef if albef[name] != paper[name]} == {
        "temperature",
        "vision.class_token",
        "vision.position_embedding",
        "text.embedding.positions",
    }


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_directions_of_a_matrix_and_a_bias_equal_loops(clip_norm):
    config = OptimizerConfig(weight_decay=0.3, clip_norm=clip_norm)
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)}
    params = jax.tree.map(lambda p: p.astype(np.float32), params)
    optimizer = make_optimizer(config)
    state = optimizer.init(params)
    mean = square = dict.fromkeys(params, 0.0)
    for count in range(1, 4):
        grads = jax.tree.map(
            lambda p: rng.normal(size=p.shape).astype(np.float32), params
        )
        updates, state = optimizer.update(grads, state, params)
        norm = np.sqrt(sum(np.sum(np.square(g, dtype=float)) for g in grads.values()))
        scale = clip_norm / norm if clip_norm and norm > clip_norm else 1.0
        grads = {name: scale * g.astype(float) for name, g in grads.items()}
        mean = {name: 0.9 * mean[name] + 0.1 * g for name, g in grads.items()}
        square = {
            name: 0.999 * square[name] + 0.001 * g**2 for name, g in grads.items()
        }
        for name in params:
            m, v = mean[name] / (1 - 0.9**count), square[name] / (1 - 0.999**count)
            expected = m / (np.sqrt(v) + 1e-8)
            if name == "kernel":
                expected += 0.3 * params[name]
            np.testing.assert_allclose(updates[name], expected, rtol=2e-6, atol=2e-6)
