"""The demo from nothing to a page, with the smallest models; stopped and resumed."""

import functools
import json
import shlex
from pathlib import Path

import pytest

from vilem_jax.errors import UserError
from vilem_jax.report import demo

TINY = {
    "train.num_steps": "2",
    "train.batch_size": "8",
    "optimizer.warmup_steps": "1",
    "log.every_steps": "1",
    "log.tensorboard": "False",
    "evaluation.num_proofread_images": "8",
    **{f"model.{tower}.num_layers": "2" for tower in ("text", "vision")},
    **{f"model.{tower}.width": "32" for tower in ("text", "vision")},
    **{f"model.{tower}.num_heads": "2" for tower in ("text", "vision")},
    **{f"model.{tower}.mlp_width": "32" for tower in ("text", "vision")},
}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(demo, "QUICK", TINY)
    images = {"train": 300, "validation": 10, "test": 12}
    monkeypatch.setattr(demo, "QUICK_IMAGES", images)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_second_call_changes_nothing(tiny, tmp_path, capsys, monkeypatch):
    # Not on all simulated devices of these tests: they take turns on few cores.
    monkeypatch.setattr(demo, "train", functools.partial(demo.train, num_devices=1))
    report = demo.run_demo(tmp_path / "demo", quick=True)
    assert report == tmp_path / "demo" / "report.html"
    page = report.read_text(encoding="utf-8")
    assert "Words find images" in page and "vilem demo --quick" in page
    metrics = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert set(metrics) == {"retrieval", "chance", "proofread", "pairs"}
    assert metrics["retrieval"]["images"] == 12
    printed = capsys.readouterr().out
    assert all(f"[{number}/5]" in printed for number in range(1, 6))
    assert "median rank" in printed and "Done in" in printed
    assert_commands_are_complete(printed)

    demo.run_demo(tmp_path / "demo", quick=True)
    again = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert again == metrics
    with pytest.raises(UserError, match="seed"):
        demo.run_demo(tmp_path / "demo", quick=True, seed=1)


def assert_commands_are_complete(printed):
    """Every file in the commands is there, or is made by the one before."""
    commands = [shlex.split(line) for line in printed.splitlines()[-3:]]
    assert [words[1] for words in commands] == ["proofread", "index", "search"]
    made = set()
    for _, verb, path, *options in commands:
        made |= {o.removeprefix("--out=") for o in options if o.startswith("--out=")}
        assert (verb == "search" and path in made) or Path(path).exists(), path
        (model,) = [o for o in options if o.startswith("--model=")]
        assert (Path(model.removeprefix("--model=")) / "config.json").exists()


def test_a_stopped_demo_says_how_to_resume(tiny, tmp_path, monkeypatch, capsys):
    """`train` returns early on SIGTERM."""
    monkeypatch.setattr(demo, "train", lambda config, workdir: {})
    assert demo.run_demo(tmp_path / "demo", quick=True) is None
    printed = capsys.readouterr().out
    assert "[2/5]" in printed and "[3/5]" not in printed
    assert "rerun the same command to resume" in printed


def test_a_folder_that_cannot_be_created_is_refused(tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        demo.run_demo(tmp_path / "file" / "demo", quick=True)
