"""Settings that contradict the data are refused with a value that works."""

import types
from typing import Any

import pytest

from tests.tiny import tiny_config
from vilem_jax.errors import UserError
from vilem_jax.training.fitting import check_against_data

NUM_STEPS = 100
CORPUS: Any = types.SimpleNamespace(num_pairs=1000, num_images=200)


@pytest.mark.parametrize(
    "section, sentence",
    [
        ({"optimizer": {"warmup_steps": NUM_STEPS}}, "below the run's 100 .* use 10,"),
        ({"loss": {"queue_length": 1001}}, "more than the 1000 pairs .* use 240$"),
        (
            {"loss": {"queue_length": 0}, "train": {"batch_size": 1001}},
            "batch_size=1001 is more than the 1000 pairs .* use 64$",
        ),
    ],
)
def test_what_does_not_fit_the_data_is_refused_with_a_value(section, sentence):
    with pytest.raises(UserError, match=sentence):
        check_against_data(tiny_config(**section), CORPUS, NUM_STEPS)


def test_settings_at_the_bounds_are_taken(capsys):
    loss, optimizer = {"queue_length": 1000}, {"warmup_steps": NUM_STEPS - 1}
    check_against_data(tiny_config(loss=loss, optimizer=optimizer), CORPUS, NUM_STEPS)
    assert not capsys.readouterr().err
    # Old keys of the same image are positives: a line, and the run continues.
    loss = {"queue_length": 1001, "positives": "image"}
    check_against_data(tiny_config(loss=loss), CORPUS, NUM_STEPS)
    assert "use 240" in capsys.readouterr().err
