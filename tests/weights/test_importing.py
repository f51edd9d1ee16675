"""`vilem weights import`: what it writes, and what it refuses without a trace."""

import json

import numpy as np
import pytest
import safetensors.numpy

from tests.tiny import tiny_config
from tests.weights.both_towers import (
    EMBEDDING,
    QUEUE,
    VOCABULARY,
    WIDTH,
    albef_state,
    text_shape,
)
from vilem_jax import api
from vilem_jax.cli.main import main
from vilem_jax.config.schema import VisionConfig
from vilem_jax.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from vilem_jax.errors import UserError
from vilem_jax.training import starting
from vilem_jax.training.state import init_params
from vilem_jax.weights import starts, tables
from vilem_jax.weights.importing import import_weights
from vilem_jax.weights.model_folder import read_model_folder

HEADS = {"vision_heads": 4, "text_heads": 4}


def write_vocabulary(folder, size):
    letters = [chr(ord("a") + n) for n in range(size - len(SPECIAL_TOKENS))]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *letters]) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def albef_file(torch, randomize, tmp_path_factory):
    state, _ = albef_state(torch, randomize, is_pretrained=True)
    file = tmp_path_factory.mktemp("albef") / "ALBEF.pth"
    torch.save({"model": state}, file)
    return file


@pytest.fixture(scope="module")
def imported(albef_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported") / "model"
    words = write_vocabulary(folder.parent / "words", VOCABULARY)
    done = import_weights(
        albef_file, folder, tokenizer=words, allow_pickle=True, **HEADS
    )
    return folder, done


@pytest.fixture
def timm_file(torch, randomize, tmp_path):
    from tests.weights.torch_models import ViT

    state = randomize(ViT(24, 8, WIDTH, 2, 4, 96), seed=1).state_dict()
    file = tmp_path / "vit.safetensors"
    arrays = {name: value.numpy() for name, value in state.items()}
    safetensors.numpy.save_file(arrays, file)
    return file


def assert_same(ours, theirs):
    ours, theirs = dict(tables.leaves(ours)), dict(tables.leaves(theirs))
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        np.testing.assert_array_equal(ours[path], value, err_msg=str(path))


def test_an_albef_becomes_a_model(imported):
    folder, done = imported
    assert done.format == "albef"
    assert "2 image and 3 text layers for images of 24 pixels" in done.what
    assert f"with momentum copy, {QUEUE} rows" in done.what
    stored = read_model_folder(folder)
    assert stored.queues["image_queue"].shape == (QUEUE, EMBEDDING)
    assert stored.momentum_params is not None
    assert "cannot proofread" in (folder / "README.md").read_text()
    model = api.load(str(folder), weights="momentum")
    rows = model.encode_text(["a b c", "d"])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-5)
    # Its tokenizer ends no caption with [SEP], and so does ours of it.
    assert model.tokenizer.encode(["a b"], 5)[0].tolist() == [2, 5, 6, 0, 0]
    image = np.full((30, 20, 3), 90, np.uint8)
    assert model.encode_image([image]).shape == (1, EMBEDDING)
    with pytest.raises(UserError, match="cannot proofread"):
        model.proofread(image, "a b")


def test_import_at_another_size(albef_file, imported, tmp_path):
    words = str(imported[0])
    import_weights(
        albef_file,
        tmp_path / "m",
        tokenizer=words,
        allow_pickle=True,
        image_size=40,
        **HEADS,
    )
    stored = read_model_folder(tmp_path / "m")
    assert stored.config.model.vision.image_size == 40
    for params in (stored.params, stored.momentum_params):
        assert params["vision"]["position_embedding"].shape == (26, WIDTH)


def test_a_tower_becomes_a_folder_of_hugging_face(timm_file, tmp_path, torch):
    from transformers import ViTModel

    out = tmp_path / "out"
    done = import_weights(timm_file, out, vision_heads=4)
    assert "image tower of 2 layers for images of 24 pixels" in done.what
    base = VisionConfig(image_size=24, width=WIDTH, num_heads=4)
    direct = starts.read_vision_config(str(timm_file), base)
    assert starts.read_vision_config(str(out), VisionConfig(image_size=24)) == direct
    assert_same(
        starts.load_vision(str(out), direct),
        starts.load_vision(str(timm_file), direct),
    )
    theirs, report = ViTModel.from_pretrained(
        out, add_pooling_layer=False, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert theirs.config.layer_norm_eps == 1e-6
    import_weights(timm_file, tmp_path / "40", vision_heads=4, image_size=40)
    settings = json.loads((tmp_path / "40" / "config.json").read_text())
    assert settings["image_size"] == 40
    # Imported once more, bit for bit, though the grid is no longer the file's.
    import_weights(tmp_path / "40", tmp_path / "again")
    first, second = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("40", "again")
    )
    assert first == second


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM"])
def test_a_pickled_bert_becomes_safetensors(kind, torch, randomize, tmp_path):
    import transformers

    config = transformers.BertConfig(**text_shape(2))
    bert = randomize(getattr(transformers, kind)(config), seed=3)
    source = tmp_path / "bert"
    write_vocabulary(source, VOCABULARY)
    torch.save(bert.state_dict(), source / "pytorch_model.bin")
    config.save_pretrained(source)
    done = import_weights(source, tmp_path / "out", allow_pickle=True)
    assert kind in done.what
    again = getattr(transformers, kind).from_pretrained(tmp_path / "out")
    ours, theirs = again.state_dict(), bert.state_dict()
    pooler = {name for name in theirs if name.startswith("pooler.")}
    for name in theirs.keys() - pooler:
        np.testing.assert_array_equal(ours[name].numpy(), theirs[name].numpy())
    assert Tokenizer(tmp_path / "out").vocabulary.size == VOCABULARY
    with pytest.raises(UserError, match="has 20 tokens, but the model has 30"):
        import_weights(
            source,
            tmp_path / "other",
            allow_pickle=True,
            tokenizer=write_vocabulary(tmp_path / "20", 20),
        )
    assert not (tmp_path / "other").exists()


def test_a_blip_brings_two_tokens_more(torch, randomize, tmp_path):
    """Over a BERT's vocabulary, beside a tokenizer.json that has them already."""
    from transformers import BlipConfig, BlipForImageTextRetrieval

    vision = text_shape(2) | dict(image_size=24, patch_size=8)
    for key in ("vocab_size", "max_position_embeddings"):
        del vision[key]
    tokens = dict(bos_token_id=28, eos_token_id=2, pad_token_id=0, sep_token_id=3)
    config = BlipConfig(
        vision_config=vision,
        text_config=text_shape(2) | tokens | {"encoder_hidden_size": WIDTH},
        image_text_hidden_size=EMBEDDING,
    )
    source = tmp_path / "blip"
    randomize(BlipForImageTextRetrieval(config), seed=6).save_pretrained(source)
    write_vocabulary(source, VOCABULARY - 2)
    (source / "added_tokens.json").write_text('{"[DEC]": 28, "[ENC]": 29}')
    import_weights(source, tmp_path / "out")
    model = api.load(str(tmp_path / "out"))
    pieces = model.tokenizer.pieces
    assert pieces[-2:] == ("[DEC]", "[ENC]") and len(pieces) == VOCABULARY
    assert not model.tokenizer.vocabulary.is_editable[-2:].any()
    assert model.tokenizer.encode(["a, [DEC]"], 6)[0].tolist()[:2] == [2, 5]
    assert model.config.model.num_proofread_layers == 2
    # Words in another order are another model's.
    other = tmp_path / "other"
    write_vocabulary(other, VOCABULARY - 2)
    text = (other / "vocab.txt").read_text()
    (other / "vocab.txt").write_text(text.replace("a\nb\n", "b\na\n"))
    with pytest.raises(UserError, match="lists other tokens, or in another order"):
        import_weights(source, tmp_path / "no", tokenizer=str(other))
    with pytest.raises(UserError, match="has 20 tokens, but the model has 30"):
        name = write_vocabulary(tmp_path / "20", 20)
        import_weights(source, tmp_path / "no", tokenizer=name)
    assert not (tmp_path / "no").exists()


def test_what_is_in_the_way_stays(timm_file, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"file is a file|cannot write"):
        import_weights(timm_file, tmp_path / "file", vision_heads=4)
    with pytest.raises(UserError, match="file where a folder is needed"):
        import_weights(timm_file, tmp_path / "file" / "x", vision_heads=4)
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"holds thesis\.tex, which"):
        import_weights(timm_file, tmp_path / "full", vision_heads=4)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_a_run_starts_from_them(albef_file, imported, timm_file):
    """ALBEF's words and a ViT of timm's, and both from the imported folder."""
    stored = read_model_folder(imported[0])
    for vision, text in (
        (str(timm_file), str(albef_file)),
        (str(albef_file), str(imported[0])),
        (str(imported[0]), str(albef_file)),
    ):
        towers = {"width": WIDTH, "num_heads": 4, "mlp_width": 96}
        config = tiny_config(
            model={
                "allow_pickle": True,
                "vision": {"start_from": vision, "image_size": 32, **towers},
                "text": {"start_from": text, **towers},
                "num_proofread_layers": 1,
            },
            data={"tokenizer": str(imported[0])},
            loss=dict.fromkeys(
                ("local_detect", "local_correct", "global_detect", "global_correct"),
                False,
            ),
        )
        config = starting.complete(config, imported[0] / "no_run")
        assert (config.model.text.num_layers, config.model.text.num_heads) == (3, 4)
        params = starting.pretrained(config, _random(config))
        for path in (("text", "embedding", "words"), ("vision", "blocks", 1, "query")):
            assert_same(
                {"here": tables.take(params, path)},
                {"here": tables.take(stored.params, path)},
            )
        assert params["vision"]["position_embedding"].shape == (17, WIDTH)


def _random(config):
    import jax

    return jax.device_get(
        jax.jit(lambda key: init_params(config, key))(jax.random.key(0))
    )


def test_the_command(timm_file, tmp_path, capsys):
    out = str(tmp_path / "out")
    line = ["weights", "import", str(timm_file), f"--out={out}", "--vision-heads=4"]
    assert main([*line, "--format=timm"]) == 0
    assert "image tower of 2 layers" in capsys.readouterr().out
    assert main([*line, "--format=augreg"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vilem: ") and error.count("\n") == 1
    assert "by the names of its tensors it is in timm" in error


def test_a_tower_takes_no_options_of_the_other(torch, randomize, timm_file, tmp_path):
    bert = bert_folder(torch, randomize, tmp_path)
    for source, option in (
        (bert, {"image_size": 32}),
        (bert, {"text_heads": 2}),
        (timm_file, {"tokenizer": str(bert)}),
    ):
        with pytest.raises(UserError, match=r"has no meaning for an? (text|image) tow"):
            import_weights(source, tmp_path / "no", **option)
    assert not (tmp_path / "no").exists()


def test_other_words_than_a_berts_own_are_refused(torch, randomize, tmp_path):
    bert = bert_folder(torch, randomize, tmp_path)
    import_weights(bert, tmp_path / "same", tokenizer=str(bert))
    other = tmp_path / "other"
    other.mkdir()
    pieces = (bert / "vocab.txt").read_text().split()
    (other / "vocab.txt").write_text("\n".join([*pieces[:-2], *pieces[:-3:-1]]) + "\n")
    with pytest.raises(UserError, match="lists other tokens, or in another order"):
        import_weights(bert, tmp_path / "no", tokenizer=str(other))
    assert not (tmp_path / "no").exists()


def bert_folder(torch, randomize, tmp_path):
    from transformers import BertConfig, BertModel

    shape = BertConfig(**text_shape(2))
    folder = tmp_path / "bert"
    randomize(BertModel(shape), seed=2).save_pretrained(folder)
    write_vocabulary(folder, shape.vocab_size)
    return folder
