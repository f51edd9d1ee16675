"""What a run prints about its data before it trains."""

import json

import pytest

from tests.training.tiny_runs import run_settings
from vilem_jax.config.freeze import freeze
from vilem_jax.errors import UserError
from vilem_jax.training import run as program
from vilem_jax.training.run import train


def test_captions_that_are_left_out_are_reported(
    editor_folder, tmp_path, capsys, monkeypatch
):
    def stop(*_):
        raise UserError("enough")

    monkeypatch.setattr(program, "open_edits", stop)
    rows = [{"image": "a.png", "caption": ["a dog", " "], "split": "train"}]
    rows += [{"image": "b.png", "caption": "a cat", "split": "training"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    mine = {"kind": "json", "path": str(tmp_path / "a.json"), "split": "train"}
    settings = run_settings("vilem", editor_folder)
    data = {**settings["data"], "train": {"mine": mine}}
    with pytest.raises(UserError, match="enough"):  # after the data
        train(freeze({**settings, "data": data}), tmp_path / "run", num_devices=1)
    printed = capsys.readouterr().err
    assert "vilem: mine: 1 blank captions left out" in printed
    assert "vilem: mine: rows left out, split is 'restval+train': 1 of 't" in printed
