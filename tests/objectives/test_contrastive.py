"""Eqs. (1)-(5) against double loops in float64, and the queues against a list."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.unit_rows import contrast_arrays
from vilem_jax.objectives.contrastive import enqueue, info_nce, momentum_update

RTOL = 1e-6
BATCH, WIDTH, QUEUE, TEMPERATURE = 6, 5, 7, 0.07


@pytest.fixture
def arrays():
    return contrast_arrays(batch=BATCH, queue=QUEUE, width=WIDTH)


def competitors(keys, queue, row, count, num_groups):
    """The keys that sample `row` is compared with, and where its own one is."""
    size = len(keys) // num_groups
    mine = [j for j in range(len(keys)) if j // size == row // size]
    return [keys[j] for j in mine] + list(queue[:count]), mine.index(row)


def info_nce_loops(
    embedding, keys, queue, row, count, *, num_groups=1, own_keys=None, alpha=0.0
):
    """Eq. (3) as printed, a sample and a key at a time; ALBEF's targets with alpha."""
    losses = []
    for z, i in zip(embedding, row, strict=True):
        others, own = competitors(keys, queue, i, count, num_groups)
        denominator = sum(np.exp(z @ k / TEMPERATURE) for k in others)
        targets = np.zeros(len(others))
        targets[own] = 1.0 - alpha
        if alpha:
            soft = np.array([np.exp(own_keys[i] @ k / TEMPERATURE) for k in others])
            targets += alpha * soft / soft.sum()
        loss = 0.0
        for target, k in zip(targets, others, strict=True):
            loss -= target * np.log(np.exp(z @ k / TEMPERATURE) / denominator)
        losses.append(loss)
    return np.array(losses)


def ours(arrays, *, row=None, count=QUEUE, temperature=TEMPERATURE, **settings):
    row = np.arange(BATCH) if row is None else row
    return info_nce(
        jnp.asarray(arrays["embedding"])[row],
        jnp.asarray(arrays["keys"]),
        jnp.asarray(arrays["queue"]),
        jnp.asarray(temperature),
        row=jnp.asarray(row),
        queue_count=jnp.asarray(count),
        **settings,
    )


@pytest.mark.parametrize("momentum", [0.995, 0.0, 1.0])
def test_momentum_update_equals_loops(momentum):
    """Eqs. (1), (2): m weighs the momentum parameters, 1 - m the trained ones."""
    rng = np.random.default_rng(1)
    slow, fast = {"a": rng.normal(size=(2, 3))}, {"a": rng.normal(size=(2, 3))}
    with jax.enable_x64(True):
        updated = momentum_update(slow, fast, momentum)["a"]
    expected = np.zeros((2, 3))
    for i in range(2):
        for j in range(3):
            expected[i, j] = momentum * slow["a"][i, j]
            expected[i, j] += (1 - momentum) * fast["a"][i, j]
    np.testing.assert_allclose(updated, expected, rtol=RTOL)


@pytest.mark.parametrize("count", [0, 3, QUEUE])
@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_info_nce_equals_loops(arrays, count, num_groups):
    with jax.enable_x64(True):
        losses = ours(arrays, count=count, num_groups=num_groups)
    expected = info_nce_loops(
        arrays["embedding"],
        arrays["keys"],
        arrays["queue"],
        range(BATCH),
        count,
        num_groups=num_groups,
    )
    np.testing.assert_allclose(losses, expected, rtol=RTOL)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("num_groups", [1, 2])
def test_soft_targets_equal_loops(arrays, alpha, num_groups):
    with jax.enable_x64(True):
        losses = ours(
            arrays,
            count=4,
            own_keys=jnp.asarray(arrays["own_keys"]),
            soft_weight=alpha,
            num_groups=num_groups,
        )
    expected = info_nce_loops(
        arrays["embedding"],
        arrays["keys"],
        arrays["queue"],
        range(BATCH),
        4,
        own_keys=arrays["own_keys"],
        alpha=alpha,
        num_groups=num_groups,
    )
    np.testing.assert_allclose(losses, expected, rtol=RTOL)


def test_rows_of_a_batch_are_contrasted_with_all_its_keys(arrays):
    row = np.array([5, 0, 3])
    with jax.enable_x64(True):
        part, whole = ours(arrays, row=row), ours(arrays)
    np.testing.assert_allclose(part, np.asarray(whole)[row], rtol=RTOL)


@pytest.mark.parametrize("queue_length", [0, QUEUE])
def test_empty_queue_contrasts_within_the_batch(arrays, queue_length):
    arrays["queue"] = np.zeros((queue_length, WIDTH))
    with jax.enable_x64(True):
        losses = ours(arrays, count=0)
    logits = arrays["embedding"] @ arrays["keys"].T / TEMPERATURE
    expected = np.log(np.exp(logits).sum(axis=1)) - np.diag(logits)
    np.testing.assert_allclose(losses, expected, rtol=RTOL)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_gradients_of_embedding_and_temperature_equal_loops(arrays, alpha):
    """Soft targets are constants, also where the temperature makes them."""

    def total(embedding, temperature):
        return ours(
            arrays | {"embedding": embedding},
            count=4,
            temperature=temperature,
            own_keys=jnp.asarray(arrays["own_keys"]),
            soft_weight=alpha,
        ).sum()

    with jax.enable_x64(True):
        gradients = jax.grad(total, argnums=(0, 1))(
            jnp.asarray(arrays["embedding"]), jnp.asarray(TEMPERATURE)
        )
    by_embedding, by_temperature = np.zeros((BATCH, WIDTH)), 0.0
    for i, z in enumerate(arrays["embedding"]):
        others, own = competitors(arrays["keys"], arrays["queue"], i, 4, 1)
        scores = np.array([np.exp(z @ k / TEMPERATURE) for k in others])
        soft = [np.exp(arrays["own_keys"][i] @ k / TEMPERATURE) for k in others]
        targets = alpha * np.array(soft) / np.sum(soft)
        targets[own] += 1.0 - alpha
        for p, k in zip(scores / scores.sum() - targets, others, strict=True):
            by_embedding[i] += p * k / TEMPERATURE
            by_temperature -= p * (z @ k) / TEMPERATURE**2
    np.testing.assert_allclose(gradients[0], by_embedding, rtol=RTOL, atol=1e-6)
    np.testing.assert_allclose(gradients[1], by_temperature, rtol=RTOL)


@pytest.mark.parametrize("name", ["keys", "queue", "own_keys"])
def test_keys_and_queues_get_no_gradient(arrays, name):
    def total(values):
        changed = arrays | {name: values}
        own_keys = jnp.asarray(changed["own_keys"])
        return ours(changed, own_keys=own_keys, soft_weight=0.4).sum()

    gradient = jax.grad(total)(jnp.asarray(arrays[name], jnp.float32))
    assert not np.asarray(gradient).any()


def test_bfloat16_is_summed_in_float32(arrays):
    """Divided by the temperature, bfloat16's rounding would be in the first digit."""
    halves = {
        name: jnp.asarray(values, jnp.bfloat16) for name, values in arrays.items()
    }
    rounded = {name: np.asarray(values, float) for name, values in halves.items()}
    with jax.enable_x64(True):
        expected = ours(rounded)
    np.testing.assert_allclose(ours(halves), expected, rtol=1e-5)


def test_lowest_temperature_does_not_overflow(arrays):
    losses = ours(arrays, count=3, temperature=0.001)
    gradient = jax.grad(lambda z: ours(arrays | {"embedding": z}).sum())(
        jnp.asarray(arrays["embedding"], jnp.float32)
    )
    assert np.isfinite(losses).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("length", [0, 1, 5, 20])
@pytest.mark.parametrize("batch_size", [1, 3, 5, 8])
def test_queue_holds_the_newest_first(length, batch_size):
    queue, newest_first = jnp.zeros((length, 2)), []
    for step in range(6):
        keys = np.arange(batch_size * 2).reshape(-1, 2) + 100.0 * step + 1
        queue = enqueue(queue, jnp.asarray(keys))
        newest_first = (list(keys) + newest_first)[:length]
        count = len(newest_first)
        assert queue.shape == (length, 2)
        if count:
            np.testing.assert_array_equal(queue[:count], np.stack(newest_first))
        assert not np.asarray(queue[count:]).any()
