"""A tiny network whose weights are large enough for differences to show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vilem_jax.config.schema import ComputeConfig, ModelConfig, TextConfig, VisionConfig
from vilem_jax.models import layers

VISION = VisionConfig(
    image_size=8, patch_size=4, width=8, num_layers=3, num_heads=2, mlp_width=16
)
TEXT = TextConfig(
    vocab_size=23,
    width=8,
    num_layers=3,
    num_heads=2,
    mlp_width=16,
    max_positions=10,
    dropout_rate=0.2,
)


@pytest.fixture(scope="session")
def vision_config():
    return VISION


@pytest.fixture(scope="session")
def text_config():
    return TEXT


@pytest.fixture(scope="session")
def model_config():
    return ModelConfig(
        vision=VISION, text=TEXT, embedding_width=6, num_proofread_layers=2
    )


@pytest.fixture(scope="session")
def build():
    """`build(module, *configs, **compute)`: a module with random parameters.

    The parameters depend on their names and shapes alone, so that the same module with
    another `compute` has the same ones.
    """

    def build_module(module, *configs, **compute):
        compute = ComputeConfig(**{"dtype": "float32", **compute})
        graph, state = nnx.split(
            nnx.eval_shape(lambda: module(*configs, compute, rngs=nnx.Rngs(0))),
            nnx.Param,
        )
        rng = np.random.default_rng(0)

        def fill(path, leaf):
            is_scale = str(getattr(path[-1], "key", "")) == "scale"
            noise = 0.4 * rng.normal(size=leaf.shape) + is_scale
            return jnp.asarray(noise, jnp.float32)

        params = jax.tree_util.tree_map_with_path(fill, nnx.to_pure_dict(state))
        if "temperature" in params:
            params["temperature"] = jnp.float32(0.07)
        return nnx.merge(graph, params)

    return build_module


@pytest.fixture(scope="session")
def tokens():
    """int32 [4, 7], and bool [4, 7] with 2 to 7 real tokens."""
    rng = np.random.default_rng(1)
    attention_mask = np.arange(7)[None] < np.array([7, 2, 5, 6])[:, None]
    ids = np.where(attention_mask, rng.integers(1, 23, (4, 7)), 0)
    return jnp.asarray(ids, jnp.int32), jnp.asarray(attention_mask)


@pytest.fixture(scope="session")
def pixels():
    rng = np.random.default_rng(2)
    return jnp.asarray(rng.normal(size=(4, 8, 8, 3)), jnp.float32)


@pytest.fixture(scope="session")
def seeds():
    """Dropout seeds, uint32 [4, 2]: one a sample."""
    return layers.dropout_seeds(jax.random.split(jax.random.key(3), 4))


@pytest.fixture(scope="session")
def assert_close():
    """Equality of trees up to the order of float32 sums.

    2e-6 of each array's largest value, and 2e-7 of the tree's: some gradients are zero
    but for rounding, such as that of an attention's key bias.
    """

    def check(ours, wanted):
        ours, wanted = jax.tree.leaves(ours), jax.tree.leaves(wanted)
        largest = max(np.abs(np.asarray(other)).max() for other in wanted)
        for mine, other in zip(ours, wanted, strict=True):
            mine, other = np.float64(np.asarray(mine)), np.float64(np.asarray(other))
            assert mine.shape == other.shape
            allowed = 2e-6 * np.abs(other).max() + 2e-7 * largest
            assert np.abs(mine - other).max() <= allowed

    return check
