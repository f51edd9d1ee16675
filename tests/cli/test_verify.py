"""`vilem weights verify` on all that is written, and flipped bits that are found."""

import random

import numpy as np
import pytest
import safetensors.numpy

from tests.runs.test_checkpoints import save_steps
from tests.search.test_embed import MeanColour, folder, run  # noqa: F401
from tests.weights.test_model_folder import parts, random_tree  # noqa: F401
from vilem_jax.cli.main import main
from vilem_jax.config.schema import Config
from vilem_jax.errors import UserError
from vilem_jax.integrity import list_files
from vilem_jax.runs.workdir import claim_workdir
from vilem_jax.search.index import index
from vilem_jax.weights import folders
from vilem_jax.weights.model_folder import read_model_folder, write_model_folder


def flip(path, position, bit):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def verify(path, capsys):
    code = main(["weights", "verify", str(path)])
    return code, capsys.readouterr().out.splitlines()


@pytest.fixture
def model(parts, tmp_path):  # noqa: F811
    config, params, momentum, queues, tokenizer = parts
    extra = {"momentum_params": momentum, "queues": queues, "card": "# A model\n"}
    write_model_folder(tmp_path / "model", config, params, tokenizer, **extra)
    return tmp_path / "model"


def test_every_flipped_bit_of_an_exported_model_is_found(model, capsys):
    assert verify(model, capsys) == (0, [])
    files = sorted(model.iterdir())
    assert len(files) == 8
    chance, found = random.Random(0), 0
    for number in range(100):
        file = files[number % len(files)]
        whole = file.read_bytes()
        flip(file, chance.randrange(len(whole)), chance.randrange(8))
        with pytest.raises(UserError, match=f"{file.name} is not what was saved"):
            folders.verify(model)
        file.write_bytes(whole)
        found += 1
    assert found == 100
    weights = model / "model.safetensors"
    flip(weights, weights.stat().st_size - 5, 0)
    with pytest.raises(UserError, match=r"model\.safetensors is not what was saved"):
        read_model_folder(model)
    (model / "vocab.txt").unlink()
    code, lines = verify(model, capsys)
    assert code == 1 and len(lines) == 2
    assert lines[0].endswith("model.safetensors is not what was saved")
    assert lines[1].endswith("vocab.txt is missing")


def test_a_card_may_be_edited(model, capsys):
    (model / "README.md").write_text("# My model\n")
    read_model_folder(model)
    assert verify(model, capsys)[0] == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(model, value, capsys):
    file = model / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    name = "text.layers.0.norm.scale"
    name = name if name in tensors else sorted(tensors)[3]
    tensors[name].flat[-1] = value
    safetensors.numpy.save_file(tensors, file)
    list_files(model)
    with pytest.raises(UserError, match=f"the tensor {name} in .* NaN or infinity"):
        read_model_folder(model)
    code, lines = verify(model, capsys)
    assert code == 1 and name in lines[0] and len(lines) == 1


def test_embeddings_and_an_index(folder, tmp_path, capsys):  # noqa: F811
    out, file = tmp_path / "vectors", tmp_path / "index"
    run(folder, out)
    index(folder, MeanColour(), file)
    assert verify(out, capsys) == verify(file, capsys) == (0, [])
    flip(out / "vectors-00002.safetensors", -9, 3)
    (out / "vectors-00003.safetensors").unlink()
    (out / "manifest.json").write_text("{}")
    code, lines = verify(out, capsys)
    assert code == 1 and [line.split()[0].split("/")[-1] for line in lines] == [
        "vectors-00002.safetensors",
        "vectors-00003.safetensors",
        "manifest.json",
    ]
    flip(out / "plan.json", 0, 0)
    assert verify(out, capsys)[0] == 1
    flip(file, file.stat().st_size // 2, 3)
    code, lines = verify(file, capsys)
    assert code == 1 and len(lines) == 1


def test_a_run(tmp_path, capsys):
    claim_workdir(tmp_path, Config())
    assert verify(tmp_path, capsys) == (1, [f"{tmp_path} holds no finished checkpoint"])
    save_steps(tmp_path, 1, 2)
    assert verify(tmp_path, capsys) == (0, [])
    (array,) = (tmp_path / "checkpoints/2/state/d").iterdir()
    flip(array, -3, 0)
    (tmp_path / "config.json").write_text("{")
    code, lines = verify(tmp_path, capsys)
    assert code == 1 and len(lines) == 2
    assert "config.json is not JSON" in lines[0] and "checkpoints/2: state" in lines[1]


def test_what_is_nothing_of_ours(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "none"):
        assert verify(path, capsys) == (2, [])
