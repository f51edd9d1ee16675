"""Two processes under `jax.distributed`, started as `srun` would, are one program."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.one_of_two import write_config
from tests.training.tiny_runs import HELD_OUT, child_environment, run_settings
from vilem_jax.runs.metrics import read_records

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS, SAVE_EVERY = 20, 10
PATIENCE = 400  # seconds for a process to reach a state
GONE_WITHIN = 60  # seconds for the survivors of a killed process to leave

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return one.getsockname()[1]


def as_task(index: int, port: int) -> dict[str, str]:
    """The environment variables that `srun --ntasks=2` sets in task `index`."""
    return {
        "SLURM_JOB_ID": "4242",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "JAX_COORDINATOR_PORT": str(port),
    }


def start(arguments, *, num_devices=1, ids="-", seconds=0, errors=None, **environment):
    inherited = child_environment(num_devices)
    plain = {k: v for k, v in inherited.items() if not k.startswith("SLURM_")}
    with errors.open("w") if errors else contextlib.nullcontext() as stderr:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.distributed.one_of_two",
                str(ids),
                str(seconds),
                *arguments,
            ],
            cwd=ROOT,
            env=plain | environment,
            stdout=subprocess.PIPE,
            stderr=stderr or subprocess.STDOUT,
            text=True,
        )


def start_two(folder, arguments, *, workdirs=None, seconds=0):
    """Both tasks; their stderr goes to FOLDER/errors-I."""
    port = free_port()
    workdirs = workdirs or [folder / "run"] * 2
    if arguments[0][0] == "train":
        arguments = [
            [*given, f"--workdir={workdir}"]
            for given, workdir in zip(arguments, workdirs, strict=True)
        ]
    return [
        start(
            arguments[i],
            ids=folder / f"ids-{i}",
            seconds=seconds,
            errors=folder / f"errors-{i}",
            **as_task(i, port),
        )
        for i in range(2)
    ]


def finish(process, seconds=PATIENCE):
    output, _ = process.communicate(timeout=seconds)
    # Gloo's C++ library prints to stdout.
    lines = [line for line in output.splitlines() if not line.startswith("[Gloo]")]
    return process.returncode, "\n".join(lines)


def errors_in(folder):
    return [(folder / f"errors-{i}").read_text() for i in range(2)]


def train_command(folder, settings):
    return ["train", f"--config={write_config(folder, settings)}"]


def wait_for_step(workdir, step, processes):
    began = time.monotonic()
    while max(steps_of(workdir), default=0) < step:
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.02)


def losses(workdir):
    return {
        record["step"]: record
        for record in read_records(workdir / "metrics.jsonl")
        if "loss" in record
    }


def steps_of(workdir):
    return list(losses(workdir))


def assert_same_losses(ours, theirs, steps):
    for step in steps:
        names = {name for name in theirs[step] if name.startswith("loss")}
        assert len(names) >= 7
        for name in names:
            assert abs(ours[step][name] - theirs[step][name]) < 1e-5, (step, name)
        for name in ("corrupt_images", "skipped_total"):
            assert ours[step][name] == theirs[step][name] == 0


@pytest.fixture(scope="module")
def settings(editor_folder):
    settings = run_settings("vilem", editor_folder)
    data = settings["data"] | {
        "validation": {"held_out": HELD_OUT},
        "test": {"held_out": HELD_OUT},
    }
    return run_settings(
        "vilem",
        editor_folder,
        data=data,
        train={"num_steps": NUM_STEPS},
        checkpoint={"every_steps": SAVE_EVERY, "keep_best": True},
        evaluation={"every_steps": SAVE_EVERY},
    )


@pytest.fixture(scope="module")
def one(settings, tmp_path_factory):
    """The folder of a run in one process with two devices."""
    folder = tmp_path_factory.mktemp("one")
    arguments = [*train_command(folder, settings), f"--workdir={folder / 'run'}"]
    process = start(arguments, num_devices=2, ids=folder / "ids")
    code, output = finish(process)
    assert code == 0, output
    return folder


@pytest.fixture(scope="module")
def two(settings, one, tmp_path_factory):
    """The folder of the same run in two processes with a device each."""
    folder = tmp_path_factory.mktemp("two")
    command = train_command(folder, settings)
    ended = [finish(process) for process in start_two(folder, [command] * 2)]
    assert [code for code, _ in ended] == [0, 0], errors_in(folder)
    (folder / "printed").write_text(json.dumps([text for _, text in ended]))
    return folder


def half_way(run, folder):
    """A copy of a finished run, reduced to its state after the first checkpoint."""
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "checkpoints" / str(NUM_STEPS))
    (folder / "test.json").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= SAVE_EVERY]
    (folder / "metrics.jsonl").write_text("".join(kept))
    return folder


def test_two_processes_have_the_losses_of_one(one, two):
    ours, theirs = losses(two / "run"), losses(one / "run")
    assert list(ours) == list(theirs) == list(range(1, NUM_STEPS + 1))
    assert_same_losses(ours, theirs, ours)


def test_sample_ids_partition_exactly(one, two):
    def batches(file):
        return [json.loads(line) for line in file.read_text().splitlines()]

    whole = batches(one / "ids")
    parts = [batches(two / f"ids-{i}") for i in range(2)]
    assert len(whole) == len(parts[0]) == len(parts[1]) == NUM_STEPS
    for ids, first, second in zip(whole, *parts, strict=True):
        assert first + second == ids and len(first) == len(second)


def test_evaluation_of_two_processes_is_the_same(one, two):
    for name in ("validation/held_out/rsum", "validation/mean_recall"):
        ours, theirs = (
            [record[name] for record in read_records(f / "run/metrics.jsonl")[-3:]
             if name in record]
            for f in (two, one)
        )  # fmt: skip
        assert ours == pytest.approx(theirs) and ours
    scores = [json.loads((f / "run/test.json").read_text()) for f in (two, one)]
    ours, theirs = (score["test"]["held_out"] for score in scores)
    assert ours["rsum"] == pytest.approx(theirs["rsum"])
    assert scores[0]["chosen_by"] == scores[1]["chosen_by"]


def test_only_process_0_writes_and_prints(two):
    first, second = errors_in(two)
    assert "2 processes with 2 devices (SLURM)" in first
    assert f"train {NUM_STEPS}/{NUM_STEPS}" in first
    assert "vilem:" not in second and "train " not in second
    printed = json.loads((two / "printed").read_text())
    assert "scored once" in printed[0] and not printed[1]
    assert len((two / "run/command.txt").read_text().splitlines()) == 1
    assert not list((two / "run").glob(".shared*"))


def test_vilem_evaluate_in_two_processes(two, tmp_path):
    out = tmp_path / "retrieval.json"
    command = ["evaluate", "retrieval", f"--model={two / 'run'}", f"--out={out}"]
    ended = [finish(process) for process in start_two(tmp_path, [command] * 2)]
    assert [code for code, _ in ended] == [0, 0], errors_in(tmp_path)
    assert "text to image" in ended[0][1] and not ended[1][1]
    found = json.loads(out.read_text())
    [*_, last] = read_records(two / "run/metrics.jsonl")
    assert found["rsum"] == pytest.approx(last["validation/held_out/rsum"])
    assert found["images"] == HELD_OUT["num_images"]


def test_one_process_resumes_a_run_of_two(one, two, settings, tmp_path):
    workdir = half_way(two / "run", tmp_path / "run")
    arguments = [*train_command(tmp_path, settings), f"--workdir={workdir}"]
    code, output = finish(start(arguments, num_devices=2))
    assert code == 0 and f"resuming at step {SAVE_EVERY}" in output, output
    steps = range(SAVE_EVERY + 1, NUM_STEPS + 1)
    assert_same_losses(losses(workdir), losses(one / "run"), steps)


def test_a_signal_to_one_process_stops_both_at_the_same_step(one, settings, tmp_path):
    """Also, two processes resume a run of one."""
    workdir = half_way(one / "run", tmp_path / "run")
    command = [*train_command(tmp_path, settings), "--stop-code=75"]
    both = start_two(tmp_path, [command] * 2, seconds=1)
    wait_for_step(workdir, SAVE_EVERY + 2, both)
    both[1].send_signal(signal.SIGTERM)
    assert [finish(process)[0] for process in both] == [75, 75], errors_in(tmp_path)
    assert "stopped at step" in errors_in(tmp_path)[0]
    last = max(steps_of(workdir))
    saved = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert SAVE_EVERY + 2 <= max(saved) == last < NUM_STEPS
    steps = range(SAVE_EVERY + 1, last + 1)
    assert_same_losses(losses(workdir), losses(one / "run"), steps)


@pytest.mark.parametrize("killed", [0, 1])
def test_if_one_process_is_killed_the_other_leaves(editor_folder, tmp_path, killed):
    """R8; with an editor, because its step compiles fast."""
    settings = run_settings(
        "editor",
        editor_folder,
        train={"num_steps": NUM_STEPS},
        checkpoint={"every_steps": 2, "keep": NUM_STEPS},
    )
    workdir = tmp_path / "run"
    command = train_command(tmp_path, settings)
    both = start_two(tmp_path, [command] * 2, seconds=1)
    wait_for_step(workdir, 4, both)
    both[killed].kill()
    code, _ = finish(both[1 - killed], seconds=GONE_WITHIN)
    finish(both[killed])
    assert max(steps_of(workdir)) < NUM_STEPS
    errors = errors_in(tmp_path)[1 - killed]
    # If a collective fails first, exit code 3; else JAX's service ends the process.
    if code == 3:
        assert "Traceback" in errors
        assert "another process is gone or out of reach" in errors
    else:
        assert code != 0 and "Terminating process" in errors, errors
    saved = [path.name for path in (workdir / "checkpoints").iterdir()]
    assert "2" in saved


def test_processes_with_other_settings_raise(settings, tmp_path):
    command = train_command(tmp_path, settings)
    other = [*command, "--config.seed=1"]
    codes = [finish(p)[0] for p in start_two(tmp_path, [command, other])]
    assert codes == [2, 2]
    first, second = errors_in(tmp_path)
    assert "process 1 has other settings than process 0" in first
    assert not (tmp_path / "run").exists() and "Traceback" not in first + second


def test_a_work_directory_that_is_not_shared_raises(settings, tmp_path):
    command = train_command(tmp_path, settings)
    apart = [tmp_path / "a", tmp_path / "b"]
    both = start_two(tmp_path, [command] * 2, workdirs=apart)
    assert [finish(process)[0] for process in both] == [2, 2]
    first, second = errors_in(tmp_path)
    assert f"process 1 has another work directory {apart[0]}" in first
    assert "Traceback" not in first + second
