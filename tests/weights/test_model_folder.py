"""Model folders: whole, bit for bit, and refused where they are not what they say."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from flax.nnx.traversals import unflatten_mapping

from tests.tiny import tiny_config
from vilem_jax.config.freeze import to_dict
from vilem_jax.config.schema import DataConfig, EditorConfig
from vilem_jax.config.sources import JsonConfig, TfdsConfig
from vilem_jax.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from vilem_jax.errors import UserError
from vilem_jax.weights import model_folder, tables
from vilem_jax.weights.model_folder import (
    is_model_folder,
    read_model_folder,
    without_paths,
    write_model_folder,
)

WORDS = ["a", "red", "blue", "dog", "cat", "on", "sofa", "##s", "##y", ",", "the"]


def write_vocabulary(folder, words=WORDS):
    folder.mkdir()
    text = "".join(f"{piece}\n" for piece in [*SPECIAL_TOKENS, *words])
    (folder / "vocab.txt").write_text(text)
    return Tokenizer(folder)


def random_tree(config, seed):
    rng = np.random.default_rng(seed)
    flat = {}
    for path, leaf in tables.leaves(model_folder.model_tree(config.model)):
        values = rng.standard_normal(leaf.shape).astype(np.float32)
        # Not in C order, as arrays from a device or a transposition may be.
        flat[path] = np.asarray(values, order="F")
    return unflatten_mapping(flat)


def assert_same_bits(found, expected):
    found, expected = (dict(tables.leaves(tree)) for tree in (found, expected))
    assert set(found) == set(expected) and found
    for path, leaf in expected.items():
        assert found[path].dtype == np.float32 and found[path].shape == leaf.shape
        assert found[path].tobytes("C") == np.asarray(leaf).tobytes("C"), path


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Config, parameters, momentum parameters, queues and tokenizer of a tiny model."""
    tokenizer = write_vocabulary(tmp_path_factory.mktemp("words") / "vocabulary")
    config = tiny_config(model={"text": {"vocab_size": len(tokenizer.pieces)}})
    keys = np.random.default_rng(3).standard_normal((2, 7, 16)).astype(np.float32)
    queues = {"image_queue": keys[0], "text_queue": keys[1]}
    return config, random_tree(config, 0), random_tree(config, 1), queues, tokenizer


@pytest.fixture
def folder(parts, tmp_path):
    config, params, _, _, tokenizer = parts
    write_model_folder(tmp_path / "model", config, params, tokenizer)
    return tmp_path / "model"


def test_a_folder_comes_back_bit_for_bit(parts, tmp_path):
    config, params, momentum, queues, tokenizer = parts
    write_model_folder(
        tmp_path / "model",
        config,
        params,
        tokenizer,
        momentum_params=momentum,
        queues=queues,
        card="# A model\n",
    )
    assert is_model_folder(tmp_path / "model")
    stored = read_model_folder(str(tmp_path / "model"))
    assert stored.config == config
    assert_same_bits(stored.params, params)
    assert_same_bits(stored.momentum_params, momentum)
    assert_same_bits(stored.queues, queues)
    assert Tokenizer(stored.tokenizer_folder).pieces == tokenizer.pieces
    assert (tmp_path / "model" / "README.md").read_text() == "# A model\n"
    # Written again from what was read: the same files, byte for byte.
    write_model_folder(
        tmp_path / "again",
        stored.config,
        stored.params,
        Tokenizer(stored.tokenizer_folder),
        momentum_params=stored.momentum_params,
        queues=stored.queues,
        card="# A model\n",
    )
    files = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert len(files) == 8  # the listing of checksums among them
    for name in files:
        first, second = (tmp_path / part / name for part in ("model", "again"))
        assert first.read_bytes() == second.read_bytes(), name


def test_a_model_without_heads_of_its_own_for_both_branches(parts, tmp_path):
    config, *_, tokenizer = parts
    model = replace(config.model, heads="shared")
    config = replace(config, model=model)
    params = random_tree(config, 0)
    assert "global_head" not in params
    write_model_folder(tmp_path / "model", config, params, tokenizer)
    stored = read_model_folder(tmp_path / "model")
    assert_same_bits(stored.params, params)
    assert stored.momentum_params is None and stored.queues == {}


def test_a_second_export_replaces_the_first(parts, folder):
    config, _, momentum, queues, tokenizer = parts
    write_model_folder(folder, config, momentum, tokenizer, queues=queues)
    assert_same_bits(read_model_folder(folder).params, momentum)
    write_model_folder(folder, config, momentum, tokenizer)
    assert read_model_folder(folder).queues == {}  # nothing of the one before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["README.md", "notes.txt", "config.json"])
def test_what_is_in_the_way_stays(parts, tmp_path, name):
    """Also a file of a name that we write, where no weights of ours are beside it."""
    config, params, _, _, tokenizer = parts
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {name}.*name another folder"):
        write_model_folder(tmp_path / "mine", config, params, tokenizer)
    assert (tmp_path / "mine" / name).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        write_model_folder(tmp_path / "file", config, params, tokenizer)


def test_a_failure_leaves_the_folder_before(parts, folder, monkeypatch):
    config, params, momentum, _, tokenizer = parts

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vilem_jax.data.tokenizer.Tokenizer.save", full)
    with pytest.raises(UserError, match=r"cannot write .*no space left"):
        write_model_folder(folder, config, momentum, tokenizer)
    monkeypatch.undo()
    assert_same_bits(read_model_folder(folder).params, params)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_parts_that_do_not_belong_together(parts, tmp_path):
    config, params, _, queues, _ = parts
    other = write_vocabulary(tmp_path / "words", WORDS[:-1])
    with pytest.raises(UserError, match="15 tokens, but the text tower 16"):
        write_model_folder(tmp_path / "model", config, params, other)
    tokenizer = parts[-1]
    with pytest.raises(ValueError, match="not the tree"):
        less = {key: leaf for key, leaf in params.items() if key != "temperature"}
        write_model_folder(tmp_path / "model", config, less, tokenizer)
    with pytest.raises(ValueError, match="queues must be both"):
        one = {"image_queue": queues["image_queue"]}
        write_model_folder(tmp_path / "model", config, params, tokenizer, queues=one)
    assert not (tmp_path / "model").exists()


def edit_settings(folder, change):
    settings = json.loads((folder / "config.json").read_text())
    change(settings)
    (folder / "config.json").write_text(json.dumps(settings))


def cut(name):
    def change(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


def other_words(*words):
    def change(folder):
        shutil.rmtree(folder.parent / "words", ignore_errors=True)
        write_vocabulary(folder.parent / "words", words).save(folder)

    return change


def without(name):
    def change(folder):
        tensors = safetensors.numpy.load_file(folder / "model.safetensors")
        del tensors[name]
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")

    return change


def one_more(folder):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["text.pooler.kernel"] = np.zeros((2, 2), np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def settings_of(**settings):
    return lambda folder: (folder / "config.json").write_text(json.dumps(settings))


def wider(settings):
    settings["model"]["embedding_width"] = 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut("model.safetensors"), r"model\.safetensors cannot be read: it is cut"),
        (lambda f: (f / "model.safetensors").unlink(), r"no model\.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "cannot be read"),
        (cut("config.json"), r"config\.json is not JSON"),
        (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
        (settings_of(model_type="bert"), "is a bert of Hugging Face's layout"),
        (settings_of(hidden_size=3), "is not a ViLEM's settings: it has no 'task'"),
        (
            settings_of(format_version=1, **to_dict(tiny_config(task="editor"))),
            "belongs to an editor",
        ),
        (
            lambda f: edit_settings(f, lambda s: s.update(format_version=2)),
            "model has format_version 2, but this release reads format_version 1: "
            r"write it again with .*, or use the release that wrote it",
        ),
        (
            lambda f: edit_settings(f, lambda s: s.pop("format_version")),
            "model has no format_version, but this release reads format_version 1",
        ),
        (lambda f: edit_settings(f, lambda s: s.update(x=1)), "config.x is not a"),
        (lambda f: edit_settings(f, wider), r"is \[16\], but .* needs \[8\]"),
        (lambda f: (f / "vocab.txt").unlink(), r"no vocab\.txt"),
        (other_words(*WORDS[:-1]), "has 15 tokens, but the text tower 16"),
        (other_words(*WORDS[::-1]), "not the vocabulary that the weights"),
        (without("local_head.detect.bias"), r"lacks local_head\.detect\.bias"),
        (one_more, r"holds text\.pooler\.kernel, which this model has no place for"),
    ],
)
def test_changed_folders_are_refused(folder, change, words):
    change(folder)
    with pytest.raises(UserError, match=words) as caught:
        read_model_folder(folder)
    assert "\n" not in str(caught.value)


def test_corrupt_files_beside_the_weights(parts, tmp_path):
    config, params, momentum, queues, tokenizer = parts
    folder = tmp_path / "model"
    for name in ("momentum.safetensors", "queues.safetensors"):
        write_model_folder(
            folder, config, params, tokenizer, momentum_params=momentum, queues=queues
        )
        cut(name)(folder)
        with pytest.raises(UserError, match=f"{name} cannot be read: it is cut short"):
            read_model_folder(folder)
    write_model_folder(folder, config, params, tokenizer)
    safetensors.numpy.save_file({"x": np.zeros(1)}, folder / "queues.safetensors")
    with pytest.raises(UserError, match="must hold image_queue and text_queue"):
        read_model_folder(folder)


def test_what_a_model_folder_is(folder, tmp_path):
    assert is_model_folder(folder) and is_model_folder(str(folder))
    assert not is_model_folder(tmp_path / "nothing")
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert not is_model_folder(folder)
    with pytest.raises(UserError, match="there is no folder"):
        read_model_folder(tmp_path / "nothing")


def test_paths_of_this_machine_go(parts):
    config = parts[0]
    sources = (
        JsonConfig(name="a", path="/home/me/a.json", images="/mnt/a"),
        TfdsConfig(name="b", path="coco_captions/2014", images="/mnt/b"),
    )
    data = DataConfig(train=sources, validation=sources[1:], tokenizer="/home/me/bert")
    editor = EditorConfig(path="/home/me/editor", sha256="ab", edit_table="/x/e.npz")
    text = replace(config.model.text, start_from="/home/me/bert")
    vision = replace(config.model.vision, start_from="/home/me/deit")
    config = replace(
        config,
        data=data,
        editor=editor,
        model=replace(config.model, text=text, vision=vision),
    )
    plain = json.dumps(to_dict(without_paths(config)))
    assert not any(part in plain for part in ("/home", "/mnt", "/x"))
    kept = without_paths(config)
    assert [source.path for source in kept.data.train] == ["a.json", sources[1].path]
    assert kept.editor.sha256 == "ab" and kept.loss == config.loss
    assert kept.model.text.width == config.model.text.width
