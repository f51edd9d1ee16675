"""Fine-tuning starts from an origin: weights, shapes, tokenizer, refused origins.

Nothing trains here: the origin holds random weights, written as a run writes them.
"""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from tests.restore import restore_params
from tests.training.tiny_runs import (
    HELD_OUT,
    run_settings,
    stored_state,
    write_vocabulary,
)
from vilem_jax.config.freeze import freeze
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.distributed.mesh import Layout, make_mesh
from vilem_jax.errors import UserError
from vilem_jax.runs import origin
from vilem_jax.runs.checkpoints import Checkpoints
from vilem_jax.runs.trained_model import open_tokenizer
from vilem_jax.runs.workdir import CONFIG_FILE, claim_workdir, read_config
from vilem_jax.training import starting, tasks
from vilem_jax.training.run import train
from vilem_jax.training.state import init_params, init_state
from vilem_jax.weights import positions

PRE_STEPS = 3
OFF = dict.fromkeys(
    ("local_detect", "local_correct", "global_detect", "global_correct"), False
)  # the heads still exist
TEST = {"kind": "scenes", "split": "test", "num_images": 10}


def merged(settings, **sections):
    new = {name: {**settings.get(name, {}), **part} for name, part in sections.items()}
    return {**settings, **new}


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory):
    """(work directory, settings) of a run, its momentum copies unlike its weights."""
    folder = tmp_path_factory.mktemp("origin")
    settings = run_settings("editor", write_vocabulary(folder / "vocabulary"))
    settings = merged({**settings, "task": "vilem"}, loss=OFF)
    workdir, config = folder / "run", freeze(settings)
    claim_workdir(workdir, config)
    Tokenizer(folder / "vocabulary").save(workdir / "tokenizer")
    params = init_params(config, jax.random.key(5))
    params = jax.tree.map(
        lambda x: x + 0.01 * (1 + np.arange(x.size, dtype=np.float32).reshape(x.shape)),
        params,
    )
    momentum = jax.tree.map(lambda x: 1 - x, params)
    state = init_state(config, params, momentum)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(PRE_STEPS, dataclasses.replace(state, step=state.step + 3))
    return workdir, settings


def tuning(pretraining, name=None, **sections):
    """Settings of a run that starts from `name`, and sets no shape."""
    workdir, before = pretraining
    settings = {k: v for k, v in before.items() if k != "model"}
    settings = merged(
        settings,
        data={
            "tokenizer": "",
            "validation": {"held_out": HELD_OUT},
            "test": {"test": TEST},
        },
        model={"start_from": str(name or workdir), "vision": {"image_size": 48}},
        loss={"positives": "image", "queue_length": 24},
        checkpoint={"keep_best": True},
    )
    return merged(settings, **sections)


def start_state(settings, workdir):
    """The state of step 0, on the host."""
    config = starting.complete(freeze(settings), workdir)
    tokenizer = open_tokenizer(config, workdir)
    layout = Layout(make_mesh(1))
    task = tasks.make_task(config, layout, tokenizer, lambda step: 0.0, workdir)
    params = task.load_weights(task.init_params(jax.random.key(0)))
    return jax.device_get(task.init_state(*params)), config


def test_normalization_comes_with_the_origin(pretraining, tmp_path):
    """Mean and std of its images; those that the config sets stay."""
    run = tmp_path / "run"
    shutil.copytree(pretraining[0], run)
    stored = json.loads((run / CONFIG_FILE).read_text())
    stored["augment"] |= {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    (run / CONFIG_FILE).write_text(json.dumps(stored))
    for given, mean in (({}, (0.1, 0.2, 0.3)), ({"mean": (0.5,) * 3}, (0.5,) * 3)):
        settings = merged(tuning(pretraining, run), augment=given)
        assert (
            starting.complete(freeze(settings), tmp_path / "new").augment.mean == mean
        )


def test_everything_starts_from_the_origin(pretraining, tmp_path):
    state, config = start_state(tuning(pretraining), tmp_path)
    trained, _ = stored_state(pretraining[0])
    table = "['vision']['position_embedding']"
    names = 0
    for kind in ("params", "momentum_params"):
        tree = jax.tree_util.tree_leaves_with_path(getattr(state, kind))
        for path, leaf in tree:
            name = jax.tree_util.keystr(path)
            before = trained[f".{kind}{name}"]
            if name == table:
                assert before.shape[0] == 1 + 2 * 2 and leaf.shape[0] == 1 + 3 * 3
                before = positions.resize(before, 3)
            np.testing.assert_array_equal(leaf, before, err_msg=name)
            names += 1
    assert names == sum(
        key.startswith((".params", ".momentum_params")) for key in trained
    )
    temperature = state.params["temperature"]
    assert temperature != np.float32(config.model.initial_temperature)
    momentum = state.momentum_params["text_projection"]["kernel"]
    assert (momentum != state.params["text_projection"]["kernel"]).any()
    assert state.queue_count == 0 and (state.queue_image_ids == -1).all()
    assert not state.image_queue.any() and state.step == 0
    text, vision = config.model.text, config.model.vision
    assert (text.width, vision.patch_size, vision.image_size) == (32, 16, 48)
    assert (config.model.embedding_width, config.model.num_proofread_layers) == (16, 1)


def refused(settings, workdir, *words):
    with pytest.raises(UserError) as error:
        train(freeze(settings), workdir, num_devices=1)
    sentence = str(error.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence, sentence
    assert not workdir.exists()


def test_origin_that_is_no_model_is_refused(pretraining, tmp_path):
    pytest.importorskip("vilem_jax.weights.model_folder")
    gone = tmp_path / "gone" / "far"
    refused(tuning(pretraining, gone), tmp_path / "run", str(gone))
    (tmp_path / "photos").mkdir()
    words = "photos (config.model.start_from) is neither the work directory of a run"
    refused(tuning(pretraining, tmp_path / "photos"), tmp_path / "run", words)


def test_origin_without_a_vilem_or_a_checkpoint_is_refused(pretraining, tmp_path):
    home = tmp_path / "origin"
    shutil.copytree(pretraining[0], home)
    settings = json.loads((home / "config.json").read_text())
    (home / "config.json").write_text(json.dumps(settings | {"task": "editor"}))
    refused(tuning(pretraining, home), tmp_path / "run", "run of an editor")
    (home / "config.json").write_text(json.dumps(settings))
    shutil.rmtree(home / "checkpoints" / str(PRE_STEPS))
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        origin.load_origin(
            starting.complete(freeze(tuning(pretraining, home)), tmp_path)
        )


@pytest.mark.parametrize(
    "model, words",
    [
        ({"num_proofread_layers": 2}, "config.model.num_proofread_layers=2 is not"),
        ({"embedding_width": 32}, "config.model.embedding_width=32 is not"),
        ({"heads": "shared"}, "config.model.heads='shared' is not"),
        ({"levels": "last"}, "config.model.levels='last' is not"),
        ({"text": {"width": 64}}, "config.model.text.width=64 is not"),
        ({"text": {"vocab_size": 99}}, "config.model.text.vocab_size=99 is not"),
        (
            {"vision": {"num_layers": 3}, "num_proofread_layers": 1},
            "config.model.vision.num_layers=3 is not that of the model in",
        ),
        ({"vision": {"image_size": 40}}, "image_size=40 is not a multiple"),
        ({"text": {"start_from": "a"}}, "config.model.text.start_from=a brings one"),
        ({"vision": {"start_from": "a"}}, "config.model.vision.start_from=a brings"),
    ],
)
def test_another_shape_than_the_origin_is_refused(pretraining, tmp_path, model, words):
    settings = tuning(pretraining)
    settings["model"] = {"start_from": settings["model"]["start_from"], **model}
    settings["train"] = {**settings["train"], "batch_size": 16}
    with pytest.raises(UserError) as error:
        train(freeze(settings), tmp_path / "run", num_devices=1)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_tokenizer_with_other_tokens_is_refused(pretraining, tmp_path):
    vocabulary = pretraining[0] / "tokenizer" / "vocab.txt"
    words = vocabulary.read_text().splitlines()
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "vocab.txt"
    other.write_text("\n".join([*words[:-2], *words[:-3:-1]]) + "\n")
    data = tuning(pretraining)["data"]
    settings = tuning(pretraining, data={**data, "tokenizer": str(tmp_path / "other")})
    refused(settings, tmp_path / "run", "vocab.txt is not the run's vocabulary")


def test_unusable_data_is_refused(pretraining, tmp_path):
    data = tuning(pretraining)["data"]
    none = {**data, "validation": {}}
    with pytest.raises(UserError, match="keep_best needs data to judge by"):
        freeze(tuning(pretraining, data=none))
    gone = {**data, "test": {"mine": {"path": str(tmp_path / "gone.json")}}}
    with pytest.raises(UserError, match=r"gone\.json does not exist"):
        train(freeze(tuning(pretraining, data=gone)), tmp_path / "run", num_devices=1)
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps([{"image": "a.png", "caption": []}]))
    bare = {**data, "train": {"mine": {"path": str(empty)}}}
    settings = tuning(pretraining, data=bare)
    refused(settings, tmp_path / "other", "no image has a caption")
    with pytest.raises(UserError, match=r"has no meaning for the run of an editor"):
        freeze({"task": "editor", "model": {"start_from": "runs/mine"}})


def test_a_model_folder_is_an_origin(pretraining, tmp_path):
    """Written by `weights/model_folder.py`; without momentum copies, a copy."""
    model_folder = pytest.importorskip(
        "vilem_jax.weights.model_folder", reason="model folders are NOT tried"
    )
    config = read_config(pretraining[0])
    params = restore_params(pretraining[0])
    tokenizer = open_tokenizer(config, pretraining[0])
    model_folder.write_model_folder(tmp_path / "model", config, params, tokenizer)
    state, complete = start_state(
        tuning(pretraining, tmp_path / "model"), tmp_path / "run"
    )
    expected, _ = start_state(tuning(pretraining), tmp_path / "other")
    for ours, theirs, momentum in zip(
        jax.tree.leaves(state.params),
        jax.tree.leaves(expected.params),
        jax.tree.leaves(state.momentum_params),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(momentum, theirs)
    assert complete.model.text == config.model.text
