"""Files and folders of weights: what is read, what is refused and with which words."""

import builtins
import json

import numpy as np
import pytest
import safetensors.numpy

from vilem_jax.config.schema import TextConfig, VisionConfig
from vilem_jax.errors import UserError
from vilem_jax.weights import starts
from vilem_jax.weights.detect import FORMATS, huggingface_bert, recognize
from vilem_jax.weights.foreign import open_checkpoint

VIT = {"embeddings.patch_embeddings.projection.weight": np.zeros((2, 3, 1, 1), "f4")}
BERT = {"bert.embeddings.word_embeddings.weight": np.zeros((7, 4), "f4")}
TIMM = {"patch_embed.proj.weight": np.zeros((2, 3, 1, 1), "f4")}


def save(arrays, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(arrays, file)
    return file


def test_a_pickle_is_read_only_when_asked_for(torch, tmp_path):
    file = tmp_path / "vit.pth"
    torch.save({"patch_embed.proj.weight": torch.zeros(2, 3, 1, 1)}, file)
    for name in (file, tmp_path):
        with pytest.raises(UserError, match=r"vit\.pth is a pickle.*--allow-pickle"):
            open_checkpoint(name)
        source = open_checkpoint(name, allow_pickle=True)
        assert recognize(source) == "timm"
    with pytest.raises(UserError, match=r"config\.model\.allow_pickle=True"):
        starts.read_vision_config(str(file), VisionConfig())


class Trap:
    """Would print when unpickled."""

    def __reduce__(self):
        return print, ("the pickle ran code",)


def test_a_pickle_never_runs_code(torch, tmp_path, capsys):
    file = tmp_path / "trap.pth"
    torch.save({"model": {"a": torch.zeros(1)}, "args": Trap()}, file)
    with pytest.raises(UserError, match=r"trap\.pth holds other Python objects"):
        open_checkpoint(file, allow_pickle=True)
    assert capsys.readouterr().out == ""


def test_pickles_that_are_no_weights(torch, tmp_path):
    file = tmp_path / "a.pth"
    for stored in ({}, [torch.zeros(1)], {"epoch": 3}, {"model": {}}):
        torch.save(stored, file)
        with pytest.raises(UserError, match="holds no tensors by name"):
            open_checkpoint(file, allow_pickle=True)
    torch.save({"weight": torch.zeros(1000)}, file)
    whole = file.read_bytes()
    for cut in (whole[:-700], whole[:100], b""):
        file.write_bytes(cut)
        with pytest.raises(UserError, match=r"a\.pth cannot be read: it is corrupt"):
            open_checkpoint(file, allow_pickle=True)


def test_without_torch_a_sentence(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_torch(name, *args, **kwargs):
        if name == "torch":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    (tmp_path / "a.bin").write_bytes(b"x")
    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(UserError, match=r"needs PyTorch.*pip install torch"):
        open_checkpoint(tmp_path / "a.bin", allow_pickle=True)


def test_folders_and_files_that_hold_nothing(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"has no weights: none of its files ends in"):
        open_checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"notes\.txt is not a known file of weights"):
        open_checkpoint(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="there is no folder"):
        open_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="no folder of weights given"):
        open_checkpoint("")
    for name in ("a", "b"):
        save(TIMM, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"several files.*a\.safetensors and b\.s"):
        open_checkpoint(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    assert recognize(open_checkpoint(tmp_path)) == "timm"
    file = tmp_path / "a.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"a\.safetensors cannot be read"):
        open_checkpoint(file)


@pytest.mark.parametrize(
    ("arrays", "name"),
    [(VIT, "huggingface-vit"), (BERT, "huggingface-bert"), (TIMM, "timm")],
)
def test_a_format_is_recognized_by_names(arrays, name, tmp_path):
    source = open_checkpoint(save(arrays, tmp_path / "a.safetensors"))
    assert recognize(source) == recognize(source, name) == name
    other = "blip" if name != "blip" else "albef"
    with pytest.raises(UserError, match=f"not in the format {other}: .* in {name}$"):
        recognize(source, other)
    known = "dinov2, huggingface-vit, .*timm"
    with pytest.raises(UserError, match=f"no format 'tim': {known}"):
        recognize(source, "tim")


def test_names_of_no_format(tmp_path):
    arrays = {f"roberta.layer.{n}": np.zeros(1, "f4") for n in range(5)}
    source = open_checkpoint(save(arrays, tmp_path / "a.safetensors"))
    pattern = r"no format that is known .*: roberta\.layer\.0, .* and 2 more$"
    with pytest.raises(UserError, match=pattern):
        recognize(source)
    assert len(FORMATS) == 8


def test_a_tower_that_is_not_in_it(tmp_path):
    file = str(save(TIMM, tmp_path / "a.safetensors"))
    with pytest.raises(UserError, match=r"text\.start_from\) .* no text tower; hugg"):
        starts.read_text_config(file, TextConfig())
    file = str(save(BERT, tmp_path / "b.safetensors"))
    with pytest.raises(UserError, match=r"vision\.start_from\) .* no vision tower"):
        starts.read_vision_config(file, VisionConfig())


def test_a_format_of_hugging_face_needs_its_config(tmp_path):
    file = save(BERT, tmp_path / "model.safetensors")
    for name in (file, tmp_path):
        with pytest.raises(UserError, match=r"has no config\.json"):
            starts.read_text_config(str(name), TextConfig())


SMALL = dict(
    vocab_size=61,
    max_position_embeddings=16,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
)


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM"])
def test_bert_in_all_its_files(kind, torch, randomize, tmp_path):
    """Shards, old names, a bare file, pickles in one file and in two: one tower."""
    import transformers

    bert = getattr(transformers, kind)(transformers.BertConfig(**SMALL))
    randomize(bert, seed=3).save_pretrained(tmp_path / "whole")
    bert.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    settings = (tmp_path / "whole" / "config.json").read_text()
    stored = tmp_path / "whole" / "model.safetensors"
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): torch.from_numpy(array)
        for name, array in safetensors.numpy.load_file(stored).items()
    }
    names = sorted(state)
    for folder, parts in (
        ("pickle", {"pytorch_model.bin": names}),
        (
            "pickles",
            {
                "pytorch_model-00001-of-00002.bin": names[::2],
                "pytorch_model-00002-of-00002.bin": names[1::2],
            },
        ),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(settings)
        for file, part in parts.items():
            torch.save({n: state[n] for n in part}, tmp_path / folder / file)
    config = huggingface_bert.read_text_config(tmp_path / "whole", TextConfig())
    wanted = huggingface_bert.load_text(tmp_path / "whole", config)
    has_head = kind == "BertForMaskedLM"
    for name in ("shards", "pickle", "pickles", "whole/model.safetensors"):
        path = str(tmp_path / name)
        read = starts.read_text_config(path, TextConfig(), allow_pickle=True)
        assert read == config
        tower, head = starts.load_text(path, config, allow_pickle=True)
        assert (head is not None) == has_head
        compare(tower, wanted)


def compare(ours, theirs):
    import jax

    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_another_depth_than_the_config_says(torch, randomize, tmp_path):
    from transformers import BertConfig, BertModel

    randomize(BertModel(BertConfig(**SMALL)), seed=3).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"num_hidden_layers": 3}, r"lacks encoder\.layer\.2.* and 11 more"),
        ({"num_hidden_layers": 1}, r"holds encoder\.layer\.1.* and 11 more, which"),
        ({"hidden_size": 64}, r"is \[.*32.*\], but .* needs \[.*64.*\]"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings | change))
        config = starts.read_text_config(str(tmp_path), TextConfig())
        with pytest.raises(UserError, match=message):
            starts.load_text(str(tmp_path), config)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_wrappers_are_left_out_of_any_format(tmp_path, wrapper):
    tensors = {"a.weight": np.ones((2, 2), np.float32), "b": np.zeros(3, np.float32)}
    wrapped = {f"{wrapper}{name}": array for name, array in tensors.items()}
    safetensors.numpy.save_file(wrapped, tmp_path / "w.safetensors")
    np.savez(tmp_path / "w.npz", **wrapped)
    for file in ("w.safetensors", "w.npz"):
        opened = open_checkpoint(tmp_path / file)
        assert set(opened.names) == set(tensors)
        np.testing.assert_array_equal(opened.read("a.weight"), tensors["a.weight"])
    both = wrapped | {"b": tensors["b"]}
    safetensors.numpy.save_file(both, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="with and without a wrapper"):
        open_checkpoint(tmp_path / "w.safetensors")


def test_types_that_numpy_lacks_are_named(torch, tmp_path):
    from safetensors.torch import save_file

    for kind in ("float8_e4m3fn", "float8_e5m2", "int64", "bool", "complex64"):
        values = torch.zeros(4).to(getattr(torch, kind))
        save_file({"a": values}, tmp_path / "w.safetensors")
        with pytest.raises(UserError, match=r"the tensor a in .* weights must be"):
            open_checkpoint(tmp_path / "w.safetensors").read("a")


def test_torch_that_runs_code_is_refused(torch, tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(2)}, tmp_path / "w.pth")
    for version in ("2.5.1+cu124", "1.13.0"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(UserError, match=r"CVE-2025-32434.*torch 2\.6"):
            open_checkpoint(tmp_path / "w.pth", allow_pickle=True)
    monkeypatch.undo()
    assert open_checkpoint(tmp_path / "w.pth", allow_pickle=True).names == {"a"}
