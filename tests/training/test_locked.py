"""Locked towers: what keeps its value, what a run stores of it, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from flax.nnx.traversals import flatten_mapping

from tests.tiny import (
    CONTRAST_ALONE,
    Runner,
    compiled_update,
    tiny_batch,
    tiny_config,
    tiny_samples,
    tiny_state,
)
from tests.training.tiny_runs import HELD_OUT, run_settings, write_vocabulary
from vilem_jax import api
from vilem_jax.config.freeze import freeze
from vilem_jax.errors import UserError
from vilem_jax.models.locked import is_locked, split_params
from vilem_jax.models.vilem import ViLEM
from vilem_jax.runs.checkpoints import Checkpoints
from vilem_jax.runs.trained_model import read_stored
from vilem_jax.training import starting, tasks
from vilem_jax.training.run import train
from vilem_jax.training.state import abstract_state


def locking(vision, text, **sections):
    model = sections.pop("model", {})
    numbers = {
        "vision": {"num_trained_layers": vision, **model.pop("vision", {})},
        "text": {"num_trained_layers": text, **model.pop("text", {})},
    }
    return tiny_config(model=model | numbers, **sections)


def flat(params):
    return {".".join(map(str, k)): v for k, v in flatten_mapping(params).items()}


def names(config):
    """(trained, locked), the names of the parameters."""
    whole = tiny_state(config).params
    trained, locked = split_params(whole, config.model)
    assert flat(trained).keys() | flat(locked).keys() == flat(whole).keys()
    return set(flat(trained)), set(flat(locked))


def test_what_a_number_of_layers_locks():
    trained, locked = names(locking(0, -1))
    assert {name.split(".")[0] for name in locked} == {"vision"}
    assert not [name for name in trained if name.startswith("vision.")]
    trained, locked = names(locking(1, 1))
    towers = {n for n in trained if n.split(".")[0] in ("vision", "text")}
    heads = {".".join(name.split(".")[:3]) for name in towers}
    assert {"vision.norm.scale", "text.layers.1", "vision.blocks.1"} < heads
    assert heads - {"vision.norm.scale", "vision.norm.bias"} == {
        *("vision.blocks.1", "text.layers.1", "text.layers.0")
    }
    # The layers that read an image keep their cross-attention trained.
    first = {n.split(".")[3] for n in towers if n.startswith("text.layers.0")}
    assert first == {"cross_attention"}
    assert {"vision.class_token", "text.embedding.words"} < locked
    # Embeddings alone: all layers train.
    _, locked = names(locking(2, 2))
    assert {".".join(n.split(".")[:2]) for n in locked} == {
        *("vision.class_token", "vision.position_embedding", "vision.patch_embedding"),
        "text.embedding",
    }
    assert names(tiny_config())[1] == set()


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0)])
def test_fifty_steps_leave_locked_parameters_unchanged(numbers):
    config = locking(*numbers)
    update, state = compiled_update(config), tiny_state(config)
    before = jax.device_get(flat(state.params))
    for number in range(50):
        state, metrics = update(state, tiny_samples(number % 3, dropout=True))
    assert np.isfinite(metrics["loss"]) and metrics["skipped_total"] == 0
    trained, locked = names(config)
    after = jax.device_get(flat(state.params))
    assert before.keys() == after.keys()
    for name in locked:
        assert before[name].tobytes() == after[name].tobytes(), name
    # Keys' biases have no gradient, and empty positions none.
    moved = {n for n in trained if before[n].tobytes() != after[n].tobytes()}
    assert {n for n in trained - moved if not n.endswith("key.bias")} == set()
    assert set(flat(state.momentum_params)) == trained
    stored = jax.tree_util.tree_leaves_with_path(state.opt_state)
    sizes = sorted(leaf.size for _, leaf in stored if leaf.ndim)
    wanted = sorted(2 * [before[n].size for n in trained if before[n].ndim])
    assert sizes == wanted
    paths = [jax.tree_util.keystr(path) for path, _ in stored]
    assert not [path for path in paths if "['words']" in path]


@pytest.mark.parametrize("numbers", [(0, 0), (1, 1)])
def test_a_step_equals_the_unlocked_one_in_what_trains(numbers):
    """Without dropout: the same loss, keys and update of each trained parameter."""
    locked_config, config = locking(*numbers), tiny_config()
    samples = tiny_samples(1)
    locked, metrics = compiled_update(locked_config)(tiny_state(locked_config), samples)
    whole, expected = compiled_update(config)(tiny_state(config), samples)
    assert metrics["loss"] == pytest.approx(float(expected["loss"]), rel=1e-6)
    np.testing.assert_allclose(locked.image_queue, whole.image_queue, atol=1e-6)
    np.testing.assert_allclose(locked.text_queue, whole.text_queue, atol=1e-6)
    theirs, ours = flat(whole.opt_state[1].mu), flat(locked.opt_state[1].mu)
    assert ours.keys() == names(locked_config)[0]
    for name, value in ours.items():
        close = dict(rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(value, theirs[name], **close, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {"compute": {"sharding": "fsdp"}, "train": {"num_microbatches": 2}},
        {"compute": {"scan_blocks": True, "text_lengths": (6,)}},
        {"loss": {"pairing": "cross"}, "model": {"levels": "last"}},
        {"optimizer": {"name": "muon", "clip_norm": 1.0}},
    ],
    ids=["sharded microbatches", "scan and lengths", "cross pairing", "muon"],
)
def test_locked_steps_under_other_settings(sections):
    """Sharding, microbatches, a scan and text lengths change nothing but rounding."""
    config = locking(1, 1, **sections)
    num_devices = 2 if "sharding" in sections.get("compute", {}) else 1
    runner = Runner(config, num_devices)
    state, metrics = runner.step(runner.init_state(config), tiny_batch(2))
    _, locked = names(config)
    before, after = flat(tiny_state(config).params), flat(state.params)
    for name in locked:
        assert np.asarray(before[name]).tobytes() == np.asarray(after[name]).tobytes()
    assert metrics["skipped_total"] == 0
    if "compute" in sections:
        plain = locking(1, 1)
        runner = Runner(plain)
        _, expected = runner.step(runner.init_state(plain), tiny_batch(2))
        assert metrics["loss"] == pytest.approx(float(expected["loss"]), rel=1e-5)
        grad_norm = float(expected["grad_norm"])
        assert metrics["grad_norm"] == pytest.approx(grad_norm, rel=1e-5)


# ---- runs ----


def settings_of(folder, vision, *, num_steps=4, **model):
    settings = run_settings(
        "editor",
        folder,
        loss={**CONTRAST_ALONE, "queue_length": 20},
        train={"num_steps": num_steps, "batch_size": 16},
    )
    settings["task"] = "vilem"
    settings["data"]["validation"] = {"held_out": HELD_OUT}
    settings["checkpoint"] = {"every_steps": 2, "keep_best": True}
    vision = settings["model"]["vision"] | {"num_trained_layers": vision}
    settings["model"] |= {"vision": vision, **model}
    return settings


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("locked") / "vocabulary")


@pytest.fixture(scope="module")
def run(vocabulary):
    """The work directory of a run whose image tower is locked."""
    workdir = vocabulary.parent / "run"
    train(freeze(settings_of(vocabulary, 0)), workdir, num_devices=1)
    return workdir


def stored_bytes(workdir, step):
    files = (workdir / "checkpoints" / str(step)).rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def test_a_run_stores_locked_parameters_once(run, vocabulary, tmp_path):
    stored = read_stored(run, for_training=True)
    _, locked = split_params(stored.params, stored.config.model)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(locked))
    # A checkpoint of the same model without locking, of noise as the run's is.
    config = freeze(settings_of(vocabulary, -1))
    noise = np.random.default_rng(0)
    state = jax.tree.map(
        lambda x: noise.normal(size=x.shape).astype(x.dtype), abstract_state(config)
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, state)
    # Neither momentum parameters nor two moments; they are stored compressed.
    saved = stored_bytes(tmp_path, 4) - stored_bytes(run, 4)
    assert saved == pytest.approx(3 * size, rel=0.2)
    # Both towers whole, from either checkpoint and for all uses.
    for leaf, momentum in zip(
        jax.tree.leaves(stored.params["vision"]),
        jax.tree.leaves(stored.momentum_params["vision"]),
        strict=True,
    ):
        np.testing.assert_array_equal(leaf, momentum)
    model = api.load(run, weights="momentum", step="best")
    assert model.encode_image([np.zeros((8, 8, 3), np.uint8)]).shape == (1, 16)


def test_a_run_resumes_and_its_locking_cannot_change(run, vocabulary):
    train(freeze(settings_of(vocabulary, 0, num_steps=6)), run, num_devices=1)
    records = (run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(records[-1])["step"] == 6
    message = r"config\.model\.vision\.num_trained_layers was 0 and is now 1"
    with pytest.raises(UserError, match=message):
        train(freeze(settings_of(vocabulary, 1)), run, num_devices=1)


def test_another_locking_starts_from_a_locked_run(run, vocabulary, tmp_path):
    """Its momentum parameters are those of the run, and the shared ones once more."""
    settings = settings_of(vocabulary, -1)
    settings["model"] = {"start_from": str(run), "vision": {"image_size": 32}}
    config = starting.complete(freeze(settings), tmp_path)
    assert config.model.vision.num_trained_layers == -1
    origin = read_stored(run, for_training=True)
    params, momentum_params = tasks.load_origin(config)
    jax.tree.map(np.testing.assert_array_equal, params, origin.params)
    jax.tree.map(np.testing.assert_array_equal, momentum_params, origin.momentum_params)


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="num_trained_layers=3 is above config"):
        locking(3, -1)
    with pytest.raises(UserError, match="must be at least -1"):
        locking(-2, -1)
    with pytest.raises(UserError, match="no meaning for the run of an editor"):
        locking(-1, 0, task="editor")


def test_locked_layers_have_no_dropout():
    """Cross-attention trains, and keeps it."""
    config = locking(-1, 1, model={"text": {"dropout_rate": 0.5}})
    other = dataclasses.replace(config.model.text, num_trained_layers=-1)
    assert other.num_locked_layers == 0 and not other.has_locked
    model = nnx.eval_shape(
        lambda: ViLEM(config.model, config.compute, rngs=nnx.Rngs(0))
    )
    first, last = model.text.layers
    assert model.text.embedding.dropout_rate == 0.0
    assert first.dropout_rate == first.attention.dropout_rate == 0.0
    assert first.cross_attention.dropout_rate == 0.5
    assert last.dropout_rate == last.attention.dropout_rate == 0.5
    assert is_locked(("text", "layers", 0, "norm", "scale"), config.model)
