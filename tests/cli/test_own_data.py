"""README's path from own pairs to a model, at a tenth of the size, with tiny towers."""

import json
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

from vilem_jax.cli.main import main
from vilem_jax.config import towers
from vilem_jax.config.schema import Config
from vilem_jax.data.scenes.source import ScenesSource
from vilem_jax.data.tokenizer import Tokenizer, train_vocabulary
from vilem_jax.runs.workdir import read_config
from vilem_jax.weights import folders

README = Path(__file__).resolve().parents[2] / "README.md"
NUM_IMAGES = {"train": 100, "val": 12, "test": 12}
# In place of half an hour.
SHORT = {
    "train.num_steps": 4,
    "optimizer.warmup_steps": 1,
    "evaluation.every_steps": 4,
    "editor.train_steps": 4,
    "model.embedding_width": 8,
    "model.vision.image_size": 28,
}


def commands() -> list[list[str]]:
    """The words of each `vilem` command in the first shell block of the section."""
    section = README.read_text().split("## Your own data")[1]
    block = re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)[0]
    lines = re.findall(r"^vilem (.*)$", block, re.M)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder that README starts in: captions.json and images."""
    source = ScenesSource("train", num_images=sum(NUM_IMAGES.values()))
    (tmp_path / "images").mkdir()
    splits = [name for name, count in NUM_IMAGES.items() for _ in range(count)]
    rows = []
    for i, split in enumerate(splits):
        name = f"{i}.jpg"
        write_image(tmp_path / "images" / name, source.read_image(i))
        rows.append({"image": name, "caption": source.captions(i), "split": split})
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    bert = make_bert(tmp_path / "bert", [text for r in rows for text in r["caption"]])
    tiny = (16, 2, 2, 16)
    monkeypatch.setitem(towers.IMAGE_TOWERS, "DINOv2-S/14", towers.Shape(*tiny, "", 14))
    monkeypatch.setitem(towers.TEXT_TOWERS, "MiniLM", towers.Shape(*tiny, str(bert)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_image(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path)


def make_bert(folder: Path, captions: list[str]) -> Path:
    """A BERT of random weights without a masked-language head, like MiniLM."""
    from vilem_jax.config.freeze import freeze
    from vilem_jax.training.editor_step import init_editor_params
    from vilem_jax.weights.formats.huggingface_bert import save_masked_language_model

    train_vocabulary(captions, 200, folder / "vocabulary")
    size = Tokenizer(folder / "vocabulary").vocabulary.size
    tower = {"width": 16, "num_layers": 2, "num_heads": 2, "mlp_width": 16}
    text = {"vocab_size": size, "max_positions": 40, **tower}
    model = {"text": text, "num_proofread_layers": 1}
    config: Config = freeze({"task": "editor", "model": model})
    shapes = jax.eval_shape(
        lambda key: init_editor_params(config, key), jax.random.key(0)
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: (0.05 * rng.standard_normal(leaf.shape)).astype(np.float32),
        shapes,
    )
    path = folder / "bert"
    save_masked_language_model(path, params, config.model.text, folder / "vocabulary")
    return path


@pytest.mark.slow  # of compilation alone
def test_the_path_of_the_readme_runs_as_printed(home, capsys):
    found = commands()
    assert len(found) == 9
    for words in found:
        if "--config=own_data" in words:
            words += [f"--config.{key}={value}" for key, value in SHORT.items()]
        assert main(words) == 0, (words, capsys.readouterr())
    run = home / "runs" / "mine"
    config = read_config(run)
    # What was chosen is stored, what was given won, and the editor is the run's own.
    assert config.fitted == () and config.train.num_steps == 4
    assert config.loss.queue_length >= config.train.batch_size
    assert config.editor.path == str(Path("runs/mine/editor/editor"))
    assert config.editor.sha256 == folders.sha256(run / "editor" / "editor")
    assert (run / "test.json").exists() and (home / "hits.html").exists()
    # The same command again, in a changed world: the run is done, nothing changes.
    rows = json.loads((home / "captions.json").read_text())
    (home / "captions.json").write_text(json.dumps(rows[4:]))
    before = (run / "config.json").read_text()
    assert main([w for w in found[3] if w != "--dry-run"]) == 0
    assert (run / "config.json").read_text() == before
