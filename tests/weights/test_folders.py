"""Folders of weights: what is read, what is refused and with which words."""

import hashlib
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from vilem_jax.config.schema import ComputeConfig, TextConfig, VisionConfig
from vilem_jax.errors import UserError
from vilem_jax.models.editor import MaskedLanguageModel
from vilem_jax.models.vision import VisionTower
from vilem_jax.weights import folders, starts, tables
from vilem_jax.weights.folders import read_folder, sha256
from vilem_jax.weights.formats.huggingface_bert import (
    load_masked_language_model,
    load_text,
    read_text_config,
    save_masked_language_model,
)
from vilem_jax.weights.formats.huggingface_vit import (
    load_vision,
    read_vision_config,
    save_vision,
)

SMALL = TextConfig(
    vocab_size=7,
    width=4,
    num_layers=1,
    num_heads=2,
    mlp_width=6,
    max_positions=5,
    layer_norm_eps=1e-6,
    activation="gelu_tanh",
)


def random_like(build, seed=0):
    tree = nnx.to_pure_dict(nnx.split(nnx.eval_shape(build), nnx.Param)[1])
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), tree)


@pytest.fixture(scope="session")
def params():
    compute = ComputeConfig()
    return random_like(lambda: MaskedLanguageModel(SMALL, compute, rngs=nnx.Rngs(0)))


@pytest.fixture
def tokenizer(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("[UNK]\n[PAD]\na\nb\nc\nd\ne\n")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def folder(tmp_path, params, tokenizer):
    save_masked_language_model(tmp_path / "bert", params, SMALL, tokenizer)
    return tmp_path / "bert"


def rewrite(folder, change):
    """Applies `change` to the dict of tensors in the folder's file."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(change(tensors) or tensors, path)


def rename(old, new):
    def change(tensors):
        return {name.replace(old, new): array for name, array in tensors.items()}

    return change


def assert_same(ours, wanted):
    ours, wanted = dict(tables.leaves(ours)), dict(tables.leaves(wanted))
    assert ours.keys() == wanted.keys()
    for path, array in wanted.items():
        assert ours[path].dtype == np.float32
        np.testing.assert_array_equal(ours[path], array, err_msg=str(path))


def test_what_is_written_is_read_back(folder, params):
    names = {"config.json", "model.safetensors", "vocab.txt", "tokenizer.json"}
    names |= {"files.json"}  # checksums
    assert {path.name for path in folder.iterdir()} == names
    assert {path.name for path in folder.parent.iterdir()} == {"bert", "tokenizer"}
    assert read_folder(str(folder)) == folder
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] == 1
    base = TextConfig(dropout_rate=0.3)
    config = read_text_config(folder, base)
    assert config.dropout_rate == 0.3 and config.activation == "gelu_tanh"
    assert config.layer_norm_eps == 1e-6 and config.num_heads == 2
    assert_same(load_masked_language_model(folder, config), params)
    assert_same(load_text(folder, config), params["text"])
    head = {"transform": params["transform"], "bias": params["bias"]}
    assert_same(starts.load_text(str(folder), config)[1], head)


def test_old_spellings_and_unused_heads(folder, params):
    def change(tensors):
        words = tensors["bert.embeddings.word_embeddings.weight"]
        extra = {
            "bert.embeddings.position_ids": np.arange(5)[None],
            "bert.pooler.dense.weight": np.zeros((4, 4), np.float32),
            "cls.seq_relationship.bias": np.zeros(2, np.float32),
            "cls.predictions.decoder.weight": words,
            "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
        }
        tensors = rename("LayerNorm.weight", "LayerNorm.gamma")(tensors)
        return rename("LayerNorm.bias", "LayerNorm.beta")(tensors) | extra

    rewrite(folder, change)
    assert_same(load_masked_language_model(folder, SMALL), params)


def test_half_precision_becomes_float32(folder, params):
    for kind in (np.float16, ml_dtypes.bfloat16):
        half = jax.tree.map(lambda x, kind=kind: x.astype(kind), params)
        rewrite(folder, lambda t, kind=kind: {k: v.astype(kind) for k, v in t.items()})
        wanted = jax.tree.map(lambda x: x.astype(np.float32), half)
        ours = load_masked_language_model(folder, SMALL)
        if kind is np.float16:  # the second round starts from rounded values
            assert_same(ours, wanted)
        assert ours["bias"].dtype == np.float32


def test_several_files_with_an_index(folder, params):
    digest = sha256(folder)
    stored = folder / "model.safetensors"
    assert digest == hashlib.sha256(stored.read_bytes()).hexdigest()
    tensors = safetensors.numpy.load_file(stored)
    stored.unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[:5], names[5:])):
        file = f"model-{number}.safetensors"
        safetensors.numpy.save_file({n: tensors[n] for n in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_same(load_masked_language_model(folder, SMALL), params)
    first = sha256(folder)
    assert len(first) == 64 and first != digest
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-1\.safetensors, not in the folder"):
        load_text(folder, SMALL)
    index.write_text(json.dumps({"weight_map": {"a": "../bert/x.safetensors"}}))
    with pytest.raises(UserError, match="not in the folder"):
        load_text(folder, SMALL)
    index.write_text("[]")
    with pytest.raises(UserError, match="weight_map"):
        load_text(folder, SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("bert.encoder.layer.0.output.dense.bias"), "lacks .*output"),
        (rename("layer.0.", "layer.9."), r"lacks .* and 11 more and holds .*layer\.9"),
        (
            lambda t: t.update({"bert.extra": np.zeros(1, np.float32)}),
            "holds bert.extra, which this model has no place for",
        ),
        (
            lambda t: t.update({"embeddings.LayerNorm.bias": np.zeros(4, np.float32)}),
            "one tensor under two names",
        ),
        (
            lambda t: t.update({"cls.predictions.bias": np.zeros(8, np.float32)}),
            r"cls.predictions.bias in .*bert is \[8\], but .* needs \[7\]: a checkpoint"
            " of another shape",
        ),
        (
            lambda t: t.update({"cls.predictions.bias": np.zeros(7, np.int8)}),
            "is int8",
        ),
        (
            lambda t: t.update(
                {"cls.predictions.decoder.bias": np.ones(7, np.float32)}
            ),
            "differs from cls.predictions.bias",
        ),
        (
            lambda t: {k: v for k, v in t.items() if "predictions" not in k},
            r"no masked-language head .*`vilem train --config=editor "
            r"--config.model.text.start_from=\S*bert`",
        ),
    ],
)
def test_wrong_tensors_are_named(folder, change, message):
    def changed(tensors):
        result = change(tensors)
        return result if isinstance(result, dict) else tensors

    rewrite(folder, changed)
    with pytest.raises(UserError, match=message):
        load_masked_language_model(folder, SMALL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported; gelu, gelu_new"),
        (
            {"position_embedding_type": "relative_key"},
            "'relative_key' is not supported",
        ),
        ({"model_type": "roberta"}, "model_type is 'roberta'"),
        ({"hidden_size": "4"}, "hidden_size must be a positive int, not '4'"),
        ({"num_hidden_layers": None}, "num_hidden_layers must be"),
        ({"layer_norm_eps": 0}, "layer_norm_eps must be a positive float"),
    ],
)
def test_wrong_config_is_named(folder, settings, message):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(UserError, match=message):
        read_text_config(folder, TextConfig())


def test_corrupt_files_are_named(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        read_text_config(folder, TextConfig())
    (folder / "config.json").write_text("[1]")
    with pytest.raises(UserError, match="must hold an object, not a list"):
        read_text_config(folder, TextConfig())
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        read_text_config(folder, TextConfig())
    stored = folder / "model.safetensors"
    stored.write_bytes(stored.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        load_text(folder, SMALL)
    stored.rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only in pytorch_model\.bin.*convert it"):
        load_text(folder, SMALL)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        sha256(folder)


def test_no_folder_no_hub(tmp_path, monkeypatch):
    import huggingface_hub

    def no_network(*args, **kwargs):
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    (tmp_path / "file").touch()
    for name, message in (
        ("", "no folder of weights given"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "none", "there is no folder"),
        ("./none", "there is no folder"),
        ("someone/bert", "there is no folder someone/bert, and the Hugging Face hub "),
    ):
        with pytest.raises(UserError, match=message):
            read_folder(name)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: str(tmp_path)
    )
    assert read_folder("someone/bert") == tmp_path


def test_writing_is_one_change(folder, params, tokenizer, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    changed = jax.tree.map(lambda x: x + 1, params)

    def disk_full(*args):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(folders.safetensors.numpy, "save_file", disk_full)
        with pytest.raises(UserError, match="no space"):
            save_masked_language_model(folder, changed, SMALL, tokenizer)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert len(list(folder.parent.iterdir())) == 2  # nothing left beside it
    save_masked_language_model(folder, changed, SMALL, tokenizer)
    assert_same(load_masked_language_model(folder, SMALL), changed)
    assert len(list(folder.parent.iterdir())) == 2


def test_writing_removes_nothing_of_others(folder, params, tokenizer):
    (folder / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds notes\.txt, which .* would remove"):
        save_masked_language_model(folder, params, SMALL, tokenizer)
    (tokenizer / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"tokenizer has no vocab\.txt"):
        save_masked_language_model(folder / "new", params, SMALL, tokenizer)
    assert not (folder / "new").exists()


def test_somebody_s_folder_of_the_same_names_is_kept(folder, params, tokenizer):
    """A folder that was downloaded has our names too; one of ours is replaced."""
    settings = json.loads((folder / "config.json").read_text())
    for other in ({"written_by": None}, {"model_type": "vit"}):
        (folder / "config.json").write_text(json.dumps(settings | other))
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(UserError, match=r"holds config\.json, which .* would rem"):
            save_masked_language_model(folder, params, SMALL, tokenizer)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    (folder / "config.json").write_text(json.dumps(settings))
    save_masked_language_model(folder, params, SMALL, tokenizer)


def test_merging(params):
    cross = {"query": {"bias": np.zeros(4, np.float32)}}
    layer = {**params["text"]["layers"][0], "cross_attention": cross}
    tower = params["text"] | {"layers": {0: layer}}
    model = {"text": tower, "temperature": np.float32(0.07)}
    other = jax.tree.map(lambda x: x + 1, params["text"])
    merged = tables.merge_into(model, other, at=("text",), origin="some/folder")
    assert merged["text"]["layers"][0]["cross_attention"] == cross
    np.testing.assert_array_equal(
        merged["text"]["embedding"]["words"], params["text"]["embedding"]["words"] + 1
    )
    assert model["text"]["embedding"] is params["text"]["embedding"]  # unchanged
    other["embedding"]["positions"] = np.zeros((9, 4), np.float32)
    with pytest.raises(
        UserError,
        match=r"text.embedding.positions is \[9, 4\] in some/folder.*\[5, 4\]",
    ):
        tables.merge_into(model, other, at=("text",), origin="some/folder")
    with pytest.raises(KeyError):
        tables.merge_into(model, {"nowhere": np.zeros(1)}, at=("text",))


def test_vision_at_another_size(tmp_path):
    config = VisionConfig(
        image_size=12, patch_size=4, width=6, num_layers=1, num_heads=2, mlp_width=8
    )
    params = random_like(lambda: VisionTower(config, ComputeConfig(), rngs=nnx.Rngs(0)))
    save_vision(tmp_path / "vit", params, config)
    assert_same(load_vision(tmp_path / "vit", config), params)
    larger = read_vision_config(tmp_path / "vit", VisionConfig(image_size=20))
    assert (larger.num_patches, larger.width) == (25, 6)
    ours = load_vision(tmp_path / "vit", larger)
    assert ours["position_embedding"].shape == (26, 6)
    ours["position_embedding"] = params["position_embedding"]
    assert_same(ours, params)
    with pytest.raises(UserError, match="22 pixels do not divide"):
        read_vision_config(tmp_path / "vit", VisionConfig(image_size=22))
    name = "embeddings.position_embeddings"
    rewrite(tmp_path / "vit", lambda t: t | {name: t[name][:, :-1]})
    with pytest.raises(UserError, match="a square grid of patches"):
        load_vision(tmp_path / "vit", config)


def test_the_config_of_an_early_bert_has_defaults(folder):
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    for key in ("layer_norm_eps", "type_vocab_size"):
        del settings[key]
    path.write_bytes(json.dumps(settings).encode("utf-8-sig"))
    config = read_text_config(folder, TextConfig())
    assert config.layer_norm_eps == 1e-12 and config.num_token_types == 2


def test_config_of_no_finite_numbers_is_named(folder):
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    for value in (float("nan"), float("inf"), 10**400, True, "1"):
        path.write_text(json.dumps(settings | {"layer_norm_eps": value}))
        with pytest.raises(UserError, match="layer_norm_eps must be a positive float"):
            read_text_config(folder, TextConfig())
    for text in ("[" * 100_000, '{"hidden_size": ' + "7" * 5000 + "}"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"config\.json"):
            read_text_config(folder, TextConfig())
