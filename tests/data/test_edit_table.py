"""An edit table: small, read row by row, and only by the run they fit."""

import json
import pickle

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from tests.data.test_batches import Numbers, assert_same
from vilem_jax.config.schema import Config, DataConfig, EditorConfig, TrainConfig
from vilem_jax.data.batches import BatchMaker
from vilem_jax.data.corpus import Corpus
from vilem_jax.data.edit_table import EditTable, StoredEditTable, describe
from vilem_jax.data.tokenizer import SPECIAL_TOKENS, Tokenizer, train_vocabulary
from vilem_jax.errors import UserError

PAIRS, VARIANTS, POSITIONS, LENGTH = 12, 3, 2, 6
EDITOR = EditorConfig(max_edits=POSITIONS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_vocabulary([f"image said in way {i}" for i in range(50)], 120, folder)
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def corpus():
    return Corpus([Numbers(4), Numbers(2, name="more")])


@pytest.fixture(scope="module")
def edits(tmp_path_factory, tokenizer, corpus):
    """Pair i, variant v: token 10 + 3 i + v at position 1, and at 2 if v is 1."""
    table = EditTable.empty(
        PAIRS, VARIANTS, POSITIONS, text_length=LENGTH, tokenizer=tokenizer
    )
    table.positions[:] = [1, 2]
    number = 10 + np.arange(PAIRS * VARIANTS).reshape(PAIRS, VARIANTS)
    table.tokens[..., 0] = number
    table.tokens[:, 1, 1] = number[:, 1]
    path = tmp_path_factory.mktemp("edits") / "edits.safetensors"
    about = describe(corpus, tokenizer, LENGTH, EDITOR) | {"editor": "abc", "seed": 5}
    table.write(str(path), about)
    return StoredEditTable(str(path))


@pytest.fixture
def maker(tokenizer, corpus, edits):
    def make(**settings):
        config = Config(
            seed=settings.pop("seed", 0),
            train=TrainConfig(batch_size=settings.pop("batch_size", PAIRS)),
            data=DataConfig(text_length=LENGTH, crop_scale=(0.5, 1.0)),
        )
        defaults = {"image_size": 0, "edits": edits}
        return BatchMaker(config, corpus, tokenizer, **defaults | settings)

    return make


def variants(batch) -> np.ndarray:
    return batch["edit_tokens"][:, 0] - 10 - VARIANTS * batch["sample_id"]


def test_rows(edits):
    rows = edits.rows([0, 11, 2], [0, 1, 2])
    kinds = {name: (value.dtype.name, value.shape) for name, value in rows.items()}
    assert kinds == {
        "edit_positions": ("int32", (3, POSITIONS)),
        "edit_tokens": ("int32", (3, POSITIONS)),
        "is_edit": ("bool", (3, POSITIONS)),
    }
    assert rows["edit_positions"].tolist() == [[1, 2]] * 3
    assert rows["is_edit"].tolist() == [[True, False], [True, True], [True, False]]
    assert rows["edit_tokens"][rows["is_edit"]].tolist() == [10, 44, 44, 18]
    assert edits.num_variants == VARIANTS and edits.made_by == "abc"


def test_as_small_as_text_and_vocabulary_allow(tokenizer, tmp_path):
    kinds = []
    for length, words in ((256, 256), (257, 257), (512, 65536), (30, 65537)):
        pieces = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(words - 5))]
        tokenizer = type("Words", (), {})()
        tokenizer.vocabulary = type("V", (), {"size": len(pieces), "pad_id": 0})
        table = EditTable.empty(2, 1, 3, text_length=length, tokenizer=tokenizer)
        kinds.append((table.positions.dtype.name, table.tokens.dtype.name))
    assert kinds == [
        ("uint8", "uint8"),
        ("uint16", "uint16"),
        ("uint16", "uint16"),
        ("uint8", "uint32"),
    ]


def test_every_visit_takes_the_next_variant(maker):
    make = maker()
    seen = np.zeros((PAIRS, 2 * VARIANTS), int)
    for epoch in range(2 * VARIANTS):
        batch = make(epoch)  # all pairs once
        seen[batch["sample_id"], epoch] = variants(batch)
    for start in range(VARIANTS):
        assert (np.sort(seen[:, start : start + VARIANTS]) == np.arange(VARIANTS)).all()
    assert len(set(seen[:, 0])) > 1  # pairs do not begin with the same one


def test_pure_in_seed_and_step(maker):
    fresh = maker()(7)
    make = maker()
    for step in (9, 0, 7):
        last = make(step)
    assert_same(last, fresh)
    assert_same(pickle.loads(pickle.dumps(make))(7), fresh)  # as in a worker
    first, other = maker()(0), maker(seed=1)(0)
    order, other_order = (np.argsort(batch["sample_id"]) for batch in (first, other))
    assert (variants(first)[order] != variants(other)[other_order]).any()


def test_a_host_makes_its_rows_of_the_batch(maker):
    whole, rows = maker()(5), (1, 2)
    here = maker(rows=rows)(5)
    assert_same({key: value[list(rows)] for key, value in whole.items()}, here)


def test_pickles_as_its_path(edits):
    travelling = pickle.dumps(edits)
    assert len(travelling) < 400
    assert_same(pickle.loads(travelling).rows([3], [1]), edits.rows([3], [1]))


def test_edits_that_do_not_fit_are_refused_by_name(edits, tokenizer, corpus, tmp_path):
    def refused(corpus=corpus, tokenizer=tokenizer, length=LENGTH, editor=EDITOR):
        with pytest.raises(UserError) as error:
            edits.check(describe(corpus, tokenizer, length, editor))
        sentence = str(error.value)
        assert edits.path in sentence and "vilem data edit" in sentence
        assert "\n" not in sentence
        return sentence

    edits.check(describe(corpus, tokenizer, LENGTH, EDITOR))
    said = refused(Corpus([Numbers(4)]))
    assert "of 12 pairs, config.data.train has 8" in said
    shuffled = Corpus([Numbers(2, name="more"), Numbers(4)])
    assert "other captions, or in another order" in refused(shuffled)
    assert "config.data.text_length was 6 and is now 9" in refused(length=9)
    tokenizer.save(tmp_path)
    without = Tokenizer(tmp_path, keeps_sep=False, cleaning="blip")
    said = refused(tokenizer=without)
    assert "keeps_sep was True and is now False" in said
    assert "cleaning was 'albef' and is now 'blip'" in said
    (tmp_path / "vocab.txt").write_text("\n".join([*tokenizer.pieces, "new"]))
    assert "another vocabulary" in refused(tokenizer=Tokenizer(tmp_path))
    often = EditorConfig(max_edits=POSITIONS, edit_rate=0.5)
    said = refused(editor=often)
    assert "config.editor.edit_rate was 0.15 and is now 0.5" in said


def test_files_that_hold_no_edits(edits, tmp_path):
    with pytest.raises(UserError, match=r"no file .*gone.*`vilem data edit`"):
        StoredEditTable(str(tmp_path / "gone"))
    whole = (tmp_path / edits.path).read_bytes()
    (tmp_path / "half").write_bytes(whole[:-5])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("no edits")
    save_file({"tokens": np.zeros(3)}, tmp_path / "weights")
    save_file({"tokens": np.zeros(3)}, tmp_path / "other", {"vilem_edits": "{}"})
    save_file({"tokens": np.zeros(3)}, tmp_path / "list", {"vilem_edits": "[1]"})
    with safe_open(tmp_path / edits.path, "np") as file:
        arrays = {name: file.get_tensor(name) for name in ("positions", "tokens")}
        about = file.metadata()
    save_file(
        arrays | {"positions": arrays["positions"][:, :1]},
        tmp_path / "positions",
        about,
    )
    save_file({k: v[1:] for k, v in arrays.items()}, tmp_path / "pairs", about)
    others = "half", "empty", "text", "weights", "other", "list", "positions", "pairs"
    for name in others:
        with pytest.raises(UserError, match="is not a complete file of") as error:
            StoredEditTable(str(tmp_path / name))
        assert "\n" not in str(error.value)
        assert "vilem_edits" not in str(error.value)  # our key means nothing to a user
    with pytest.raises(UserError, match="cannot be read: it is a folder"):
        StoredEditTable(str(tmp_path))


@pytest.mark.parametrize("version", [None, 2, "1"])
def test_another_format_version_is_refused(edits, tmp_path, version):
    with safe_open(edits.path, "np") as file:
        arrays = {name: file.get_tensor(name) for name in ("positions", "tokens")}
        about = json.loads(file.metadata()["vilem_edits"])
    assert about.pop("format_version") == 1
    if version is not None:
        about["format_version"] = version
    save_file(arrays, tmp_path / "old", {"vilem_edits": json.dumps(about)})
    words = r"old has .*format_version.* reads format_version 1: .*`vilem data edit`"
    with pytest.raises(UserError, match=words):
        StoredEditTable(str(tmp_path / "old"))
