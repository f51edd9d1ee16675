"""AdamW against NumPy in float64, from the first step on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vilem_jax.config.schema import OptimizerConfig
from vilem_jax.training.optimizer import make_optimizer


@pytest.mark.parametrize("beta1", [0.9, 0.0])
def test_directions_equal_float64(beta1):
    config = OptimizerConfig(beta1=beta1, weight_decay=0.02, eps=1e-2)
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 4)).astype(np.float32)}
    optimizer = make_optimizer(config)
    state = optimizer.init(jax.tree.map(jnp.asarray, params))
    mean, square = 0.0, 0.0
    for step in range(1, 5):
        gradient = 10 * rng.normal(size=(3, 4)).astype(np.float32)
        ours, state = optimizer.update({"kernel": jnp.asarray(gradient)}, state, params)
        gradient = gradient.astype(np.float64)
        mean = beta1 * mean + (1 - beta1) * gradient
        square = config.beta2 * square + (1 - config.beta2) * gradient**2
        size = np.sqrt(square / (1 - config.beta2**step)) + config.eps
        wanted = mean / (1 - beta1**step) / size + 0.02 * params["kernel"]
        np.testing.assert_allclose(ours["kernel"], wanted, rtol=1e-6, atol=1e-6)
