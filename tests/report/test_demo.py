"""The demo from nothing to a page, with the smallest models; stopped and resumed."""

import functools
import json

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
def test_one_call_makes_everything_and_another_adds_nothing(
    tiny, tmp_path, capsys, monkeypatch
):
    # Not on all the pretended devices of these tests: they take turns on few cores.
    monkeypatch.setattr(demo, "train", functools.partial(demo.train, num_devices=1))
    report = demo.run_demo(tmp_path / "demo", quick=True)
    assert report == tmp_path / "demo" / "report.html"
    page = report.read_text(encoding="utf-8")
    assert "Words find images" in page and "vilem demo --quick" in page
    metrics = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert set(metrics) == {"retrieval", "chance", "proofread", "pairs"}
    assert metrics["retrieval"]["images"] == 12
    said = capsys.readouterr().out
    assert all(f"[{number}/5]" in said for number in range(1, 6))
    assert "median rank" in said and "All done in" in said

    demo.run_demo(tmp_path / "demo", quick=True)
    again = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert again == metrics
    with pytest.raises(UserError, match="seed"):
        demo.run_demo(tmp_path / "demo", quick=True, seed=1)


def test_a_stop_is_told(tiny, tmp_path, monkeypatch, capsys):
    """`train` returns early on SIGTERM; the demo then says how to go on."""
    monkeypatch.setattr(demo, "train", lambda config, workdir: {})
    assert demo.run_demo(tmp_path / "demo", quick=True) is None
    said = capsys.readouterr().out
    assert "[2/5]" in said and "[3/5]" not in said
    assert "the same command goes on" in said


def test_a_folder_that_cannot_be_made_is_a_sentence(tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        demo.run_demo(tmp_path / "file" / "demo", quick=True)
