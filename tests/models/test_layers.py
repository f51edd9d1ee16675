"""The layers of the towers against loops and properties."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vilem_jax.config.schema import ComputeConfig, TextConfig
from vilem_jax.models import layers


def test_gelu_is_exact():
    x = np.linspace(-4, 4, 41)
    exact = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x]
    tanh = [
        0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
        for v in x
    ]
    given = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(layers.activation("gelu")(given), exact, atol=1e-6)
    np.testing.assert_allclose(layers.activation("gelu_tanh")(given), tanh, atol=1e-6)
    # The two differ by more than the tolerance.
    assert np.abs(np.subtract(exact, tanh)).max() > 1e-4


def test_attention_equals_a_loop():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 3, 2, 4))  # [B, L, H, D]
    key, value = rng.normal(size=(2, 2, 5, 2, 4))
    key_mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    wanted = np.zeros_like(query)
    for b, q, h in np.ndindex(2, 3, 2):
        real = np.flatnonzero(key_mask[b])
        scores = np.exp([query[b, q, h] @ key[b, k, h] / 2.0 for k in real])
        wanted[b, q, h] = scores / scores.sum() @ value[b, real, h]
    arrays = (jnp.asarray(x, jnp.float32) for x in (query, key, value))
    ours = layers.masked_attention(*arrays, key_mask=jnp.asarray(key_mask))
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)


def test_masked_keys_have_weight_0():
    query, key = jnp.ones((1, 1, 1, 2)), jnp.ones((1, 3, 1, 2))
    value = jnp.array([1.0, 1.0, 1e30])[None, :, None, None] * jnp.ones((1, 1, 1, 2))
    here = jnp.array([[True, True, False]])
    mixed = layers.masked_attention(query, key, value, key_mask=here)
    np.testing.assert_array_equal(mixed, jnp.ones((1, 1, 1, 2)))


def sample_seeds(count):
    return layers.dropout_seeds(jax.random.split(jax.random.key(0), count))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_has_the_given_rate_and_mean_1(rate):
    dropped = layers.dropout(jnp.ones((8, 4000)), sample_seeds(8), rate)
    assert abs(float((dropped == 0).mean()) - rate) < 0.01
    assert abs(float(dropped.mean()) - 1) < 0.02
    np.testing.assert_allclose(dropped.max(), 1 / (1 - rate), rtol=1e-6)


def test_dropout_is_uncorrelated():
    """Between neighbours, samples, sites and steps: no correlation above chance."""
    shape = (4, 16, 64)  # heads, queries, keys: any sizes
    size = math.prod(shape)

    def masks(seeds):
        dropped = layers.dropout(jnp.ones((len(seeds), *shape)), seeds, 0.5)
        return (np.asarray(dropped).reshape(len(seeds), size) > 0) * 2.0 - 1

    # Keys of neighbouring samples and steps, as a run makes them.
    sample = jnp.arange(6)
    steps = [jax.random.fold_in(jax.random.key(0), step) for step in range(2)]
    seeds = jnp.concatenate(
        [
            layers.dropout_seeds(jax.vmap(jax.random.fold_in, (None, 0))(key, sample))
            for key in steps
        ]
    )
    rows = np.concatenate(
        [
            masks(layers.for_site(layers.for_site(seeds, n), m))
            for n, m in np.ndindex(2, 3)
        ]
        + [masks(seeds)]
    )
    limit = 5.5 / np.sqrt(size)  # of a Gaussian; 1e-7 by chance a pair
    between = rows @ rows.T / size
    assert np.abs(between - np.diag(np.diag(between))).max() < limit
    for shift in (1, 2, 3, 8, 64, 1024):
        along = (rows[:, :-shift] * rows[:, shift:]).mean(axis=1)
        assert np.abs(along).max() < limit * np.sqrt(size / (size - shift))
    assert np.abs(rows.mean(axis=1)).max() < limit
    assert np.abs(rows.mean(axis=0)).max() < 6 / np.sqrt(len(rows))


def test_dropout_of_a_position_is_independent_of_the_length():
    """Padding or [CLS] alone must not change the dropout of the other values."""
    seeds, ones = sample_seeds(3), jnp.ones((3, 4, 6, 8))
    whole = layers.dropout(ones, seeds, 0.3)
    for part in (np.s_[:, :, :5, :7], np.s_[:, :, :1], np.s_[:, :2]):
        np.testing.assert_array_equal(
            layers.dropout(ones[part], seeds, 0.3), whole[part]
        )


def test_dropout_of_a_sample_does_not_depend_on_the_batch():
    seeds = sample_seeds(6)
    values = jax.random.normal(jax.random.key(1), (6, 3, 5))
    whole = layers.dropout(values, seeds, 0.3)
    order = jnp.array([4, 0, 5])
    np.testing.assert_array_equal(
        layers.dropout(values[order], seeds[order], 0.3), whole[order]
    )
    assert not np.array_equal(whole[0] == 0, whole[1] == 0)
    np.testing.assert_array_equal(layers.dropout(values, None, 0.3), values)
    np.testing.assert_array_equal(layers.dropout(values, seeds, 0.0), values)
    assert layers.for_site(None, 3) is None and layers.dropout_seeds(None) is None


def test_at_positions_selects_rows():
    values = jnp.arange(24.0).reshape(2, 4, 3)
    positions = jnp.array([[3, 0], [1, 1]])
    chosen = layers.at_positions(values, positions)
    np.testing.assert_array_equal(chosen[0], values[0, jnp.array([3, 0])])
    np.testing.assert_array_equal(chosen[1], values[1, jnp.array([1, 1])])
    np.testing.assert_array_equal(
        layers.at_positions(values[..., 0], positions), chosen[..., 0]
    )


def test_statistics_are_float32_in_bfloat16():
    """A large mean would leave no digits of the variance in bfloat16."""
    norm = layers.layer_norm(TextConfig(width=64), ComputeConfig(), nnx.Rngs(0))
    values = jax.random.normal(jax.random.key(0), (2, 64)) + 100
    rounded = np.float64(values.astype(jnp.bfloat16))
    wanted = rounded - rounded.mean(-1, keepdims=True)
    wanted /= rounded.std(-1, keepdims=True)
    ours = norm(values.astype(jnp.bfloat16))
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(ours), wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("std", [0.0, 0.05])
def test_only_kernels_are_scaled_to_the_std(std):
    """From 0.02; a std of 0 is 1 / sqrt(inputs). Cross-attention stays small."""
    ones = {"kernel": jnp.ones((4, 16)), "bias": jnp.ones(16), "scale": jnp.ones(16)}
    params = {
        "mlp": {"expand": ones},
        "cross_attention": {"query": ones},
        "words": jnp.ones((4, 16)),
    }
    scaled = layers.with_init_std(params, std)
    expected = jnp.full((4, 16), (std or 1 / math.sqrt(4)) / 0.02)
    kernel = scaled["mlp"]["expand"].pop("kernel")
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)
    for value in jax.tree.leaves(scaled):
        np.testing.assert_array_equal(value, jnp.ones(value.shape))


def test_parameters_are_float32_with_a_std_of_002():
    """Also if the towers compute in bfloat16, in which small updates would vanish."""
    config, compute = TextConfig(width=64), ComputeConfig()
    linear = layers.linear(64, 64, compute, nnx.Rngs(0))
    norm = layers.layer_norm(config, compute, nnx.Rngs(0))
    for part in (linear.kernel, linear.bias, norm.scale, norm.bias):
        assert part[...].dtype == jnp.float32
    np.testing.assert_allclose(linear.kernel[...].std(), 0.02, rtol=0.05)
    assert not linear.bias[...].any() and (norm.scale[...] == 1).all()
    assert linear(jnp.ones((1, 64))).dtype == jnp.bfloat16


def test_logits_are_float32_in_bfloat16():
    """bfloat16 has no digits after the point for logits of hundreds."""
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 1, 6, 1, 8))
    query[..., 0], key[..., 0] = 32, 64  # the same in all logits
    query, key = jnp.asarray(query, jnp.bfloat16), jnp.asarray(key, jnp.bfloat16)
    scores = np.float64(query)[0, :, 0] @ np.float64(key)[0, :, 0].T
    wanted = scores / np.sqrt(8)
    wanted = np.exp(wanted - wanted.max(axis=1, keepdims=True))
    wanted /= wanted.sum(axis=1, keepdims=True)
    ours = layers.masked_attention(
        query, key, jnp.eye(6, dtype=jnp.bfloat16)[None, :, None]
    )
    np.testing.assert_allclose(np.float64(ours)[0, :, 0], wanted, atol=5e-3)
    hidden, words = query[:, :, 0], jnp.float32(key[0, :, 0])
    logits = layers.vocab_logits(hidden, words, jnp.ones(6))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits[0], scores + 1, rtol=1e-5, atol=1e-2)


def test_seeds_of_a_site_are_fixed():
    """Other seeds would change the dropout of a resumed run."""
    seeds = jnp.array([[1, 2], [3, 4]], jnp.uint32)
    found = [np.asarray(layers.for_site(seeds, number)) for number in (0, 1)]
    np.testing.assert_array_equal(
        found[0], [[2527132011, 4137983873], [3984711379, 2861387037]]
    )
    np.testing.assert_array_equal(
        found[1], [[314344336, 867435477], [746935934, 3792529128]]
    )


def test_variance_is_exact_beside_a_large_mean():
    """The mean of squares minus the squared mean would have no digits here."""
    compute = ComputeConfig(dtype="float32")
    norm = layers.layer_norm(TextConfig(width=64), compute, nnx.Rngs(0))
    values = jax.random.normal(jax.random.key(0), (2, 64)) + 3000
    wanted = np.float64(values) - np.float64(values).mean(-1, keepdims=True)
    wanted /= wanted.std(-1, keepdims=True)
    np.testing.assert_allclose(norm(values), wanted, atol=1e-3)


def test_mask_of_seeds_is_fixed():
    """64 bits of seed: with 32, two of 100,000 samples would share a mask."""
    seeds = jnp.array([[1, 2], [3, 4]], jnp.uint32)
    is_kept = layers.dropout(jnp.ones((2, 2, 8)), seeds, 0.5) > 0
    expected = [
        [[0, 0, 1, 1, 0, 1, 1, 0], [1, 0, 1, 1, 1, 1, 0, 1]],
        [[0, 1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 1, 1, 0, 0]],
    ]
    np.testing.assert_array_equal(is_kept, expected)
