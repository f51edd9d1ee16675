"""`kill -9` at random moments, resumed each time: the unbroken run, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.tiny_runs import (
    NUM_STEPS,
    assert_same_run,
    child_environment,
    run_settings,
)
from vilem_jax.training import run

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240  # seconds until a process must have come to where it is killed


def start(settings, workdir, *, seconds=0.05):
    """The run as a process of its own; `seconds` of rest after each record."""
    file = workdir.parent / f"{workdir.name}.json"
    file.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "tests.training.tiny_runs"]
    return subprocess.Popen(
        [*command, str(file), str(workdir), str(seconds)],
        cwd=ROOT,
        env=child_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Waits for the end of a run that nobody kills."""
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors


def wait_until(process, is_so):
    """True once `is_so()`, False where the process ended before."""
    began = time.monotonic()
    while not is_so():
        if process.poll() is not None:
            return False
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.001)
    return True


def last_step(workdir):
    try:
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        return json.loads(lines[-1])["step"]
    except (OSError, ValueError, IndexError):
        return 0


def is_saving(workdir):
    """Orbax writes under another name until a checkpoint is whole."""
    folder = workdir / "checkpoints"
    return folder.is_dir() and any("tmp" in path.name for path in folder.iterdir())


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(editor_folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("kill") / "whole"
    finish(start(run_settings("vilem", editor_folder), workdir, seconds=0))
    return workdir


MOMENTS = {
    "before its first checkpoint": lambda w: last_step(w) >= 2,
    "in a save": is_saving,
    "after a save": lambda w: last_step(w) >= 7,
    "in a later save": lambda w: last_step(w) >= 10 and is_saving(w),
    "at its end": lambda w: last_step(w) >= NUM_STEPS,
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "num_workers, moments",
    [
        (0, [m for m in MOMENTS if m != "after a save"]),
        (2, ["in a save", "after a save"]),
    ],
    ids=["0 workers", "2 workers"],
)
def test_run_killed_repeatedly_equals_an_uninterrupted_one(
    whole, editor_folder, tmp_path, num_workers, moments
):
    workdir, chance = tmp_path / "run", random.Random(num_workers)
    data = run_settings("vilem", editor_folder)["data"]
    settings = run_settings(
        "vilem", editor_folder, data={**data, "num_workers": num_workers}
    )
    num_kills = 0
    for moment in moments:
        process = start(settings, workdir)
        if wait_until(process, lambda moment=moment: MOMENTS[moment](workdir)):
            time.sleep(chance.random() * 0.05)
        if process.poll() is None:
            kill(process)
            num_kills += 1
        else:
            finish(process)  # it was faster: it must have ended well
    assert num_kills >= len(moments) - 1
    finish(start(settings, workdir, seconds=0))
    assert_same_run(workdir, whole)
    assert not is_saving(workdir)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_terminated_process_saves_and_exits_with_0(editor_folder, tmp_path, number):
    """R2, with worker processes that hear the signal too: it goes to the group."""
    data = run_settings("vilem", editor_folder)["data"]
    settings = run_settings("vilem", editor_folder, data={**data, "num_workers": 2})
    process = start(settings, tmp_path / "run")
    assert wait_until(process, lambda: last_step(tmp_path / "run") >= 3)
    step = last_step(tmp_path / "run")
    process.send_signal(number)
    began = time.monotonic()
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert time.monotonic() - began < 10 or os.getloadavg()[0] > 2 * os.cpu_count()
    assert "Traceback" not in errors and "stopped at step" in errors
    saved = {int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert step <= max(saved) <= step + 2
    assert last_step(tmp_path / "run") == max(saved)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_second_run_in_a_work_directory_is_refused(whole, editor_folder, tmp_path):
    settings, workdir = run_settings("vilem", editor_folder), tmp_path / "run"
    first = start(settings, workdir)
    assert wait_until(first, lambda: last_step(workdir) >= 1)
    first.send_signal(signal.SIGSTOP)  # it would end before the second has started
    second = start(settings, workdir, seconds=0)
    _, errors = second.communicate(timeout=PATIENCE)
    assert second.returncode != 0
    assert f"{workdir} is being written by process {first.pid} on " in errors
    first.send_signal(signal.SIGCONT)
    finish(first)
    assert_same_run(workdir, whole)
    assert not (workdir / ".lock").exists()


def test_hangup_is_ignored_under_nohup_alone():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup sets it
    try:
        with run._stop_signal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with run._stop_signal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
