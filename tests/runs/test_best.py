"""The best weights by validation: kept apart, intact, and found after a kill."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.restore import restore_params
from vilem_jax.config.schema import CheckpointConfig, Config, DataConfig
from vilem_jax.config.sources import JsonConfig
from vilem_jax.errors import UserError
from vilem_jax.runs.best import KeepBest, best_step, mean_recall
from vilem_jax.runs.checkpoints import Checkpoints
from vilem_jax.runs.workdir import claim_workdir


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    params: dict
    momentum_params: dict
    queue: jax.Array


def state_of(step):
    rows = jnp.arange(6.0).reshape(2, 3) + 100 * step
    return State({"layers": {0: rows}}, {"layers": {0: -rows}}, jnp.zeros((4, 2)))


def kept(workdir, weights="online"):
    """The step of the best weights."""
    params = restore_params(workdir, weights, step="best")
    sign = 1 if weights == "online" else -1
    expected = np.arange(6.0).reshape(2, 3)
    found = sign * params["layers"][0]
    np.testing.assert_array_equal(found - found[0, 0], expected)
    return int(found[0, 0]) // 100


@pytest.fixture
def workdir(tmp_path):
    config = Config(
        data=DataConfig(validation=(JsonConfig(name="a"),)),
        checkpoint=CheckpointConfig(keep_best=True),
    )
    claim_workdir(tmp_path, config)
    return tmp_path


def folders(workdir):
    return sorted(path.name for path in (workdir / "best").iterdir())


def test_mean_recall_is_over_six_recalls_and_all_sources():
    one = {"r1": 10.0, "r5": 20.0, "r10": 30.0, "median_rank": 7.0}
    other = {"r1": 1.0, "r5": 2.0, "r10": 3.0, "median_rank": 9.0}
    metrics = {
        "a": {"i2t": one, "t2i": other, "rsum": 66.0},
        "b": {"i2t": other, "t2i": other, "rsum": 12.0},
    }
    recalls = [
        f[way][r]
        for f in metrics.values()
        for way in ("i2t", "t2i")
        for r in ("r1", "r5", "r10")
    ]
    assert mean_recall(metrics) == pytest.approx(sum(recalls) / 12)


def test_only_the_best_is_kept_and_the_first_of_equals(workdir):
    with KeepBest(workdir) as best:
        for step, recall, expected in (
            (10, 5.0, 10),
            (20, 7.5, 20),
            (30, 7.5, 20),
            (40, 7.25, 20),
            (50, 9.0, 50),
        ):
            best.update(step, recall, state_of(step))
            assert folders(workdir) == [str(expected)]
            assert best_step(workdir)[0] == kept(workdir) == expected
    assert best_step(workdir) == (50, 9.0)
    assert kept(workdir, "momentum") == 50


def test_best_so_far_is_read_from_the_disk(workdir):
    recall = 1 / 3 + 7.0  # no short decimal: all its bits must come back
    with KeepBest(workdir) as best:
        best.update(10, recall, state_of(10))
    with KeepBest(workdir) as best:
        best.update(20, np.nextafter(recall, 0), state_of(20))
        best.update(10, recall + 1, state_of(10))  # evaluated again after a kill
        assert best_step(workdir) == (10, recall) and kept(workdir) == 10
        best.update(30, np.nextafter(recall, 9), state_of(30))
    assert kept(workdir) == 30 and folders(workdir) == ["30"]


def test_kill_before_the_old_best_is_removed(workdir, tmp_path):
    """Of the two, the better one counts, though its step is lower."""
    with Checkpoints(workdir, keep=None, folder="best") as checkpoints:
        for step, recall in ((5, 8.0), (10, 6.0)):
            weights = dataclasses.asdict(state_of(step))
            del weights["queue"]
            checkpoints.save(step, weights, {"mean_recall": recall})
    (workdir / "best" / ".old-3").mkdir()
    assert best_step(workdir) == (5, 8.0) and kept(workdir) == 5
    with KeepBest(workdir):
        assert folders(workdir) == ["5"]


def test_corrupt_best_is_set_aside(workdir, capsys):
    with KeepBest(workdir) as best:
        best.update(10, 5.0, state_of(10))
    (workdir / "best" / "10" / "state" / "manifest.ocdbt").unlink()
    assert best_step(workdir) is None
    with pytest.raises(UserError, match=r"every checkpoint in .*best is corrupt"):
        kept(workdir)
    with KeepBest(workdir) as best:
        assert (workdir / "corrupt-checkpoints" / "10").is_dir()
        best.update(10, 4.0, state_of(10))
    assert kept(workdir) == 10 and "is corrupt" in capsys.readouterr().err


def test_failed_save_keeps_the_old_best(workdir, monkeypatch, capsys):
    full = shutil._ntuple_diskusage(10, 10, 0)
    with KeepBest(workdir) as best:
        best.update(10, 5.0, state_of(10))
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda folder: full)
            best.update(20, 6.0, state_of(20))
        assert "saving step 20" in capsys.readouterr().err
        assert folders(workdir) == ["10"] and kept(workdir) == 10
        best.update(30, 5.5, state_of(30))  # better than what is stored
        assert kept(workdir) == 30


def test_newest_checkpoints_rotate_without_the_best(workdir):
    with KeepBest(workdir) as best, Checkpoints(workdir, keep=1) as checkpoints:
        best.update(1, 9.0, state_of(1))
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step))
        checkpoints.wait()
        assert checkpoints.steps() == [3] and folders(workdir) == ["1"]
    assert kept(workdir) == 1
    params = restore_params(workdir)
    assert params["layers"][0][0, 0] == 300


def test_missing_best_is_an_error(workdir):
    with pytest.raises(UserError, match="keep_best=True but no evaluation yet"):
        restore_params(workdir, step="best")
    with pytest.raises(UserError, match="step must be one of"):
        restore_params(workdir, step="first")
    claim_workdir(workdir, Config(data=DataConfig(validation=(JsonConfig(name="a"),))))
    with pytest.raises(UserError, match=r"no best checkpoint.*keep_best=False"):
        restore_params(workdir, step="best")
