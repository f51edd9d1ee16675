"""Runs as model folders: bit for bit, accepted wherever a run is, without paths."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import vilem_jax
from tests.export.conftest import CAPTIONS, METRICS, QUEUE_COUNT
from vilem_jax.cli.main import main
from vilem_jax.config.sources import (
    JsonConfig,
    ScenesConfig,
    TfdsConfig,
    WebDatasetConfig,
)
from vilem_jax.errors import UserError
from vilem_jax.export.card import harmless, model_card
from vilem_jax.export.model import export_model
from vilem_jax.runs.checkpoints import BEST_FOLDER, MEAN_RECALL, Checkpoints
from vilem_jax.runs.trained_model import is_run, read_stored
from vilem_jax.weights import tables


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "model"
    export_model(run, folder, "vilem", for_training=True, made_by="vilem weights")
    return folder


def assert_same_bits(found, expected):
    found, expected = (dict(tables.leaves(tree)) for tree in (found, expected))
    assert set(found) == set(expected) and found
    for path, leaf in expected.items():
        assert np.asarray(found[path]).tobytes() == np.asarray(leaf).tobytes(), path


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("vilem: ") and message.count("\n") == 1, message
    return message


def test_a_run_and_its_export_are_one_model(run, exported, stored, tmp_path):
    found = read_stored(exported, for_training=True)
    assert_same_bits(found.params, stored.params)
    assert_same_bits(found.momentum_params, stored.momentum_params)
    assert_same_bits(found.queues, stored.queues)
    assert {len(queue) for queue in found.queues.values()} == {QUEUE_COUNT}
    assert_same_bits(read_stored(exported, "momentum").params, found.momentum_params)
    # Exported again, from the export: the same bytes, also of the card.
    export_model(exported, tmp_path / "again", "vilem", for_training=True)
    files = sorted(path.name for path in exported.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in files:
        assert (exported / name).read_bytes() == (
            tmp_path / "again" / name
        ).read_bytes()


def test_load_reads_an_export(run, exported, embeddings, pixels):
    model = vilem_jax.load(exported)
    assert np.array_equal(model.encode_image(list(pixels)), embeddings[0])
    assert np.array_equal(model.encode_text(CAPTIONS), embeddings[1])
    # An index of one fits the other.
    assert model.fingerprint == vilem_jax.load(run).fingerprint
    words = model.proofread(pixels[0], CAPTIONS[0])
    assert [word.word for word in words] == ["a", "red", "dog", "on", "the", "sofa"]


def test_momentum_weights_are_exported_alone(run, exported, stored, tmp_path):
    export_model(run, tmp_path / "slow", "vilem", weights="momentum")
    found = read_stored(tmp_path / "slow")
    assert_same_bits(found.params, stored.momentum_params)
    assert not (tmp_path / "slow" / "momentum.safetensors").exists()
    with pytest.raises(UserError, match="holds no momentum weights"):
        vilem_jax.load(tmp_path / "slow", weights="momentum")
    assert "momentum weights" in (tmp_path / "slow" / "README.md").read_text()


def test_an_export_names_no_path_of_this_machine(run, exported):
    for file in exported.iterdir():
        assert str(run.parent).encode() not in file.read_bytes(), file.name
    config = json.loads((exported / "config.json").read_text())
    assert config["data"]["train"]["own"]["path"] == "captions.json"
    assert config["editor"] == config["editor"] | {"path": "", "sha256": "ab"}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("vilem train --workdir=/home/me/runs/x", "vilem train --workdir=x"),
        ("--images=~/coco/val2014.zip --seed=1", "--images=val2014.zip --seed=1"),
        ("vilem train '--data=/mnt/a b/c d.json'", "vilem train '--data=c d.json'"),
        ("--config.x=['/mnt/a/b.tar']", "'--config.x=[b.tar]'"),
        ("it's /mnt/a", "'it'\"'\"'s' a"),
        ("facebook/deit-base-patch16-224", "facebook/deit-base-patch16-224"),
        ("runs/mine", "runs/mine"),
        ("coco_captions/2014", "coco_captions/2014"),
    ],
)
def test_commands_lose_their_folders(command, expected):
    assert harmless(command) == expected


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (ScenesConfig(name="a"), "- trained on **a** (drawn by the program)\n"),
        (JsonConfig(name="b", path="/m/b.json"), "**b** (json: `b.json`)\n"),
        (
            TfdsConfig(name="c", path="coco_captions/2014", split="val"),
            "**c** (tfds: `coco_captions/2014`), split val\n",
        ),
        (
            WebDatasetConfig(name="<d>", path="/m/*.tar"),
            "**<d>** (webdataset: `*.tar`)",
        ),
    ],
)
def test_a_card_names_each_kind_of_source(stored, source, words):
    data = dataclasses.replace(stored.config.data, train=(source,), validation=())
    config = dataclasses.replace(stored.config, data=data)
    changed = stored._replace(config=config)
    made = {"weights": "online", "made_by": "vilem weights export"}
    assert words in model_card("/nowhere", changed, "onnx", "title", **made)


def test_the_card_has_data_command_and_metrics(exported):
    card = (exported / "README.md").read_text()
    for words in (
        "trained on **own** (json: `captions.json`)",
        "vilem train --workdir=run",
        "3 steps of 4 pairs",
        "| words to image, R@1 | 12.5 |",
        "| images | 1,000 |",
        "## Licence\n\nNot chosen yet",
    ):
        assert words in card


def test_verbs_accept_an_export(exported, tmp_path, capsys):
    model = f"--model={exported}"
    scenes = ("--data=scenes", "--num-images=3")
    assert main(["evaluate", "retrieval", model, *scenes]) == 0
    assert "R@1" in capsys.readouterr().out
    message = refused(capsys, "evaluate", "retrieval", model)
    assert "name the data with --data" in message
    message = refused(capsys, "evaluate", "proofread", model, *scenes)
    assert "config.editor.path is empty" in message


def test_a_folder_without_a_model_is_refused(run, exported, tmp_path, capsys):
    assert is_run(run) and not is_run(exported)
    assert is_run(tmp_path) and is_run("runs") and is_run("./runs/mine")
    assert not is_run("someone/model")
    export = ("weights", "export", "--format=vilem", f"--out={tmp_path / 'out'}")
    assert "holds no run" in refused(capsys, *export, tmp_path)
    assert "holds no run" in refused(capsys, *export, tmp_path / "nothing")
    shutil.copytree(exported, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "cut short" in refused(capsys, *export, tmp_path / "cut")
    (tmp_path / "cut" / "config.json").write_text('{"model_type": "bert"}')
    assert "Hugging Face's layout" in refused(capsys, *export, tmp_path / "cut")
    assert not (tmp_path / "out").exists()


def test_other_files_are_not_replaced(run, exported, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    for kind in ("vilem", "huggingface", "stablehlo"):
        export = ("weights", "export", run, f"--format={kind}")
        assert "holds mine.txt" in refused(capsys, *export, f"--out={tmp_path}")
        # The export of another format is a folder of other files too.
        if kind != "vilem":
            assert "name another" in refused(capsys, *export, f"--out={exported}")
    itself = ("weights", "export", exported, "--format=vilem", f"--out={exported}")
    assert "is the model itself" in refused(capsys, *itself)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_options_that_contradict_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="format must be one of vilem, hugging"):
        export_model(run, tmp_path / "out", "torch")
    for kind, weights in (("huggingface", "online"), ("vilem", "momentum")):
        with pytest.raises(UserError, match="leave --for-training out"):
            export_model(
                run, tmp_path / "out", kind, weights=weights, for_training=True
            )
    with pytest.raises(SystemExit):
        main(["weights", "export", str(run), "--out=x", "--format=torch"])


@pytest.fixture(scope="module")
def run_with_best(run, tmp_path_factory):
    """`run` with a better checkpoint than its last, of an earlier step."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    shutil.copytree(run, folder)
    params = read_stored(run).params
    best = {
        "params": jax.tree.map(lambda x: x + 1, params),
        "momentum_params": jax.tree.map(lambda x: x + 2, params),
    }
    with Checkpoints(folder, keep=None, folder=BEST_FOLDER) as checkpoints:
        checkpoints.save(2, best, {MEAN_RECALL: 50.0})
    records = [METRICS | {"step": 2, "validation/own/t2i/r1": 77.5}, METRICS]
    lines = "".join(f"{json.dumps(record)}\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)
    return folder, best


def test_the_best_step_of_a_run_is_exported(run_with_best, tmp_path, capsys):
    folder, best = run_with_best
    out = tmp_path / "best"
    export = ("weights", "export", str(folder), f"--out={out}", "--format=vilem")
    assert main([*export, "--step=best", "--for-training"]) == 0
    found = read_stored(out, for_training=True)
    assert_same_bits(found.params, best["params"])
    assert_same_bits(found.momentum_params, best["momentum_params"])
    assert found.queues == {}
    card = (out / "README.md").read_text()
    for words in ("step 2:", "| 77.5 |", "2 steps of 4 pairs", "--step=best"):
        assert words in card
    assert "12.5" not in card
    assert main([*export]) == 0  # replaced by the last step
    assert_same_bits(read_stored(out).params, read_stored(folder).params)
    assert "step 3:" in (out / "README.md").read_text()


def test_a_missing_best_step_is_refused(run, exported, tmp_path, capsys):
    for name, words in ((run, "keep_best=False"), (exported, "leave --step=best out")):
        export = ("weights", "export", name, f"--out={tmp_path / 'out'}")
        assert words in refused(capsys, *export, "--format=vilem", "--step=best")
        assert not (tmp_path / "out").exists()
