"""What a long command is doing: named soon, never silent for long, never on stdout."""

import subprocess
import sys
import threading
import time

import pytest

from vilem_jax import progress
from vilem_jax.progress import counting, doing, notify, track


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(progress, "SOON", 0.02)
    monkeypatch.setattr(progress, "PAUSE", 0.06)
    monkeypatch.setattr(progress, "_SPEAKER", progress._Speaker())


def printed(capsys) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def wait_for(lines: int, capsys) -> list[str]:
    """The lines that are printed until there are so many, at most for 5 seconds."""
    found, end = [], time.monotonic() + 5
    while len(found) < lines and time.monotonic() < end:
        time.sleep(0.01)
        found += printed(capsys)
    return found


def test_a_long_step_is_named_again_and_again(capsys):
    with doing("compiling"):
        lines = wait_for(3, capsys)
    assert lines[0] == "vilem: compiling ..."
    assert lines[1].startswith("vilem: still compiling, ")
    assert not [t for t in threading.enumerate() if "_speak" in t.name]
    printed(capsys)
    time.sleep(0.1)
    assert printed(capsys) == []


def test_a_short_step_is_not_mentioned(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SOON", 30.0)
    start = time.monotonic()
    with doing("reading"):
        pass
    assert time.monotonic() - start < 5  # it does not wait for the thread's next look
    assert printed(capsys) == []


def test_the_innermost_step_is_named(capsys):
    with doing("the outer"):
        with doing("the inner"):
            lines = wait_for(2, capsys)
        assert all("the inner" in line for line in lines)
        assert any("the outer" in line for line in wait_for(1, capsys))


def test_other_lines_count_as_signs_of_life(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 0.5)
    with doing("training", is_named=True):
        for _ in range(10):
            notify("a step")
            time.sleep(0.03)
    assert printed(capsys) == ["vilem: a step"] * 10


def test_items_are_counted(capsys):
    taken = track(["a", "b", "c"], "reading", "image")
    assert next(taken) == "a" and next(taken) == "b"
    lines = wait_for(2, capsys)
    assert list(taken) == ["c"]
    assert lines[1].startswith("vilem: reading, 1 of 3, ")
    assert lines[1].endswith(" left")


def test_an_error_ends_the_step(capsys):
    with pytest.raises(ValueError), counting("reading", 3) as advance:
        advance(2)
        raise ValueError
    assert progress._SPEAKER.steps == []


def test_other_processes_are_silent(capsys):
    progress.silence()
    with doing("reading"):
        time.sleep(0.1)
    notify("a note")
    assert printed(capsys) == []


def test_a_verb_without_a_named_step_is_not_silent():
    """The command line's own step, around a verb that only waits."""
    script = (
        "import sys, time\n"
        "from vilem_jax import progress\n"
        "from vilem_jax.cli import main, train\n"
        "progress.SOON = progress.PAUSE = 0.05\n"
        "train._demo = lambda options: time.sleep(0.6)\n"
        "sys.exit(main.main(['demo']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "vilem: still working, " in done.stderr
