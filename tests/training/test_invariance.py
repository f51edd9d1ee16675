"""What may not change a run: devices, microbatches, and savings of time or memory.

All with dropout, augmentation and the frozen editor on, in float32.
"""

import jax
import numpy as np
import pytest

from tests.tiny import BATCH, Runner, tiny_batch, tiny_config
from vilem_jax.distributed.mesh import check_batch, make_mesh, put_batch
from vilem_jax.errors import UserError

NUM_STEPS = 5


def run(config, num_devices=1):
    """Metrics of every step, the last state, and how often the step was compiled."""
    runner = Runner(config, num_devices)
    state, metrics = runner.init_state(config), []
    for number in range(NUM_STEPS):
        state, record = runner.step(state, tiny_batch(number))
        metrics.append(jax.device_get(record))
    return metrics, jax.device_get(state), runner.compiled._cache_size()


@pytest.fixture(scope="module")
def alone():
    """One device, one microbatch."""
    return run(tiny_config())


def losses(record):
    return {name: value for name, value in record.items() if name.startswith("loss")}


def norm_difference(ours, theirs):
    """Norm of the difference over the norm, without the attention keys' biases.

    A key's bias adds the same to all logits of a row: softmax drops it, its gradient
    is pure rounding, which Adam makes into steps of full size.
    """
    difference = scale = 0.0
    names = jax.tree_util.tree_leaves_with_path(theirs)
    for a, (path, b) in zip(jax.tree.leaves(ours), names, strict=True):
        if jax.tree_util.keystr(path).endswith("['key']['bias']"):
            continue
        a, b = np.asarray(a, float), np.asarray(b, float)
        difference, scale = difference + np.sum((a - b) ** 2), scale + np.sum(b**2)
    return np.sqrt(difference / scale)


def assert_same_run(found, expected):
    for now, then in zip(found[0], expected[0], strict=True):
        assert set(now) == set(then)
        for name, value in losses(then).items():
            np.testing.assert_allclose(now[name], value, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(now["grad_norm"], then["grad_norm"], rtol=1e-5)
        for name in {"edits_per_caption", "local_detect_f1", "corrupt_images"} & set(
            now
        ):
            assert now[name] == then[name]
    for name in ("params", "momentum_params", "opt_state", "image_queue", "text_queue"):
        error = norm_difference(getattr(found[1], name), getattr(expected[1], name))
        assert error < 1e-5, name
    assert found[1].queue_count == expected[1].queue_count
    assert found[2] == 1  # compiled once


def test_step_compiles_once(alone):
    metrics, state, num_compilations = alone
    assert num_compilations == 1
    assert state.step == NUM_STEPS and state.skipped_total == 0
    assert all(record["edits_per_caption"] > 0.5 for record in metrics)
    assert len({float(record["loss"]) for record in metrics}) == NUM_STEPS


@pytest.mark.slow
@pytest.mark.parametrize("num_devices, num_microbatches", [(2, 8), (4, 4), (8, 2)])
def test_devices_and_microbatches_change_nothing(alone, num_devices, num_microbatches):
    config = tiny_config(train={"num_microbatches": num_microbatches})
    assert_same_run(run(config, num_devices), alone)


@pytest.mark.slow
def test_savings_change_nothing(alone):
    """All off, and blocks recomputed; dropout draws alike in each."""
    slow = {
        "joint_text_pass": False,
        "editor_at_positions": False,
        "cls_only_last_layer": False,
        "recompute": True,
    }
    assert_same_run(run(tiny_config(compute=slow)), alone)


@pytest.mark.slow
def test_length_buckets_change_nothing(alone):
    config = tiny_config(train={"num_microbatches": 4}, compute={"text_lengths": (8,)})
    assert_same_run(run(config, num_devices=2), alone)


@pytest.mark.parametrize("num_devices, num_microbatches", [(3, 1), (8, 4), (1, 32)])
def test_batch_that_does_not_divide_is_refused(num_devices, num_microbatches):
    mesh = make_mesh(num_devices)
    with pytest.raises(UserError) as error:
        check_batch(BATCH, num_microbatches, mesh.size)
    assert f"batch_size={BATCH}" in str(error.value)
    assert f"a multiple of {num_devices * num_microbatches}" in str(error.value)


def test_rows_keep_their_order_over_devices():
    mesh = make_mesh(8)
    batch = tiny_batch()
    placed = put_batch(batch, mesh)
    for name, rows in batch.items():
        np.testing.assert_array_equal(placed[name], rows)
        assert len(placed[name].addressable_shards) == 8
        assert placed[name].addressable_shards[3].data.shape[0] == BATCH // 8
