"""The Python API on a stored run: encode, proofread, and errors of wrong input."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import vilem_jax
from vilem_jax.api import Word, corrected_caption
from vilem_jax.config.freeze import to_dict
from vilem_jax.config.schema import (
    AugmentConfig,
    ComputeConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    TextConfig,
    TrainConfig,
    VisionConfig,
)
from vilem_jax.data.images import resize_square
from vilem_jax.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from vilem_jax.errors import UserError
from vilem_jax.runs.checkpoints import Checkpoints
from vilem_jax.runs.workdir import claim_workdir
from vilem_jax.training.state import init_params, init_state

WORDS = "a red blue dog cat on sofa ##s ##y , the"
PIECES = [*SPECIAL_TOKENS, *WORDS.split(" ")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a tiny model whose momentum weights differ from its own."""
    folder = tmp_path_factory.mktemp("run")
    vocabulary = tmp_path_factory.mktemp("vocabulary")
    (vocabulary / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    sizes = {"width": 16, "num_layers": 2, "num_heads": 2, "mlp_width": 16}
    config = Config(
        data=DataConfig(tokenizer=str(vocabulary), text_length=10),
        augment=AugmentConfig(mean=(0.5, 0.5, 0.5), std=(0.3, 0.3, 0.3)),
        model=ModelConfig(
            vision=VisionConfig(image_size=16, patch_size=8, **sizes),
            text=TextConfig(vocab_size=len(PIECES), max_positions=16, **sizes),
            embedding_width=8,
            num_proofread_layers=1,
        ),
        loss=LossConfig(queue_length=4),
        train=TrainConfig(batch_size=4),
        evaluation=EvaluationConfig(batch_size=4, text_length=10),
        compute=ComputeConfig(attention="cudnn"),
    )
    claim_workdir(folder, config)
    Tokenizer(vocabulary).save(folder / "tokenizer")
    state = init_state(config, init_params(config, jax.random.key(0)))
    slow = jax.tree.map(lambda x: x + 0.02, state.params)
    state = dataclasses.replace(state, momentum_params=slow)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(3, state)
    return folder


@pytest.fixture(scope="module")
def model(run):
    return vilem_jax.load(str(run))


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def test_paths_pillow_and_arrays_are_one_image(model, photo):
    array = np.asarray(Image.open(photo))
    found = model.encode_image([photo, str(photo), Image.open(photo), array])
    assert found.shape == (4, 8) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found, np.repeat(found[:1], 4, 0), atol=1e-6)
    for alone in (photo, Image.open(photo), array):
        np.testing.assert_allclose(model.encode_image(alone), found[:1], atol=1e-5)


def test_any_number_of_rows_needs_no_new_program(model, photo):
    for count in (1, 2, 5, 9):
        assert model.encode_image([photo] * count).shape == (count, 8)
        assert model.encode_text(["a dog"] * count).shape == (count, 8)
    assert model.encoder.programs["images"]._cache_size() == 2
    assert model.encoder.programs["texts"]._cache_size() == 2


def test_words_with_their_doubts_and_corrections(model, photo):
    caption = "A red dogs, on the 7 sofa!"
    words = model.proofread(photo, caption, all_corrections=True)
    said = " ".join(word.word for word in words)
    assert said == "a red dogs on the [UNK] sofa"
    whole = {piece for piece in PIECES if piece[0] not in "#["}
    for word in words:
        if word.word == "[UNK]":
            assert word.p_wrong == 0 and word.corrections == ()
            continue
        assert 0 < word.p_wrong < 1
        assert len(word.corrections) == 3  # "dogs" has two pieces
        probabilities = [p for _, p in word.corrections]
        assert probabilities == sorted(probabilities, reverse=True)
        others = {other for other, _ in word.corrections}
        assert others <= whole - {word.word}  # nothing is glued to a piece


def test_only_words_called_wrong_are_corrected(model, photo, monkeypatch):
    caption = "a red dogs on the sofa"
    every = model.proofread(photo, caption, all_corrections=True)
    limit = sorted(word.p_wrong for word in every)[2]  # three of six are above it
    monkeypatch.setattr("vilem_jax.api.P_WRONG", limit)
    words = model.proofread(photo, caption)
    assert [word.is_wrong for word in words].count(True) == 3
    for word, with_all in zip(words, every, strict=True):
        assert word.p_wrong == with_all.p_wrong
        assert word.corrections == (with_all.corrections if word.is_wrong else ())


def test_a_word_of_pieces_is_as_wrong_as_its_worst_and_replaced_whole(model, photo):
    tokens = model.tokenizer.encode(["dogsys"], 10)
    everywhere = np.arange(10)[None]
    judged = model.encoder.proofread(
        [model.read_image(photo)], tokens, everywhere, tokens, branches=("local",)
    )["local"]
    (word,) = model.proofread(photo, "dogsys", all_corrections=True)
    assert word.p_wrong == pytest.approx(float(judged.p_wrong[0, 1:5].max()))
    can_be = judged.p_best[0, 1] > 0
    others = [PIECES[token] for token in judged.best[0, 1][can_be]]
    expected = [other for other in others if other != "dog"][:3]
    assert [other for other, _ in word.corrections] == expected


def test_the_caption_is_put_together_again():
    def right(word):
        return Word(word, 0.1, (("never", 0.9),))

    wrong, mute = Word("red", 0.9, (("blue", 0.7), ("big", 0.2))), Word("x", 0.9, ())
    words = [
        right("a"),
        wrong,
        right("t"),
        right("-"),
        right("shirt"),
        right(","),
        mute,
    ]
    assert corrected_caption(words) == "a blue t-shirt, x"


def test_a_model_is_three_lines(model):
    lines = repr(model).splitlines()
    assert len(lines) == 3 and all(len(line) <= 100 for line in lines)
    assert lines[0].startswith("vilem_jax.Model, online weights: ")
    assert "local (detect and correct)" in lines[2]


def test_words_are_corrected_by_words_and_pieces_by_pieces(model, photo):
    tokens = model.tokenizer.encode(["dogsys on a sofa"], 10)
    everywhere = np.arange(10)[None]
    (judged,) = model.encoder.proofread(
        [model.read_image(photo)], tokens, everywhere, tokens, branches=("global",)
    ).values()
    vocabulary = model.tokenizer.vocabulary
    can_be = judged.p_best[0] > 0
    was_piece = vocabulary.is_piece[tokens[0]]
    assert was_piece.any() and can_be[was_piece].any()
    named = vocabulary.is_piece[judged.best[0]]
    assert (named == was_piece[:, None])[can_be].all()


def test_the_branches_differ(model, photo):
    local = model.proofread(photo, "a red dog")
    global_ = model.proofread(photo, "a red dog", branch="global")
    assert [w.word for w in local] == [w.word for w in global_]
    assert [w.p_wrong for w in local] != [w.p_wrong for w in global_]
    with pytest.raises(UserError, match="'sideways'"):
        model.proofread(photo, "a red dog", branch="sideways")


def test_an_untrained_branch_is_refused(model, photo):
    def trained(switch):
        names = ("local_detect", "local_correct", "global_detect", "global_correct")
        loss = LossConfig(**{name: name == switch for name in names})
        config = dataclasses.replace(model.config, loss=loss)
        encoder = dataclasses.replace(model.encoder, config=config)
        return dataclasses.replace(model, encoder=encoder)

    words = trained("local_detect").proofread(photo, "a red dog")
    whole = model.proofread(photo, "a red dog")
    assert [w.p_wrong for w in words] == [w.p_wrong for w in whole]
    assert {w.corrections for w in words} == {()}
    with pytest.raises(UserError, match="not to find wrong ones"):
        trained("local_correct").proofread(photo, "a red dog")
    with pytest.raises(UserError, match=r"local branch .*use branch=global"):
        trained("global_detect").proofread(photo, "a red dog")


def test_online_and_momentum_weights(run, model, photo):
    slow = vilem_jax.load(run, weights="momentum")
    assert not np.allclose(slow.encode_image(photo), model.encode_image(photo))
    assert slow.fingerprint != model.fingerprint
    assert vilem_jax.load(run).fingerprint == model.fingerprint
    with pytest.raises(UserError, match="'fast'"):
        vilem_jax.load(run, weights="fast")


def test_a_run_without_sep_has_none_anywhere(run, model, photo, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    settings = json.loads(file.read_text())
    settings["data"]["keeps_sep"] = False
    file.write_text(json.dumps(settings))
    without = vilem_jax.load(tmp_path / "run")
    assert not without.tokenizer.keeps_sep
    assert without.fingerprint != model.fingerprint
    found = without.encode_text(["a red dog"])
    assert np.isfinite(found).all()
    assert not np.allclose(found, model.encode_text(["a red dog"]), atol=1e-3)
    tokens = model.tokenizer.encode(["a red dog"], 10)
    tokens[tokens == model.tokenizer.vocabulary.sep_id] = 0
    np.testing.assert_allclose(found, model.encoder.encode_tokens(tokens), atol=1e-5)
    words = [word.word for word in without.proofread(photo, "a red dog")]
    assert words == ["a", "red", "dog"]
    long = without.proofread(photo, "dog " * 20)
    assert len(long) == len(model.proofread(photo, "dog " * 20)) + 1 == 9


def test_normalisation_is_that_of_the_run(model, photo):
    """Pixels at the run's mean become zero: a black or white image does not."""
    grey = np.full((16, 16, 3), 127, np.uint8)
    square = model.read_image(photo)
    expected = resize_square(np.asarray(Image.open(photo)), 16)
    np.testing.assert_array_equal(square, expected)
    config = dataclasses.replace(model.config, augment=AugmentConfig())
    encoder = dataclasses.replace(model.encoder, config=config)
    with_other_mean = dataclasses.replace(model, encoder=encoder)
    assert with_other_mean.fingerprint != model.fingerprint
    assert np.isfinite(model.encode_image(grey)).all()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("nowhere.jpg", r"cannot read nowhere\.jpg: No such file"),
        (np.zeros((4, 4, 7), np.uint8), "cannot read an image.*uint8"),
        (np.zeros((4, 4, 3)), "float64"),
        (Image.new("RGB", (9000, 9000)), "above"),
    ],
)
def test_an_image_that_cannot_be_read(model, image, words):
    with pytest.raises(UserError, match=words):
        model.encode_image([image])


def test_captions_without_a_word(model, photo):
    for caption in ("", "?!", "77"):
        with pytest.raises(UserError, match="no word"):
            model.proofread(photo, caption)
    with pytest.raises(UserError, match="no caption"):
        model.encode_text([])


def test_folders_without_a_model_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        vilem_jax.load(tmp_path)
    settings = json.loads((run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="no finished checkpoint"):
        vilem_jax.load(tmp_path)
    with pytest.raises(UserError, match="'online', 'momentum' or 'mixed', not 'foo'"):
        vilem_jax.load(tmp_path, weights="foo")
    (tmp_path / "vocab.txt").touch()
    with pytest.raises(UserError, match=r"exported model without model\.safetensors"):
        vilem_jax.load(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    settings = to_dict(Config(task="editor")) | {"format_version": 1}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="run of an editor"):
        vilem_jax.load(tmp_path)
