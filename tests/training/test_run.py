"""Whole runs: their files, and that they repeat, stop, resume, and report errors."""

import dataclasses
import json
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.training.tiny_runs import (
    HELD_OUT,
    NUM_STEPS,
    assert_same_run,
    run_settings,
    stored_state,
    write_vocabulary,
)
from vilem_jax.config.freeze import freeze
from vilem_jax.distributed.mesh import make_layout
from vilem_jax.errors import UserError
from vilem_jax.runs.checkpoints import Checkpoints
from vilem_jax.runs.metrics import read_records
from vilem_jax.runs.workdir import read_config
from vilem_jax.training import run as program
from vilem_jax.training.run import train
from vilem_jax.training.state import State


@pytest.fixture(scope="session")
def settings(editor_folder):
    """Of a run with validation, not frozen yet."""
    settings = run_settings("vilem", editor_folder)
    data = {**settings["data"], "validation": {"held_out": HELD_OUT}}
    return {**settings, "data": data}


@pytest.fixture(scope="session")
def whole(settings, tmp_path_factory):
    """(work directory, metrics) of the unbroken run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, train(freeze(settings), folder, num_devices=1)


def changed(settings, **sections):
    merged = {name: {**settings.get(name, {}), **s} for name, s in sections.items()}
    return freeze({**settings, **merged})


def test_run_of_an_editor_writes_a_hugging_face_folder(editor_run):
    workdir, metrics = editor_run
    names = {path.name for path in (workdir / "editor").iterdir()}
    assert {"config.json", "model.safetensors", "vocab.txt"} <= names
    assert metrics == {}  # it had no validation
    records = read_records(workdir / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, NUM_STEPS + 1))
    assert records[-1]["loss"] < records[0]["loss"]
    assert {"masked_top1", "grad_norm", "learning_rate"} <= set(records[0])


def test_run_writes_metrics_settings_and_checkpoints(whole, settings):
    workdir, metrics = whole
    records = read_records(workdir / "metrics.jsonl")
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, NUM_STEPS + 1))
    losses = {
        f"loss_{branch}_{task}"
        for branch in ("local", "global")
        for task in ("detect", "correct")
    }
    assert set(steps[0]) >= losses | {
        "loss",
        "loss_i2t",
        "loss_t2i",
        "local_detect_f1",
        "global_correct_top1",
        "edits_per_caption",
        "temperature",
        "queue_fill",
        "grad_norm",
        "param_norm",
        "embedding_std",
        "learning_rate",
        "skipped_total",
        "corrupt_images",
    }
    timing = read_records(workdir / "timing.jsonl")
    assert timing[0]["pairs_per_second"] > 0 and 0 <= timing[0]["input_wait"] <= 1
    config = read_config(workdir)
    assert config.model.text.width == 32  # from the folder that the tower started from
    assert len(config.editor.sha256) == 64
    assert (workdir / "tokenizer" / "vocab.txt").is_file()
    state, step = stored_state(workdir)
    assert step == NUM_STEPS and state[".queue_count"] == 20

    held_out = metrics["held_out"]
    assert 0 <= held_out["t2i"]["r1"] <= held_out["t2i"]["r10"] <= 100
    assert held_out["images"] == HELD_OUT["num_images"]
    assert "proofread" in held_out
    last = records[-1]
    assert last["step"] == NUM_STEPS
    assert last["validation/held_out/i2t/r1"] == held_out["i2t"]["r1"]


def test_tower_and_heads_start_from_the_editor(editor_folder, settings, tmp_path):
    from safetensors.numpy import load_file

    config = program.starting.complete(freeze(settings), tmp_path)
    tokenizer = program.open_tokenizer(config, tmp_path)
    layout = make_layout(config.compute, 1)
    task = program.make_task(config, layout, tokenizer, lambda step: 0.0, tmp_path)
    params, _ = task.load_weights(task.init_params(program.jax.random.key(0)))
    stored = load_file(editor_folder / "model.safetensors")
    words = next(v for n, v in stored.items() if n.endswith("word_embeddings.weight"))
    np.testing.assert_array_equal(params["text"]["embedding"]["words"], words)
    bias = next(v for n, v in stored.items() if n.endswith("predictions.bias"))
    for head in ("local_head", "global_head"):
        np.testing.assert_array_equal(params[head]["correct_bias"], bias)


def test_same_seed_gives_the_same_run(whole, settings, tmp_path):
    train(freeze(settings), tmp_path, num_devices=1)
    assert_same_run(tmp_path, whole[0])


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_saves_and_the_same_command_resumes(whole, settings, tmp_path, number):
    def stop_at_7(step, record):
        if step == 7:
            signal.raise_signal(number)

    config = freeze(settings)
    assert train(config, tmp_path, num_devices=1, hooks=[stop_at_7]) == {}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps()[-1] == 7
    assert read_records(tmp_path / "metrics.jsonl")[-1]["step"] == 7
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    more_readers = changed(settings, data={**settings["data"], "prefetch": 5})
    metrics = train(more_readers, tmp_path, num_devices=1)
    assert metrics == whole[1]
    assert_same_run(tmp_path, whole[0])


@pytest.mark.slow
def test_run_resumes_on_another_number_of_devices(whole, settings, tmp_path):
    """R6: the state as it was, and the next losses within 1e-5."""
    stop = [lambda step, record: step == 7 and signal.raise_signal(signal.SIGTERM)]
    train(freeze(settings), tmp_path, num_devices=1, hooks=stop)
    before, _ = stored_state(tmp_path)
    metrics = train(freeze(settings), tmp_path, num_devices=8)
    assert before[".step"] == 7
    expected = read_records(whole[0] / "metrics.jsonl")
    found = read_records(tmp_path / "metrics.jsonl")
    assert found[:7] == expected[:7]
    for ours, theirs in zip(found[7:NUM_STEPS], expected[7:NUM_STEPS], strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
    assert set(metrics["held_out"]) == set(whole[1]["held_out"])


def test_run_stops_after_its_hours(settings, tmp_path):
    assert train(freeze(settings), tmp_path, num_devices=1, max_hours=1e-9) == {}
    assert stored_state(tmp_path)[1] == 1


def test_finished_run_says_so_and_is_unchanged(whole, settings, monkeypatch, capsys):
    workdir, metrics = whole
    before = (workdir / "metrics.jsonl").read_bytes(), stored_state(workdir)[0]
    monkeypatch.setattr(program, "make_task", None)  # nothing is loaded or compiled
    again = train(freeze(settings), workdir, num_devices=1, at_end=lambda: print("end"))
    assert again == metrics and capsys.readouterr() == (
        "end\n",
        f"vilem: {workdir} is finished: all of its {NUM_STEPS} steps are done\n",
    )
    assert (workdir / "metrics.jsonl").read_bytes() == before[0]
    after = stored_state(workdir)[0]
    assert all(after[n].tobytes() == v.tobytes() for n, v in before[1].items())


def test_dry_run_writes_nothing(settings, tmp_path):
    workdir = tmp_path / "run"
    metrics = train(freeze(settings), workdir, num_devices=1, dry_run=True)
    assert np.isfinite(metrics["loss"]) and not workdir.exists()


class CountingTask:
    """A task whose parameter counts the steps; `skipped` are those not finite."""

    frozen = ()

    def __init__(self, skipped=(), image_size=0):
        self.skipped, self.image_size = jnp.asarray([0, *skipped]), image_size

    def init_params(self, key):
        return {"number": jnp.zeros((), jnp.int32)}

    def load_weights(self, params):
        return (params,)

    def init_state(self, params):
        zero = jnp.zeros((), jnp.int32)
        return State(zero, params, (), zero, zero)

    def step(self, state, frozen, batch, key):
        number = state.params["number"] + 1
        in_a_row = state.skipped_in_a_row + 1
        in_a_row = jnp.where(jnp.isin(number, self.skipped), in_a_row, 0)
        metrics = {"loss": jnp.ones(()), "skipped_in_a_row": in_a_row}
        metrics["corrupt_images"] = batch["is_corrupt"].sum()
        state = dataclasses.replace(
            state, params={"number": number}, skipped_in_a_row=in_a_row
        )
        return state, metrics

    def evaluate(self, state):
        return {}

    def finish(self, state):
        pass


@pytest.mark.parametrize(
    "skipped, last_skipped, stops_at",
    [
        ({3, 4, 6, 7}, None, NUM_STEPS),
        ({5, 6, 7}, 7, 8),
        ({NUM_STEPS - 2, NUM_STEPS - 1, NUM_STEPS}, NUM_STEPS, NUM_STEPS),
    ],
)
def test_three_skipped_steps_in_a_row_stop_the_run(
    settings, tmp_path, monkeypatch, capsys, skipped, last_skipped, stops_at
):
    monkeypatch.setattr(program, "make_task", lambda *_: CountingTask(skipped))
    if last_skipped is None:
        train(freeze(settings), tmp_path, num_devices=1)
        assert capsys.readouterr().err.count("was skipped") == len(skipped)
    else:
        with pytest.raises(
            UserError, match=f"3 steps in a row up to step {last_skipped}"
        ):
            train(freeze(settings), tmp_path, num_devices=1)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps()[-1] == stops_at


def test_corrupt_images_are_counted_in_the_log(settings, tmp_path, monkeypatch):
    """The next image replaces a corrupt one; the log counts them."""
    Image.new("RGB", (20, 20), "red").save(tmp_path / "good.png")
    (tmp_path / "corrupt.png").write_bytes(b"no image")
    captions = ["a red dog"] * 16
    pairs = [{"image": f"{n}.png", "caption": captions} for n in ("good", "corrupt")]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    task = CountingTask(image_size=16)
    monkeypatch.setattr(program, "make_task", lambda *_: task)
    data = {
        "train": {"pairs": {"path": str(tmp_path / "pairs.json")}},
        "validation": {},
        "max_corrupt_fraction": 0.6,
    }
    train(changed(settings, data=data), tmp_path / "run", num_devices=1)
    log = read_records(tmp_path / "run" / "timing.jsonl")
    batch = settings["train"]["batch_size"]
    assert log[-1]["corrupt_images_since_start"] == NUM_STEPS * batch / 2


def test_too_many_corrupt_images_stop_the_run():
    data, train = {"max_corrupt_fraction": 0.01}, {"batch_size": 100}
    watch = program._Monitor(freeze({"data": data, "train": train}))

    def corrupt(count):
        """Metrics of a step; judged by the next call."""
        return {"skipped_in_a_row": jnp.zeros(()), "corrupt_images": jnp.asarray(count)}

    for step in range(20):
        assert watch.trouble_before(step, corrupt(1)) is None  # 1 %
    assert watch.trouble_before(20, corrupt(2)) is None
    trouble = watch.trouble_before(21, corrupt(0))
    assert trouble.startswith("22 of 2100 ") and "max_corrupt_fraction=0.01" in trouble
    few = program._Monitor(freeze({"train": train}))
    few.trouble_before(0, corrupt(10))
    assert few.trouble_before(1, {}) is None  # in the first batch: no fraction yet


def refused(config, workdir, *words, **settings):
    with pytest.raises(UserError) as error:
        train(config, workdir, **{"num_devices": 1, **settings})
    sentence = str(error.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


def test_work_directory_of_another_config_is_refused(whole, settings):
    before = sorted(whole[0].rglob("*"))
    other = changed(settings, loss={"queue_length": 32})
    refused(other, whole[0], "config.loss.queue_length was 20 and is now 32")
    assert sorted(whole[0].rglob("*")) == before


def test_another_editor_is_refused(whole, settings, editor_folder, tmp_path):
    from safetensors.numpy import load_file, save_file

    for path in editor_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, tmp_path / "model.safetensors")
    sha256 = read_config(whole[0]).editor.sha256
    swapped = changed(settings, editor={"path": str(tmp_path), "sha256": sha256})
    refused(swapped, tmp_path / "new", str(tmp_path), sha256)
    elsewhere = changed(settings, editor={"path": str(tmp_path)})
    refused(elsewhere, whole[0], "config.editor")
    assert not (tmp_path / "new").exists()


def test_missing_editor_is_refused(settings, tmp_path):
    config = changed(settings, editor={"path": ""})
    refused(config, tmp_path / "run", "config.editor.path", "--config=editor")
    gone = changed(settings, editor={"path": str(tmp_path / "gone")})
    refused(gone, tmp_path / "run", str(tmp_path / "gone"))
    assert not (tmp_path / "run").exists()


def test_batch_that_does_not_divide_is_refused(settings, tmp_path):
    config = changed(settings, train={"batch_size": 18}, loss={"queue_length": 40})
    refused(config, tmp_path / "run", "batch_size=18", "8 devices", num_devices=8)
    assert not (tmp_path / "run").exists()


def test_tokenizer_of_another_vocabulary_is_refused(settings, tmp_path):
    folder = write_vocabulary(tmp_path / "small")
    lines = (folder / "vocab.txt").read_text().splitlines()
    (folder / "vocab.txt").write_text("\n".join(lines[:-1]) + "\n")
    fewer = changed(settings, data={**settings["data"], "tokenizer": str(folder)})
    refused(fewer, tmp_path / "run", str(folder), f"has {len(lines) - 1} tokens")
    (folder / "vocab.txt").write_text("\n".join([*lines[:-2], *lines[:-3:-1]]) + "\n")
    refused(fewer, tmp_path / "run", "vocab.txt", "another order")


def test_run_without_data_is_refused(settings, tmp_path):
    config = changed(settings, data={**settings["data"], "train": {}})
    refused(config, tmp_path / "run", "config.data.train")


def test_editor_with_too_few_positions_is_refused(settings, tmp_path):
    text = settings["model"]["vision"] | {"vocab_size": 200, "max_positions": 40}
    text = {k: v for k, v in text.items() if k not in ("image_size", "patch_size")}
    config = changed(settings, model={"text": text}, evaluation={"text_length": 30})
    refused(config, tmp_path / "run", "has 24 positions", "30 tokens")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["validation", "test"])
def test_missing_validation_images_are_refused(settings, tmp_path, part):
    """Reported before the run, not after hours of it."""
    file = tmp_path / "held_out.json"
    names = ("here.png", "gone.png")
    file.write_text(
        json.dumps([{"image": name, "caption": ["a red circle"]} for name in names])
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "here.png")
    data = {**settings["data"], part: {"mine": {"path": str(file)}}}
    wanted = f"1 of 2 images of config.data.{part}.mine are missing, the first is"
    refused(changed(settings, data=data), tmp_path / "run", wanted, "gone.png")
    assert not (tmp_path / "run").exists()


def test_validation_with_one_image_has_no_shuffled_metrics(settings, tmp_path):
    """There is no other to exchange it for, and nothing else is missing."""
    evaluation = {"num_proofread_images": 1, "every_steps": 1}
    train_one, optimizer = {"num_steps": 1}, {"warmup_steps": 0}
    config = changed(
        settings, evaluation=evaluation, train=train_one, optimizer=optimizer
    )
    metrics = train(config, tmp_path / "run", num_devices=1)
    proofread = metrics["held_out"]["proofread"]
    assert set(proofread["local"]) == {"detect", "correct"}
    assert "shuffled" not in proofread


def test_attention_kernel_without_its_device_is_refused(settings, tmp_path):
    compute = {"attention": "cudnn", "dtype": "bfloat16"}
    config = changed(settings, compute=compute)
    refused(config, tmp_path / "run", "attention='cudnn'", "'cpu'", "'xla'")


def test_records_hold_every_bit(whole):
    """JSON's floats read back to the same float32."""
    text = (whole[0] / "metrics.jsonl").read_text().splitlines()
    record = json.loads(text[0])
    assert np.float32(record["loss"]) == record["loss"]
