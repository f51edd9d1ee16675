"""An edit table: equal to the editor's edits, also after an interruption."""

import dataclasses
import json
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.tiny_runs import HELD_OUT, SCENES, assert_same_run, run_settings
from vilem_jax.cli.main import main
from vilem_jax.config.freeze import freeze
from vilem_jax.data.batches import open_corpus
from vilem_jax.data.edit_table import StoredEditTable
from vilem_jax.distributed.mesh import Layout, make_mesh
from vilem_jax.editing.loading import load_editor, open_edits
from vilem_jax.errors import UserError
from vilem_jax.keys import Purpose, fold_in, sample_keys
from vilem_jax.runs.trained_model import open_tokenizer
from vilem_jax.runs.workdir import claim_workdir, read_config
from vilem_jax.training import edit_corpus, starting, tasks
from vilem_jax.training.run import train
from vilem_jax.training.step import make_edit

VARIANTS = 2


@pytest.fixture(scope="module")
def settings(editor_folder):
    """Of a run with its editor, not frozen yet."""
    settings = run_settings("vilem", editor_folder, editor={"max_edits": 4})
    return {**settings, "train": {"batch_size": 16, "num_steps": 9}}


@pytest.fixture(scope="module")
def prepared(settings, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("edits") / "new" / "edits.safetensors")
    edit_corpus.edit_corpus(freeze(settings), path, num_variants=VARIANTS)
    return path


@pytest.fixture(scope="module")
def offline(settings, prepared):
    """Of a run with these edits and no editor."""
    return changed(settings, editor={"edit_table": prepared, "path": ""})


@pytest.fixture(scope="module")
def whole(offline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(freeze(offline), folder, num_devices=1)
    return folder


def changed(settings, **sections):
    merged = {name: {**settings.get(name, {}), **s} for name, s in sections.items()}
    return {**settings, **merged}


def dry(settings, folder):
    return train(freeze(settings), folder / "run", num_devices=1, dry_run=True)


def test_variant_equals_the_editors_edits_of_its_step(settings, prepared, tmp_path):
    """Every pair: the same tokens to the same losses, as `update` sees nothing else."""
    config = starting.complete(freeze(settings), tmp_path)
    tokenizer = open_tokenizer(config, tmp_path)
    graph, editor = load_editor(config, tokenizer)
    offline = dataclasses.replace(
        config, editor=dataclasses.replace(config.editor, edit_table=prepared)
    )
    corpus = open_corpus(config.data)
    captions = list(corpus.captions())
    numbers = np.arange(len(captions), dtype=np.int32)
    batch = {
        "tokens": jnp.asarray(tokenizer.encode(captions, config.data.text_length)),
        "sample_id": numbers,
    }
    seeded = dataclasses.replace(offline, seed=1)  # the file serves any seed
    edits = open_edits(seeded, corpus, tokenizer)
    assert edits.about["pairs"] == len(captions) and edits.num_variants == VARIANTS
    made = []
    for variant in range(VARIANTS):
        keys = sample_keys(jax.random.key(config.seed), variant, numbers)
        keys = fold_in(keys, int(Purpose.EDIT))
        expected = jax.jit(make_edit(config, graph))(editor, batch, keys)
        rows = edits.rows(numbers, [variant] * len(numbers))
        found = make_edit(offline, None)(None, batch | rows, keys)
        for name, ours, theirs in zip(found._fields, found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
        assert found.is_edit.any(axis=1).all()
        made.append(np.asarray(found.tokens))
    assert (made[0] != made[1]).any(axis=1).mean() > 0.5


@pytest.mark.slow
def test_edit_table_gives_the_losses_of_the_editor(settings, tmp_path):
    """With one variant: the first step of a run with the editor, to the bit."""
    path = str(tmp_path / "one.safetensors")
    edit_corpus.edit_corpus(freeze(settings), path, num_variants=1)
    expected = dry(settings, tmp_path)
    offline = changed(settings, editor={"edit_table": path, "path": ""})
    assert dry(offline, tmp_path) == expected
    for name in ("loss_local_detect", "loss_global_correct", "edits_per_caption"):
        assert expected[name] > 0
    assert not (tmp_path / "run").exists()


def test_resumed_run_equals_an_uninterrupted_one(offline, whole, tmp_path):
    def stop_at_6(step, record):
        if step == 6:
            signal.raise_signal(signal.SIGTERM)

    train(freeze(offline), tmp_path, num_devices=1, hooks=[stop_at_6])
    train(freeze(changed(offline, data={"prefetch": 5})), tmp_path, num_devices=1)
    assert_same_run(tmp_path, whole)
    stored = read_config(whole).editor
    edits = StoredEditTable(stored.edit_table)
    assert stored.sha256 == edits.made_by and stored.edit_table_sha256 == edits.sha256()


def test_validation_has_proofreading_if_there_is_an_editor(
    offline, editor_folder, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(tasks, "make_edits", lambda *given, **_: asked.append(given))
    layout = Layout(make_mesh(1))
    for path, number in (("", 0), (str(editor_folder), 1)):
        named = changed(
            offline,
            data={"validation": {"held_out": HELD_OUT}},
            editor={"path": path},
            evaluation={"edit_rate": 0.4},
        )
        config = starting.complete(freeze(named), tmp_path)
        tokenizer = open_tokenizer(config, tmp_path)
        tasks.make_task(config, layout, tokenizer, lambda step: 0.0, tmp_path)
        assert len(asked) == number
    (given,) = asked
    assert config in given


def refused(settings, workdir, capsys) -> str:
    """The line that `vilem train` says before it ends with code 2."""
    file = workdir.parent / "config.py"
    text = json.dumps(json.dumps(settings))
    file.write_text(
        f"import json\n\n\ndef get_config():\n    return json.loads({text})\n"
    )
    capsys.readouterr()
    assert main(["train", f"--config={file}", f"--workdir={workdir}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("vilem: ") and said.count("\n") == 1, said
    return said


def test_edits_of_another_run_are_refused(offline, prepared, tmp_path, capsys):
    workdir = tmp_path / "run"
    for section, values, sentence in (
        ("data", {"text_length": 12}, "config.data.text_length was 16 and is now 12"),
        ("data", {"train": {"scenes": SCENES | {"seed": 1}}}, "other captions"),
        ("data", {"train": {"scenes": SCENES | {"num_images": 70}}}, "has 350"),
        ("data", {"keeps_sep": False}, "config.data.keeps_sep was True"),
        ("editor", {"sampling": "uniform"}, "config.editor.sampling was 'likely'"),
        ("editor", {"edit_table": str(tmp_path / "gone")}, "there is no file"),
        ("editor", {"sha256": "abc"}, "config.editor names another, abc"),
        (
            "editor",
            {"edit_table_sha256": "abc"},
            "config.editor.edit_table_sha256 is abc",
        ),
    ):
        said = refused(changed(offline, **{section: values}), workdir, capsys)
        assert sentence in said
        assert not workdir.exists()
    (tmp_path / "half").write_bytes(Path(prepared).read_bytes()[:-1])
    half = changed(offline, editor={"edit_table": str(tmp_path / "half")})
    assert "is not a complete file of" in refused(half, workdir, capsys)


def test_run_keeps_its_edit_table(offline, settings, prepared, tmp_path, capsys):
    """The same name, other edits: not the run that began."""
    path = tmp_path / "edits.safetensors"
    path.write_bytes(Path(prepared).read_bytes())
    mine = changed(offline, editor={"edit_table": str(path)})
    workdir = tmp_path / "run"
    claim_workdir(workdir, starting.complete(freeze(mine), workdir))
    seeded = freeze({**settings, "seed": 3})
    edit_corpus.edit_corpus(seeded, str(path), num_variants=VARIANTS)
    said = refused(mine, workdir, capsys)
    assert "config.editor.edit_table_sha256 was" in said


def test_interruption_leaves_the_old_file(settings, tmp_path, monkeypatch):
    make = edit_corpus._make_edit

    def stopped(*arguments):
        edit = make(*arguments)

        def once(tokens, start, variant):
            if variant:
                raise KeyboardInterrupt
            return edit(tokens, start, variant)

        return once

    monkeypatch.setattr(edit_corpus, "_make_edit", stopped)
    path = tmp_path / "edits"
    for before in (None, b"older edits"):
        if before:
            path.write_bytes(before)
        with pytest.raises(KeyboardInterrupt):
            edit_corpus.edit_corpus(freeze(settings), str(path), num_variants=2)
        left = [file.read_bytes() for file in tmp_path.iterdir()]
        assert left == ([before] if before else [])


def test_unwritable_file_is_refused_before_editing(settings, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("edited in vain")

    monkeypatch.setattr(edit_corpus.EditTable, "empty", never)
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "edits"):
        with pytest.raises(UserError, match="cannot write"):
            edit_corpus.edit_corpus(freeze(settings), str(path), num_variants=1)


def test_command_writes_the_edit_table(settings, tmp_path, capsys):
    file, out = tmp_path / "config.py", tmp_path / "edits.safetensors"
    text = json.dumps(json.dumps(settings))
    file.write_text(
        f"import json\n\n\ndef get_config():\n    return json.loads({text})\n"
    )
    arguments = ["data", "edit", f"--config={file}", f"--out={out}"]
    assert main([*arguments, "--variants=1", "--config.seed=7"]) == 0
    assert "300 pairs, 1 edits of each" in capsys.readouterr().out
    assert StoredEditTable(str(out)).about["seed"] == 7
    page = tmp_path / "batch.html"
    shows = [f"--config={file}", "--config.editor.path=", f"--out={page}"]
    shows += [f"--config.editor.edit_table={out}", "--num-pairs=4"]
    assert main(["data", "show", *shows]) == 0
    assert page.read_text().count("<mark") >= 4
    assert main([*arguments, "--config.editor.path="]) == 2
    assert "config.editor.path is empty" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--variants=0"])
