"""Fine-tuning's targets: all captions of an image are positives, 1 / n each.

Loops written from the definition: a column, in the batch or in the queue, is a positive
where its image is the row's; the loss is the cross-entropy with these targets.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.unit_rows import contrast_arrays
from vilem_jax.objectives.contrastive import enqueue, image_targets, info_nce

RTOL = 1e-6
BATCH, WIDTH, QUEUE, TEMPERATURE = 6, 5, 9, 0.07
IDS = np.array([4, 7, 4, 4, 1, 7], np.int32)  # three images, 3, 2 and 1 captions
QUEUE_IDS = np.array([7, 3, 4, 1, 1, 8, 4, -1, -1], np.int32)  # the last two: none
COUNT = 7


@pytest.fixture
def arrays():
    return contrast_arrays(batch=BATCH, queue=QUEUE, width=WIDTH)


def columns(row, ids, queue_ids, count, num_groups):
    """(index of the key, image) of all that compete for `row`, batch before queue."""
    size = len(ids) // num_groups
    batch = [
        (("batch", j), ids[j]) for j in range(len(ids)) if j // size == row // size
    ]
    return batch + [(("queue", j), queue_ids[j]) for j in range(count)]


def loss_loops(
    arrays, ids, queue_ids, rows, count, *, num_groups=1, alpha=0.0
) -> np.ndarray:
    keys = {"batch": arrays["keys"], "queue": arrays["queue"]}
    losses = []
    for row in rows:
        found = columns(row, ids, queue_ids, count, num_groups)
        vectors = [keys[where][j] for (where, j), _ in found]
        num_positives = 0
        for _, image in found:
            num_positives += image == ids[row]
        denominator = soft_denominator = 0.0
        for vector in vectors:
            denominator += np.exp(arrays["embedding"][row] @ vector / TEMPERATURE)
            soft_denominator += np.exp(arrays["own_keys"][row] @ vector / TEMPERATURE)
        loss = 0.0
        for (_, image), vector in zip(found, vectors, strict=True):
            target = 1.0 / num_positives if image == ids[row] else 0.0
            soft = np.exp(arrays["own_keys"][row] @ vector / TEMPERATURE)
            target = (1 - alpha) * target + alpha * soft / soft_denominator
            score = np.exp(arrays["embedding"][row] @ vector / TEMPERATURE)
            loss -= target * np.log(score / denominator)
        losses.append(loss)
    return np.array(losses)


def ours(arrays, ids, queue_ids, *, rows=None, count=COUNT, **settings):
    rows = np.arange(BATCH) if rows is None else rows
    by_image = {}
    if ids is not None:
        by_image = {
            "image_ids": jnp.asarray(ids),
            "queue_image_ids": jnp.asarray(queue_ids),
        }
    return info_nce(
        jnp.asarray(arrays["embedding"])[rows],
        jnp.asarray(arrays["keys"]),
        jnp.asarray(arrays["queue"]),
        jnp.asarray(TEMPERATURE),
        row=jnp.asarray(rows),
        queue_count=jnp.asarray(count),
        **by_image,
        **settings,
    )


@pytest.mark.parametrize("count", [0, 3, COUNT])
@pytest.mark.parametrize("num_groups", [1, 2, 3])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_losses_equal_loops(arrays, count, num_groups, alpha):
    """With soft targets alpha soft + (1 - alpha) / n, and negatives="device"."""
    with jax.enable_x64(True):
        soft = {"own_keys": jnp.asarray(arrays["own_keys"]), "soft_weight": alpha}
        losses = ours(
            arrays,
            IDS,
            QUEUE_IDS,
            count=count,
            num_groups=num_groups,
            **(soft if alpha else {}),
        )
    expected = loss_loops(
        arrays,
        IDS,
        QUEUE_IDS,
        range(BATCH),
        count,
        num_groups=num_groups,
        alpha=alpha,
    )
    np.testing.assert_allclose(losses, expected, rtol=RTOL)


def test_rows_of_a_batch_are_contrasted_with_all_its_keys(arrays):
    rows = np.array([5, 0, 3])
    with jax.enable_x64(True):
        part = ours(arrays, IDS, QUEUE_IDS, rows=rows)
    expected = loss_loops(arrays, IDS, QUEUE_IDS, rows, COUNT)
    np.testing.assert_allclose(part, expected, rtol=RTOL)


def test_losses_without_a_queue_equal_loops(arrays):
    arrays["queue"] = np.zeros((0, WIDTH))
    none = np.zeros(0, np.int32)
    with jax.enable_x64(True):
        losses = ours(arrays, IDS, none, count=0)
    expected = loss_loops(arrays, IDS, none, range(BATCH), 0)
    np.testing.assert_allclose(losses, expected, rtol=RTOL)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_distinct_images_give_the_losses_of_own_keys_bitwise(arrays, alpha):
    ids = np.array([3, 1, 9, 2, 6, 5], np.int32)
    queue_ids = np.array([10, 11, 12, 13, 14, 15, 16, -1, -1], np.int32)
    soft = {"own_keys": jnp.asarray(arrays["own_keys"]), "soft_weight": alpha}

    def total(embedding, ids):
        losses = ours(arrays | {"embedding": embedding}, ids, queue_ids, **soft)
        return losses.sum(), losses

    gradients = jax.grad(total, has_aux=True)
    embedding = jnp.asarray(arrays["embedding"])
    by_image, own = gradients(embedding, ids), gradients(embedding, None)
    np.testing.assert_array_equal(by_image[1], own[1])
    # Scattering a one-hot or multiplying by it: the same but for the last bit.
    np.testing.assert_allclose(by_image[0], own[0], rtol=1e-6, atol=1e-6)


def test_image_ids_without_those_of_the_queue_are_refused(arrays):
    with pytest.raises(ValueError, match="queue_image_ids is None"):
        ours(arrays, None, None, image_ids=jnp.asarray(IDS))


def everything(rows, columns):
    return jnp.ones((rows, columns), bool)


def test_five_captions_of_one_image_have_no_false_negative():
    """Pairs 1, 2, 4, 5, 7 have one image; four others lie between them."""
    ids = jnp.asarray([0, 3, 3, 1, 3, 3, 2, 3, 4], jnp.int32)
    queue_ids = jnp.asarray([3, 9, 3, -1], jnp.int32)
    in_queue = jnp.asarray([[True, True, True, False]])
    batch, queue = map(
        np.asarray,
        image_targets(ids, queue_ids, jnp.arange(9), everything(9, 9), in_queue),
    )
    captions = [1, 2, 4, 5, 7]
    for row in range(9):
        is_own = np.isin(np.arange(9), captions)
        if row not in captions:
            np.testing.assert_array_equal(batch[row], np.arange(9) == row)
            assert not queue[row].any()
            continue
        np.testing.assert_allclose(batch[row][is_own], 1 / 7, rtol=1e-6)
        np.testing.assert_allclose(queue[row][[0, 2]], 1 / 7, rtol=1e-6)
        assert not batch[row][~is_own].any() and not queue[row][[1, 3]].any()
    np.testing.assert_allclose(batch.sum(1) + queue.sum(1), 1, rtol=1e-6)


def test_captions_in_the_queue_are_positives():
    ids = jnp.asarray([5, 6], jnp.int32)
    queue_ids = jnp.asarray([6, 5, 5, 5, 5], jnp.int32)
    batch, queue = image_targets(
        ids, queue_ids, jnp.arange(2), everything(2, 2), everything(1, 5)
    )
    np.testing.assert_allclose(batch, [[0.2, 0], [0, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(
        queue, [[0, 0.2, 0.2, 0.2, 0.2], [0.5, 0, 0, 0, 0]], rtol=1e-6
    )


def test_keys_that_do_not_compete_are_no_positives():
    """Invalid rows of the queue, and keys of another device."""
    ids = jnp.asarray([5, 5, 5, 5], jnp.int32)
    same_device = jnp.asarray(np.kron(np.eye(2), np.ones((2, 2))).astype(bool))
    batch, queue = image_targets(
        ids,
        jnp.asarray([5, 5], jnp.int32),
        jnp.arange(4),
        same_device,
        jnp.asarray([[True, False]]),
    )
    np.testing.assert_allclose(batch, np.where(same_device, 1 / 3, 0), rtol=1e-6)
    np.testing.assert_allclose(queue, np.tile([1 / 3, 0], (4, 1)), rtol=1e-6)


@pytest.mark.parametrize("length", [0, 4, 20])
def test_queue_of_ids_holds_the_newest_first(length):
    ids, newest_first = jnp.full(length, -1, jnp.int32), []
    for step in range(4):
        new = np.arange(3, dtype=np.int32) + 10 * step
        ids = enqueue(ids, jnp.asarray(new))
        newest_first = (list(new) + newest_first)[:length]
        expected = newest_first + [-1] * (length - len(newest_first))
        assert ids.dtype == jnp.int32
        np.testing.assert_array_equal(ids, expected)
