"""The way from the update to the losses is short: whoever reads it can follow it."""

import inspect

import jax
import pytest

from tests.tiny import NUM_STEPS, tiny_config, tiny_samples, tiny_state
from vilem_jax.objectives import proofreading
from vilem_jax.training.optimizer import make_schedule
from vilem_jax.training.step import make_update


@pytest.mark.parametrize("num_microbatches, limit", [(1, 5), (2, 7)])
def test_calls_from_update_to_eq_8(monkeypatch, num_microbatches, limit):
    """Calls within the package, counted while the step is traced."""
    config = tiny_config(train={"num_microbatches": num_microbatches})
    update = make_update(config, make_schedule(config.optimizer, NUM_STEPS))
    detection_sum, calls = proofreading.detection_sum, []

    def counting(*arguments):
        stack = inspect.stack(context=0)[1:]  # without this function
        names = [frame.function for frame in stack]
        ours = [
            frame.function
            for frame in stack[: names.index("update")]
            if "/vilem_jax/" in frame.filename
        ]
        calls.append([*reversed(ours), "detection_sum"])
        return detection_sum(*arguments)

    monkeypatch.setattr(proofreading, "detection_sum", counting)
    jax.eval_shape(update, tiny_state(config), tiny_samples())
    assert max(map(len, calls)) <= limit, calls
