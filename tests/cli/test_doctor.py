"""`vilem doctor` and `vilem completion`, and where `vilem --help` leads."""

import json
import socket
import subprocess

import pytest

from tests.training.tiny_runs import run_settings, write_vocabulary
from vilem_jax.cli.main import main
from vilem_jax.config.freeze import freeze
from vilem_jax.errors import UserError
from vilem_jax.runs.workdir import claim_workdir, note_command, noting_errors


def said(capsys, *arguments):
    assert main(["doctor", *arguments]) == 0
    return capsys.readouterr().out


def test_the_machine_without_names_of_hosts(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    out = tmp_path / "doctor.json"
    text = said(capsys, f"--out={out}")
    facts = json.loads(out.read_text())["machine"]
    assert "cpu" in facts["devices"][0] and "jax 0." in facts["packages"]
    assert facts["missing"] and facts["memory"].endswith(" GB")
    assert "secret" not in text and socket.gethostname() not in text


def test_a_driver_that_fails_is_a_line(capsys, monkeypatch):
    def fail():
        raise RuntimeError("no driver")

    monkeypatch.setattr("jax.local_devices", fail)
    assert "devices: none: no driver" in said(capsys)


def test_why_a_run_stopped(tmp_path, capsys):
    run = tmp_path / "run"
    assert "holds no run" in said(capsys, f"--run={run}")
    start = write_vocabulary(tmp_path / "words")
    claim_workdir(run, freeze(run_settings("editor", start)))
    note_command(run)
    with pytest.raises(UserError), noting_errors(run):
        raise UserError("5 steps in a row were not finite")
    text = said(capsys, f"--run={run}")
    assert "stopped by: UserError: 5 steps in a row" in text
    assert "rerun: " in text and "(starts at step 0)" in text
    (run / "metrics.jsonl").write_text('{"step": 7, "loss": 1.0}\n')
    (run / "checkpoints" / "5").mkdir(parents=True)
    with noting_errors(run):  # a start forgets the error of the one before
        pass
    text = said(capsys, f"--run={run}")
    assert "last logged step: 7" in text and "last checkpoint: 5" in text
    assert "stopped by: a kill or a crash: the steps after 5 are lost" in text
    assert "(resumes at step 5)" in text
    (run / "checkpoints" / "14").mkdir()
    assert "state: finished" in said(capsys, f"--run={run}")


def test_completion_of_a_shell(tmp_path, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "--workdir" in script and "doctor" in script
    (tmp_path / "vilem").write_text(script)
    assert subprocess.run(["bash", "-n", str(tmp_path / "vilem")]).returncode == 0


def test_help_answers_five_questions(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for verb in ("plan", "data check", "doctor --run", "evaluate retrieval", "weights"):
        assert "?  " in text and f"vilem {verb}" in text
