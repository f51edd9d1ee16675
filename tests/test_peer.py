"""Whole training steps against the PyTorch peer's cases, seeds 0 to 4."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def peer_case():
    path = Path(__file__).with_name("peer_case.py")
    spec = importlib.util.spec_from_file_location("peer_case", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# One process for all cases: importing torch takes longer than writing a case.
WRITE_CASES = """
import runpy, sys
script, folder, *seeds = sys.argv[1:]
for seed in seeds:
    sys.argv = [script, "case", f"{folder}/{seed}", "--seed", seed]
    runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def cases(shared_folder, tmp_path_factory):
    """A folder with the peer's cases in folders 0 to 4."""
    pytest.importorskip("torch", reason="no torch: the peer's cases are NOT compared")
    script = shared_folder / "peer" / "torch_vilem.py"
    if not script.is_file():
        pytest.skip(f"no peer: {script} is missing; its cases are NOT compared")
    folder = tmp_path_factory.mktemp("peer")
    result = subprocess.run(
        [sys.executable, "-c", WRITE_CASES, script, folder, *map(str, range(5))],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize("seed", range(5))
def test_step_matches_the_peer(seed, cases, peer_case, capsys):
    errors = peer_case.compare(cases / str(seed))
    assert peer_case.report(errors), capsys.readouterr().out


@pytest.mark.realdata
def test_comparison_finds_an_error_of_four_tolerances(
    cases, tmp_path, peer_case, capsys
):
    folder = tmp_path / "changed"
    shutil.copytree(cases / "0", folder)
    case = json.loads((folder / "case.json").read_text())
    case["expected"][2]["t2i"] *= 1 + 2e-5
    (folder / "case.json").write_text(json.dumps(case))
    assert not peer_case.report(peer_case.compare(folder))
    assert "step 2 t2i  ABOVE THE LIMIT" in capsys.readouterr().out


def test_losses_of_0_are_compared(peer_case):
    """A batch in which nothing is edited has no correction loss."""
    expected = {name: 0.0 if "correct" in name else 2.0 for name in peer_case.LOSSES}
    metrics = {f"loss_{name}": value for name, value in expected.items()}
    metrics["loss"] = metrics.pop("loss_total")
    assert set(peer_case.loss_errors(metrics, expected).values()) == {0.0}
    errors = peer_case.loss_errors(metrics | {"loss_local_correct": 1e-3}, expected)
    assert errors.pop("local_correct") == 1e-3 and not any(errors.values())


def test_tensors_of_zeros_are_compared(peer_case):
    zero, some = {"bias": np.zeros(3)}, {"bias": np.full(3, 1e-4)}
    for errors in (peer_case.norm_errors, peer_case.gradient_errors):
        assert errors(zero, zero) == {"bias": 0.0}
        kind = errors.__name__.replace("norm", "parameter").replace("_errors", "s")
        assert errors(some, zero)["bias"] > peer_case.TOLERANCE[kind]


@pytest.mark.parametrize("length, count", [(0, 0), (10, 0), (10, 6), (10, 10)])
def test_queues_of_any_length_are_compared(peer_case, length, count):
    """The peer's queue has the rows that are valid, ours the others too."""
    queue = np.random.default_rng(0).normal(size=(length, 4))
    assert peer_case.queue_error(queue, count, queue[:count]) == 0.0
    if count:
        assert peer_case.queue_error(queue, count, queue[:count] + 1) == pytest.approx(
            1.0
        )
        assert peer_case.queue_error(queue, count, queue[: count - 1]) == np.inf


def test_command_names_the_missing_file(peer_case, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["peer_case.py", str(tmp_path)])
    assert peer_case.main() == 2
    assert "has no case.json" in capsys.readouterr().err
