"""What a run starts from: its tokenizer's copy, and the editor it began with."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.tiny import CONTRAST_ALONE
from vilem_jax.config.freeze import differences, freeze
from vilem_jax.config.schema import (
    Config,
    DataConfig,
    EditorConfig,
    ModelConfig,
    TextConfig,
)
from vilem_jax.data.scenes.source import ScenesSource
from vilem_jax.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from vilem_jax.editing.loading import check_editor
from vilem_jax.editing.stored_edits import make_run_edits
from vilem_jax.errors import UserError
from vilem_jax.runs.origin import TOKENIZER_FOLDER
from vilem_jax.runs.trained_model import has_tokenizer, open_tokenizer
from vilem_jax.runs.workdir import claim_workdir
from vilem_jax.training import starting
from vilem_jax.weights.formats.vision_names import VisionStart

PIECES = [*SPECIAL_TOKENS, "a", "dog"]


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "vocabulary"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return Config(
        data=DataConfig(tokenizer=str(folder)),
        model=ModelConfig(text=TextConfig(vocab_size=len(PIECES))),
    )


def test_partial_copy_is_not_the_tokenizer(config, tmp_path):
    workdir = tmp_path / "run"
    copy = workdir / TOKENIZER_FOLDER
    copy.mkdir(parents=True)
    tokenizer = open_tokenizer(config, workdir)
    assert not has_tokenizer(workdir)
    tokenizer.save(copy)
    assert has_tokenizer(workdir)
    elsewhere = dataclasses.replace(config, data=DataConfig(tokenizer="/gone"))
    assert open_tokenizer(elsewhere, workdir).pieces == tuple(PIECES)


def test_interrupted_save_leaves_no_vocabulary(config, tmp_path, monkeypatch):
    tokenizer = Tokenizer(config.data.tokenizer)

    def stop(*_):
        raise OSError("no space left")

    monkeypatch.setattr("vilem_jax.files.os.fsync", stop)
    with pytest.raises(OSError, match="no space"):
        tokenizer.save(tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []


def test_resumed_run_keeps_the_stored_shapes(tmp_path, monkeypatch):
    """Of a tower that another folder decides, the image's side stays the config's.

    Mean and std of the images come with the tower.
    """

    def read(name, base, **_):
        return dataclasses.replace(base, width=24, num_heads=2)

    def read_start(name, **_):
        return VisionStart((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))

    monkeypatch.setattr(starting.starts, "read_vision_config", read)
    monkeypatch.setattr(starting.starts, "read_vision_start", read_start)
    vision = {"start_from": "gone", "image_size": 32, "patch_size": 16}
    settings = {"model": {"vision": vision}, "loss": CONTRAST_ALONE}
    began = starting.complete(freeze(settings), tmp_path)
    assert began.augment.std == (0.4, 0.5, 0.6)
    claim_workdir(tmp_path, began)
    monkeypatch.delattr(starting.starts, "read_vision_config")
    monkeypatch.delattr(starting.starts, "read_vision_start")
    assert starting.complete(freeze(settings), tmp_path) == began
    settings["model"]["vision"] = vision | {"image_size": 64}
    now = starting.complete(freeze(settings), tmp_path)
    assert differences(began, now) == [
        "config.model.vision.image_size was 32 and is now 64"
    ]


def test_another_editor_in_the_folder_of_the_run(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_file({"weights": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    found = check_editor(Config(editor=EditorConfig(path=str(tmp_path))))
    assert len(found) == 64
    editor = EditorConfig(path=str(tmp_path), sha256="0" * 64)
    with pytest.raises(UserError, match=f"is not that of this run.*{found}"):
        make_run_edits(Config(editor=editor), None, ScenesSource("test"), seed=0)
