"""Runs that keep their best weights and score the test split once, at their end.

Most of them with a task that counts steps instead of training; one, slow, with all.
"""

import dataclasses
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vilem_jax
from tests.restore import restore_params
from tests.training.tiny_runs import (
    HELD_OUT,
    assert_same_run,
    run_settings,
    write_vocabulary,
)
from vilem_jax.config.freeze import freeze
from vilem_jax.errors import UserError
from vilem_jax.runs.best import best_step
from vilem_jax.runs.checkpoint_contents import flatten, read_fields
from vilem_jax.runs.metrics import read_records
from vilem_jax.training import run as program
from vilem_jax.training.final_scores import read_scores
from vilem_jax.training.run import train
from vilem_jax.training.state import TrainState

STEPS, EVERY = 6, 2
OFF = dict.fromkeys(
    ("local_detect", "local_correct", "global_detect", "global_correct"), False
)
TEST = {"kind": "scenes", "split": "test", "num_images": 10}
RECALLS = {2: 30.0, 4: 100 / 3, 6: 31.0}  # step -> mean recall of validation
BEST = 4


def merged(settings, **sections):
    new = {name: {**settings.get(name, {}), **part} for name, part in sections.items()}
    return {**settings, **new}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Of a run without an editor."""
    vocabulary = write_vocabulary(tmp_path_factory.mktemp("vocabulary"))
    settings = run_settings("editor", vocabulary)
    settings["data"] = {
        **settings["data"],
        "validation": {"held_out": HELD_OUT},
        "test": {"test": TEST},
    }
    return merged(
        {**settings, "task": "vilem"},
        loss={**OFF, "positives": "image", "queue_length": 24},
        train={"num_steps": STEPS},
        evaluation={"every_steps": EVERY},
        checkpoint={"every_steps": 1, "keep": 20, "keep_best": True},
    )


class Counting:
    """A task whose parameter is the number of steps; what it scored, and when."""

    image_size, frozen = 0, ()

    def __init__(self, workdir, recalls=RECALLS):
        self.workdir, self.recalls, self.scored = workdir, dict(recalls), []

    def make_task(self, *_):
        return self

    def init_params(self, key):
        return {"number": jnp.zeros((), jnp.int32)}

    def load_weights(self, params):
        return (params,)

    def init_state(self, params):
        zero, no_rows = jnp.zeros((), jnp.int32), jnp.zeros((0, 1))
        momentum_params = jax.tree.map(jnp.copy, params)
        queues = no_rows, no_rows, zero, None
        return TrainState(zero, params, (), zero, zero, momentum_params, *queues)

    def step(self, state, frozen, batch, key):
        number = state.params["number"] + 1
        state = dataclasses.replace(
            state, params={"number": number}, momentum_params={"number": -number}
        )
        metrics = {"loss": jnp.ones(()), "skipped_in_a_row": state.skipped_in_a_row}
        return state, metrics

    def finish(self, state):
        pass

    def evaluate(self, state):
        recall = self.recalls[int(state.params["number"])]
        if recall is None:
            raise MemoryError("killed")
        return {"held_out": {"rsum": 6 * recall}}

    def test(self, params):
        last = read_records(self.workdir / "metrics.jsonl")[-1]["step"]
        self.scored.append((int(params["number"]), last))
        return {"test": {"number": int(params["number"])}}


@pytest.fixture
def counting(tmp_path, monkeypatch):
    counting = Counting(tmp_path / "run")
    monkeypatch.setattr(program, "make_task", counting.make_task)
    return counting


def kept(workdir):
    params = restore_params(workdir, step="best")
    slow = restore_params(workdir, "momentum", step="best")
    assert slow["number"] == -params["number"]
    return int(params["number"])


def test_best_weights_score_the_test_split_once_at_the_end(settings, counting, capsys):
    workdir = counting.workdir
    train(freeze(settings), workdir, num_devices=1)
    assert counting.scored == [(BEST, STEPS)]
    assert best_step(workdir) == (BEST, RECALLS[BEST]) and kept(workdir) == BEST
    assert int(restore_params(workdir)["number"]) == STEPS
    logged = {
        record["step"]: record["validation/mean_recall"]
        for record in read_records(workdir / "metrics.jsonl")
        if "validation/mean_recall" in record
    }
    assert logged == pytest.approx(RECALLS)
    scores = (workdir / "test.json").read_bytes()
    assert json.loads(scores) == {
        "step": BEST,
        "chosen_by": "best mean recall of validation",
        "mean_recall": RECALLS[BEST],
        "test": {"test": {"number": BEST}},
    }
    assert not capsys.readouterr().err.count("scored once")
    train(freeze(settings), workdir, num_devices=1)  # finished already
    counting.recalls[8] = 99.0
    longer = merged(settings, train={"num_steps": 8})
    train(freeze(longer), workdir, num_devices=1)  # and even with more steps
    assert counting.scored == [(BEST, STEPS)] and kept(workdir) == 8
    assert (workdir / "test.json").read_bytes() == scores
    assert capsys.readouterr().err.count("scored once") == 2


def test_stopped_run_has_no_scores(settings, counting):
    stop = [lambda step, record: step == 5 and signal.raise_signal(signal.SIGTERM)]
    train(freeze(settings), counting.workdir, num_devices=1, hooks=stop)
    assert not counting.scored and kept(counting.workdir) == BEST
    counting.recalls[BEST] = 0.0  # not asked again: it is known from the disk
    train(freeze(settings), counting.workdir, num_devices=1)
    assert counting.scored == [(BEST, STEPS)]


@pytest.mark.parametrize("step", [2, 4, 6])
def test_run_killed_in_an_evaluation_resumes(settings, counting, step):
    config = freeze(merged(settings, checkpoint={"every_steps": 3}))
    counting.recalls[step] = None
    with pytest.raises(MemoryError):
        train(config, counting.workdir, num_devices=1)
    assert not counting.scored
    counting.recalls[step] = RECALLS[step]
    train(config, counting.workdir, num_devices=1)
    assert counting.scored == [(BEST, STEPS)]
    assert best_step(counting.workdir) == (BEST, RECALLS[BEST])
    assert kept(counting.workdir) == BEST


def test_run_killed_while_scoring_scores_on_resume(settings, counting, monkeypatch):
    def die(self, params):
        raise MemoryError("killed")

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Counting, "test", die)
        train(freeze(settings), counting.workdir, num_devices=1)
    assert not (counting.workdir / "test.json").exists()
    train(freeze(settings), counting.workdir, num_devices=1)
    assert counting.scored == [(BEST, STEPS)]


def test_without_keep_best_the_last_weights_score(settings, counting):
    config = freeze(merged(settings, checkpoint={"keep_best": False}))
    train(config, counting.workdir, num_devices=1)
    assert counting.scored == [(STEPS, STEPS)]
    scores = json.loads((counting.workdir / "test.json").read_text())
    assert scores["step"] == STEPS and scores["chosen_by"] == "last step"
    assert scores["mean_recall"] is None
    assert not (counting.workdir / "best").exists()


def test_without_a_test_split_nothing_is_scored(settings, counting):
    data = {**settings["data"], "test": {}}
    train(freeze(merged(settings, data=data)), counting.workdir, num_devices=1)
    assert not counting.scored and not (counting.workdir / "test.json").exists()
    assert read_scores(counting.workdir) == {}


def test_dry_run_keeps_and_scores_nothing(settings, counting):
    train(freeze(settings), counting.workdir, num_devices=1, dry_run=True)
    assert not counting.scored and not counting.workdir.exists()


def test_corrupt_scores_are_refused(tmp_path):
    assert read_scores(tmp_path) == {}
    (tmp_path / "test.json").write_text("[]")
    with pytest.raises(UserError, match=r"test\.json is not a run's scores"):
        read_scores(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fine_tuning_end_to_end(settings, tmp_path, monkeypatch, capsys):
    """Towers that train: stopped, its origin gone, resumed: the unbroken run, bit for
    bit, whose best weights are those of that step's checkpoint."""
    settings = dict(settings)
    before = merged(settings, train={"num_steps": 2}, checkpoint={"keep_best": False})
    before["optimizer"] = {**before["optimizer"], "warmup_steps": 1}
    before["data"] = {**before["data"], "test": {}}
    home, aside = tmp_path / "origin", tmp_path / "aside"
    train(freeze(before), home, num_devices=1)
    settings["model"] = {"start_from": str(home), "vision": {"image_size": 48}}
    settings["data"] = {**settings["data"], "tokenizer": ""}
    config = freeze(settings)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(config, whole, num_devices=1)
    stop = [lambda step, record: step == 3 and signal.raise_signal(signal.SIGTERM)]
    train(config, resumed, num_devices=1, hooks=stop)
    assert not (resumed / "test.json").exists()
    home.rename(aside)
    train(config, resumed, num_devices=1)
    assert_same_run(resumed, whole)
    assert best_step(resumed) == best_step(whole)
    scores, other = (
        json.loads((run / "test.json").read_text()) for run in (whole, resumed)
    )
    for one in (scores, other):
        assert (
            one["test"]["test"].pop("measured")["image_size"] == 48
        )  # has the clock's
    assert scores == other
    best = best_step(whole)[0]
    assert scores["step"] == best and scores["test"]["test"]["images"] == 10
    assert scores["test"]["test"]["protocol"]["image_size"] == 48
    checkpoint = whole / "checkpoints" / str(best)
    stored = read_fields(checkpoint, ("params", "momentum_params"))
    for weights, expected in zip(("online", "momentum"), stored.values(), strict=True):
        found = flatten(restore_params(whole, weights, step="best"))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    model = vilem_jax.load(whole, step="best")
    found = flatten(model.encoder.params)
    for name, value in stored["params"].items():
        np.testing.assert_array_equal(found[name], value)
    with pytest.raises(UserError, match="step must be one of"):
        vilem_jax.load(whole, step="middle")
    shutil.rmtree(aside)
