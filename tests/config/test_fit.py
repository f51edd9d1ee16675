"""What follows from the data and the machine, and who wins over it."""

import dataclasses

import pytest

from vilem_jax.config.files import load_config
from vilem_jax.config.fit import Machine, describe, fit, keep
from vilem_jax.config.freeze import freeze, to_dict
from vilem_jax.errors import UserError

MACHINES = [
    Machine("cpu", 1, 2),
    Machine("cpu", 8, 16),
    Machine("gpu", 1, 8, 24),
    Machine("gpu", 8, 64, 80),
    Machine("tpu", 16, 100),
]


def own_data(*overrides):
    return load_config("own_data", overrides)


@pytest.mark.parametrize("machine", MACHINES, ids=str)
@pytest.mark.parametrize("num_pairs", [200, 1000, 5000, 30_000, 200_000])
def test_all_sizes_get_settings_that_fit_each_other(num_pairs, machine):
    config = fit(own_data(), num_pairs, machine)
    batch, steps = config.train.batch_size, config.train.num_steps
    assert not config.fitted and freeze(to_dict(config)) == config
    assert batch <= num_pairs // 8 and batch % machine.num_devices == 0
    assert batch % (config.train.num_microbatches * machine.num_devices) == 0
    assert 0 <= config.optimizer.warmup_steps <= steps // 10
    # No pair meets its own old key, and keys are young beside the momentum average.
    queue, span = config.loss.queue_length, 1 / (1 - config.loss.momentum)
    assert queue == 0 or batch <= queue <= num_pairs // 4
    assert queue / batch <= max(span / 20, 1)
    assert config.model.vision.has_locked == (num_pairs < 100_000)
    assert 7 <= steps / config.evaluation.every_steps < 9
    assert 0 < config.log.every_steps <= config.evaluation.every_steps
    if machine.platform == "cpu":  # an hour or so
        assert steps * batch <= 12_500 * machine.num_cores
    else:
        assert 9 < steps * batch / num_pairs < 41
    line = describe(config, num_pairs, num_pairs // 5, machine)
    assert f"{steps:,} steps of {batch} pairs" in line and "\n" not in line


def test_overrides_win_and_others_follow_from_them():
    machine = Machine("gpu", 1, 8, 24)
    config = own_data(("train.batch_size", "128"), ("loss.momentum", "0.5"))
    fitted = fit(config, 30_000, machine)
    assert (fitted.train.batch_size, fitted.loss.momentum) == (128, 0.5)
    assert fitted.optimizer.learning_rate == pytest.approx(2e-4 * 2**0.5)
    assert fitted.loss.queue_length % 128 == 0
    epochs = fit(own_data(("train.num_epochs", "3")), 30_000, machine)
    assert epochs.train.num_steps == 0
    assert epochs.optimizer.warmup_steps == round(3 * 30_000 / 256) // 10


def test_a_file_that_builds_on_it_wins(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from vilem_jax.config.files import packaged_config\n"
        "def get_config():\n"
        "    config = packaged_config('own_data', image_tower='ViT-Ti/16')\n"
        "    config.loss.queue_length = 0\n"
        "    return config\n"
    )
    config = fit(load_config(str(file)), 1000, MACHINES[0])
    assert config.loss.queue_length == 0
    assert config.model.vision.width == 192 and config.model.vision.image_size == 128


def test_a_resumed_run_keeps_what_was_chosen():
    stored = fit(own_data(), 5000, MACHINES[0])
    assert keep(own_data(), stored) == stored
    changed = keep(own_data(("loss.momentum", "0.5")), stored)
    assert changed == dataclasses.replace(
        stored, loss=dataclasses.replace(stored.loss, momentum=0.5)
    )


def test_none_elsewhere_is_refused(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def get_config():\n    return {'loss': {'local_weight': None}}\n")
    with pytest.raises(UserError, match=r"config.loss.local_weight is None, but only"):
        fit(load_config(str(file)), 1000, MACHINES[0])


def test_options_of_own_data_are_refused_elsewhere():
    with pytest.raises(UserError, match="--data is an option of the config own_data"):
        load_config("flickr8k", options={"data": "captions.json"})
