"""Muon: which parameters take it, its direction in float64, its state, many devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.runs.test_checkpoints import abstract, assert_same
from tests.tiny import CONTRAST_ALONE, tiny_config, tiny_state
from tests.training.test_invariance import assert_same_run, run
from vilem_jax.config.schema import OptimizerConfig
from vilem_jax.planning import memory
from vilem_jax.runs.checkpoints import Checkpoints
from vilem_jax.training.optimizer import make_optimizer, takes_muon
from vilem_jax.training.state import init_params

MUON = {"name": "muon"}
SHAPES = {"wide": (4, 7), "tall": (9, 3)}
QUINTIC = 3.4445, -4.7750, 2.0315  # Jordan et al. 2024


def near_orthogonal(matrix):
    """Five Newton-Schulz steps, by singular values: vectors stay, values go to 1."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(values)
    a, b, c = QUINTIC
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    return left * values @ right, values


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_directions_equal_float64(shape):
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.3, muon_rms=0.6, **MUON))
    rng = np.random.default_rng(0)
    params = {"query": {"kernel": rng.normal(size=shape).astype(np.float32)}}
    state = optimizer.init(params)
    mean = np.zeros(shape)
    for count in range(1, 4):
        gradient = rng.normal(size=shape).astype(np.float32)
        ours, state = optimizer.update(
            {"query": {"kernel": jnp.asarray(gradient)}}, state, params
        )
        mean = 0.95 * mean + 0.05 * gradient.astype(float)
        ahead = 0.95 * mean / (1 - 0.95 ** (count + 1))
        ahead += 0.05 * gradient / (1 - 0.95**count)
        direction, values = near_orthogonal(ahead)
        assert values.min() > 0.5 and values.max() < 1.3
        expected = 0.6 * np.sqrt(max(shape)) * direction
        expected += 0.3 * params["query"]["kernel"]
        np.testing.assert_allclose(ours["query"]["kernel"], expected, atol=1e-5)


def test_all_but_hidden_kernels_use_adam():
    params = init_params(tiny_config(), jax.random.key(0))
    grads = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size)).reshape(p.shape), params)
    updates = {}
    for name in ("adamw", "muon"):
        optimizer = make_optimizer(OptimizerConfig(name=name))
        updates[name], _ = optimizer.update(grads, optimizer.init(params), params)
    differs = jax.tree.map(lambda a, m: bool((a != m).any()), *updates.values())
    by_muon = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, value in jax.tree_util.tree_leaves_with_path(differs)
        if value
    }
    kernels = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, value in jax.tree_util.tree_leaves_with_path(params)
        if jax.tree_util.keystr(path).endswith("['kernel']")
    }
    assert kernels - by_muon == {
        "vision.patch_embedding.kernel",
        "local_head.detect.kernel",
        "global_head.detect.kernel",
    }
    assert by_muon < kernels


def test_state_round_trips_and_is_counted(tmp_path):
    config = tiny_config(optimizer=MUON)
    state = jax.tree.map(  # no two moments alike
        lambda x: x + jnp.arange(x.size, dtype=x.dtype).reshape(x.shape),
        tiny_state(config),
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state)
    with Checkpoints(tmp_path) as checkpoints:
        restored, step = checkpoints.restore_latest(abstract(state))
    assert step == 3
    assert_same(restored, state)

    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    num_values = sum((1 if takes_muon(*leaf) else 2) * leaf[1].size for leaf in leaves)
    num_coefficients = len(QUINTIC)
    moments = memory.state_bytes(config)["optimizer's moments"]
    assert moments == 4 * (num_values + num_coefficients)


@pytest.mark.slow
def test_eight_devices_with_a_split_state_equal_one():
    sections = {"optimizer": MUON, "loss": CONTRAST_ALONE}  # compiles in half the time
    whole = run(tiny_config(**sections))
    split = tiny_config(
        compute={"sharding": "zero1"}, train={"num_microbatches": 2}, **sections
    )
    assert_same_run(run(split, 8), whole)
