"""A signal in each phase of `vilem train`: it saves what there is, and resumes."""

import itertools
import json
import signal
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.training.tiny_runs import HELD_OUT, assert_same_run, run_settings
from vilem_jax.cli.main import main
from vilem_jax.runs.checkpoints import Checkpoints
from vilem_jax.runs.metrics import MetricsLog
from vilem_jax.training import run
from vilem_jax.training.tasks import VilemTask

NUM_STEPS = 3
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# What runs in the phase, and the call of it in which the signal comes.
PHASES: dict[str, tuple[Any, str, int]] = {
    "reading": (run, "open_corpus", 1),
    "compilation": (run, "put_batch", 1),  # the step is compiled after its first batch
    "step": (MetricsLog, "write", 1),
    "evaluation": (VilemTask, "evaluate", 1),
    "save": (Checkpoints, "save", 1),
}


def settings_file(editor_folder: Path, folder: Path) -> Path:
    """A config file of three steps, evaluated and saved after each second one."""
    settings = run_settings("vilem", editor_folder)
    settings["data"]["validation"] = {"held_out": HELD_OUT}
    settings["train"]["num_steps"] = NUM_STEPS
    settings["optimizer"]["warmup_steps"] = 1
    settings["evaluation"]["every_steps"] = settings["checkpoint"]["every_steps"] = 2
    file = folder / "settings.py"
    text = json.dumps(settings)
    file.write_text(
        f"import json\n\ndef get_config():\n    return json.loads({text!r})\n"
    )
    return file


def vilem_train(config: Path, workdir: Path, *options: str) -> int:
    return main(["train", f"--config={config}", f"--workdir={workdir}", *options])


@contextmanager
def signal_in(phase: str, number: signal.Signals):
    """The signal comes while the phase's function runs."""
    owner, name, call = PHASES[phase]
    original: Callable = getattr(owner, name)
    calls = itertools.count(1)

    def with_signal(*given, **named):
        if next(calls) == call:
            signal.raise_signal(number)
        return original(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, with_signal)
        yield


def check_phase(
    phase: str, number: signal.Signals, config: Path, workdir: Path, whole: Path
) -> int:
    """The exit code of a run that gets a signal; it resumes as if it had not."""
    with signal_in(phase, number):
        code = vilem_train(config, workdir)
    saved = workdir / "checkpoints"
    if phase == "reading":
        assert code == 128 + number and not workdir.exists()
        return code
    assert code == 0 and any(saved.iterdir())
    assert not any("tmp" in path.name for path in saved.iterdir())
    assert vilem_train(config, workdir) == 0
    assert_same_run(workdir, whole)
    return code


@pytest.fixture(scope="module")
def config(editor_folder, tmp_path_factory):
    return settings_file(editor_folder, tmp_path_factory.mktemp("signals"))


@pytest.fixture(scope="module")
def whole(config):
    assert vilem_train(config, config.parent / "whole") == 0
    return config.parent / "whole"


# Each signal; `check_phase` takes all pairs. "step" is in test_run.py.
@pytest.mark.slow
@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize(
    ("phase", "number"),
    list(zip([p for p in PHASES if p != "step"], (*SIGNALS, *SIGNALS), strict=False)),
)
def test_a_signal_in_any_phase(phase, number, config, whole, tmp_path, capsys):
    check_phase(phase, number, config, tmp_path / "run", whole)
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    ends = [
        line for line in errors.splitlines() if "stopped" in line or "interr" in line
    ]
    assert len(ends) == 1, errors


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_reading_ends_with_the_code_for_schedulers(
    number, config, tmp_path, capsys
):
    with signal_in("reading", number):
        assert vilem_train(config, tmp_path / "run", "--stop-code=75") == 75
    assert capsys.readouterr().err == "vilem: interrupted\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
