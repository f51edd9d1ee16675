"""Checkpoints: round trips, corruption, failed saves, kills, work directories."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.restore import restore_params
from vilem_jax.config.schema import Config, LogConfig
from vilem_jax.distributed.mesh import make_mesh, replicated
from vilem_jax.errors import UserError
from vilem_jax.runs.checkpoints import Checkpoints
from vilem_jax.runs.trained_model import read_stored
from vilem_jax.runs.workdir import claim_workdir, read_config


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    step: jax.Array
    params: Any
    momentum_params: Any
    opt_state: Any
    queue: jax.Array


def make_state(step: int, *, width: int = 16, queue: int = 8) -> State:
    rng = np.random.default_rng(step)

    def params():
        return {
            "layers": {
                i: {"kernel": jnp.asarray(rng.standard_normal((width, 4), np.float32))}
                for i in range(3)
            },
            "scale": jnp.asarray(rng.standard_normal(()).astype(np.float32)),
        }

    return State(
        step=jnp.int32(step),
        params=params(),
        momentum_params=params(),
        opt_state=optax.adam(1e-3).init(params()),
        queue=jnp.zeros((queue, 4)),
    )


def abstract(state: State, target=None) -> State:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=target), state
    )


def assert_same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save_steps(folder: Path, *steps: int, **shape: int) -> None:
    with Checkpoints(folder) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step, **shape))


@pytest.mark.parametrize("queue", [8, 0])
def test_round_trip_is_bitwise_and_keeps_the_newest(tmp_path, queue):
    save_steps(tmp_path, 1, 5, 10, queue=queue)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [5, 10]
        state, step = checkpoints.restore_latest(abstract(make_state(1, queue=queue)))
    assert step == 10
    assert_same(state, make_state(10, queue=queue))


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(abstract(make_state(1))) is None


@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
def test_restores_onto_any_number_of_devices(tmp_path, num_devices):
    save_steps(tmp_path, 3)
    mesh = make_mesh(num_devices)
    target = replicated(mesh)
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = checkpoints.restore_latest(abstract(make_state(3), target))
    assert_same(state, make_state(3))
    leaves = jax.tree.leaves(state)
    assert all(x.sharding.is_equivalent_to(target, x.ndim) for x in leaves)


def test_save_survives_donation_of_the_state(tmp_path):
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = make_state(1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        state = advance(state)
        jax.block_until_ready(state)
        restored, _ = checkpoints.restore_latest(abstract(make_state(1)))
    assert_same(restored, make_state(1))


def corrupt_file(file: Path, how: str, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if how == "deleted":
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[: rng.randrange(len(content))])
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)


def restore_over_corrupt(folder: Path, width: int) -> list[str]:
    """Restores step 1 past a corrupt 2, saves 2 again; returns the messages."""
    messages = []
    with Checkpoints(folder, notify=messages.append) as checkpoints:
        state, step = checkpoints.restore_latest(abstract(make_state(1, width=width)))
        assert step == 1
        assert_same(state, make_state(1, width=width))
        checkpoints.save(2, make_state(2, width=width))  # the resumed run reaches it
    assert checkpoints.steps() == [1, 2]
    assert (folder / "corrupt-checkpoints" / "2").is_dir()
    return messages


@pytest.mark.parametrize("name", ["manifest.ocdbt", "array", "_METADATA"])
@pytest.mark.parametrize("how", ["flipped", "cut", "deleted"])
def test_a_corrupt_checkpoint_is_found_reported_and_skipped(tmp_path, capfd, how, name):
    save_steps(tmp_path, 1, 2, width=512)
    state = tmp_path / "checkpoints" / "2" / "state"
    arrays = state.glob("ocdbt.process_*/d/*")
    biggest = max(arrays, key=lambda file: file.stat().st_size)
    file = biggest if name == "array" else state / name
    corrupt_file(file, how, random.Random(0))
    messages = restore_over_corrupt(tmp_path, 512)
    assert "2 is corrupt" in messages[0] and file.name in messages[0]
    assert "step 1" in messages[1]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("how", ["flipped", "cut", "deleted"])
def test_a_corrupt_list_of_files_is_found(tmp_path, how):
    save_steps(tmp_path, 1, 2)
    corrupt_file(tmp_path / "checkpoints/2/files.json", how, random.Random(0))
    assert "2 is corrupt" in restore_over_corrupt(tmp_path, 16)[0]


def test_the_files_of_another_step_are_found(tmp_path):
    save_steps(tmp_path, 1, 2)
    older, newest = (tmp_path / "checkpoints" / step for step in "12")
    shutil.rmtree(newest / "state")
    shutil.copytree(older / "state", newest / "state")  # readable, and another state
    assert "2 is corrupt" in restore_over_corrupt(tmp_path, 16)[0]


def test_if_all_are_corrupt_nothing_starts_again(tmp_path):
    save_steps(tmp_path, 1)
    (tmp_path / "checkpoints" / "1" / "tensors" / "metadata").write_text("{}")
    for _ in range(2):
        with (
            Checkpoints(tmp_path, notify=lambda _: None) as checkpoints,
            pytest.raises(UserError, match=r"every checkpoint .* corrupt"),
        ):
            checkpoints.restore_latest(abstract(make_state(1)))


def test_another_shape_names_the_first_tensor(tmp_path):
    save_steps(tmp_path, 1)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError) as caught:
            checkpoints.restore_latest(abstract(make_state(1, width=32)))
        assert "params.layers.0.kernel" in str(caught.value)
        assert "(16, 4)" in str(caught.value) and "(32, 4)" in str(caught.value)
        smaller = abstract(make_state(1)).params
        with pytest.raises(UserError, match="does not have"):
            checkpoints.restore_latest({"params": smaller})
    assert checkpoints.steps() == [1]


def test_three_failed_saves_stop_the_run(tmp_path, monkeypatch):
    messages = []
    with Checkpoints(tmp_path, notify=messages.append) as checkpoints:
        checkpoints.save(1, make_state(1))
        checkpoints.wait()
        full = lambda _: type("Usage", (), {"free": 0})  # noqa: E731
        monkeypatch.setattr("shutil.disk_usage", full)
        checkpoints.save(2, make_state(2))
        checkpoints.save(3, make_state(3))
        assert len(messages) == 2 and "step 1 is safe" in messages[1]
        with pytest.raises(UserError, match="3 in a row"):
            checkpoints.save(4, make_state(4))
        monkeypatch.undo()
        checkpoints.save(5, make_state(5))  # a successful save resets the count
        checkpoints.wait()
        assert checkpoints._failed == 0
    assert checkpoints.steps() == [1, 5]


def test_failed_background_save_is_reported(tmp_path, monkeypatch):
    messages = []

    def fail(*_):
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path, notify=messages.append) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr("vilem_jax.integrity.list_files", fail)
            checkpoints.save(1, make_state(1))
            checkpoints.wait()
        assert "no space left" in messages[0]
        checkpoints.save(2, make_state(2))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_failed_last_save_raises(tmp_path, monkeypatch):
    monkeypatch.setattr("vilem_jax.integrity.list_files", lambda *_: 1 / 0)
    with (
        pytest.raises(UserError, match="the last checkpoint could not be written"),
        Checkpoints(tmp_path, notify=lambda _: None) as checkpoints,
    ):
        checkpoints.save(1, make_state(1))


SAVES_BEYOND_A_LIMIT = """
import resource, sys
from pathlib import Path
from tests.runs.test_checkpoints import make_state
from vilem_jax.runs.checkpoints import Checkpoints
with Checkpoints(sys.argv[1], keep=9) as checkpoints:
    for step, limit in enumerate([-1, 1, -1, 3000, -1, 60000, -1], start=1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
        checkpoints.save(step, make_state(step, width=4000))
        checkpoints.wait()
    print(checkpoints.steps())
"""


def test_failed_save_is_one_sentence_on_stderr(tmp_path):
    """Files of a limited size fail in Orbax's threads as on a full disk."""
    done = subprocess.run(
        [sys.executable, "-c", SAVES_BEYOND_A_LIMIT, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.stdout == "[1, 3, 5, 7]\n", done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 3, done.stderr
    failed = "failed: file too large (1 of 3 in a row); training continues, step"
    assert all(failed in line for line in lines), done.stderr


SAVES_FOREVER = """
import sys, jax.numpy as jnp
from vilem_jax.runs.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
step = max(checkpoints.steps(), default=0)
while True:
    step += 1
    checkpoints.save(step, {f"p{i}": jnp.full((64, 64), step) for i in range(20)})
    if step == 1:
        checkpoints.wait()
    print("ready", flush=True)
"""


def test_kill_while_saving_leaves_intact_checkpoints(tmp_path):
    for seconds in (0.3, 0.55):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVES_FOREVER, str(tmp_path)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        messages = []
        with Checkpoints(tmp_path, notify=messages.append) as checkpoints:
            newest = checkpoints.steps()[-1]
            names = [f"p{i}" for i in range(20)]
            target = dict.fromkeys(names, jax.ShapeDtypeStruct((64, 64), jnp.int32))
            state, step = checkpoints.restore_latest(target)
        assert step == newest and not messages
        assert all((np.asarray(state[name]) == step).all() for name in names)


def test_restore_fields_reads_a_run(tmp_path):
    save_steps(tmp_path, 1, 2)
    state = make_state(2)
    for weights, expected in (
        ("online", state.params),
        ("momentum", state.momentum_params),
    ):
        params = restore_params(tmp_path, weights, abstract(state).params)
        assert_same(params, jax.tree.map(np.asarray, expected))
        assert isinstance(params["layers"][0]["kernel"], np.ndarray)
    with pytest.raises(UserError, match=r"layers\.0\.kernel has shape \(16, 4\)"):
        restore_params(tmp_path, shapes=make_state(1, width=8).params)


def test_restore_fields_skips_corrupt_checkpoints(tmp_path, capsys):
    claim_workdir(tmp_path, Config())
    save_steps(tmp_path, 1, 2)
    (tmp_path / "checkpoints" / "2" / "state" / "manifest.ocdbt").unlink()
    params = restore_params(tmp_path)
    assert_same(params, jax.tree.map(np.asarray, make_state(1).params))
    messages = capsys.readouterr().err
    assert "2 is corrupt" in messages
    assert "the checkpoint of step 1 is used instead" in messages
    assert (tmp_path / "checkpoints" / "2").is_dir()  # a reader moves nothing


def test_reading_without_a_run_or_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        read_stored(tmp_path)
    with pytest.raises(UserError, match="'online' or 'momentum', not 'best'"):
        read_stored(tmp_path, "best")
    claim_workdir(tmp_path, Config())
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        read_stored(tmp_path)


def test_workdir_of_another_config_lists_the_differences(tmp_path):
    assert claim_workdir(tmp_path / "run", Config()) is False
    with pytest.raises(UserError) as caught:
        claim_workdir(tmp_path / "run", Config(seed=1, task="editor"))
    assert "config.seed was 0 and is now 1" in str(caught.value)
    assert "config.task was 'vilem' and is now 'editor'" in str(caught.value)
    assert read_config(tmp_path / "run") == Config()


def test_a_run_that_lost_its_settings_is_kept(tmp_path):
    (tmp_path / "train.log").touch()  # other files are ignored
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(
        UserError, match=r"metrics\.jsonl of a run, but no config\.json"
    ):
        claim_workdir(tmp_path, Config())
    (tmp_path / "metrics.jsonl").unlink()
    assert claim_workdir(tmp_path, Config()) is False


def test_settings_that_may_change_on_resuming_are_stored(tmp_path):
    claim_workdir(tmp_path, Config())
    longer = Config(log=LogConfig(every_steps=7))
    assert claim_workdir(tmp_path, longer) is True
    assert read_config(tmp_path) == longer
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_a_foreign_config_json_is_refused_and_kept(tmp_path):
    for text, sentence in (
        ('{"hidden_size": 3}', "hidden_size"),
        ("{", "not JSON"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=sentence):
            claim_workdir(tmp_path, Config())
        assert (tmp_path / "config.json").read_text() == text


def test_workdir_that_cannot_be_created_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to the work directory"):
        claim_workdir(tmp_path / "file" / "run", Config())


def test_config_is_plain_json(tmp_path):
    claim_workdir(tmp_path, Config())
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["optimizer"]["learning_rate"] == 3e-4
