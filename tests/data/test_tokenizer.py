"""R13: cleaning, WordPiece, which tokens are words."""

import json
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest

from vilem_jax.data.tokenizer import (
    SPECIAL_TOKENS,
    Tokenizer,
    clean_caption,
    train_vocabulary,
)
from vilem_jax.errors import UserError

WORDS = [
    *("[unused0]", "a", "dog", "cat", "on", "red", "##gy", "##s", "surf", "##board"),
    *(",", ".", "-", "##,", "7", "café", "cafe", "犬", "t", "##ee"),
]


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *WORDS]) + "\n")
    return Tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("text", "albef", "blip"),
    [
        ("A Dog, running!", "a dog running", "a dog, running"),
        ("black-and-white/grey", "black and white grey", "black-and-white/grey"),
        ("don't  stop\n", "dont stop", "don't stop"),
        ('say "hi" (now): *#~;', "say hi now", "say hi now"),
        ("<PERSON> waves", "person waves", "person waves"),
        ("one.two", "onetwo", "one two"),
        ("", "", ""),
        ("?!.,", "", "? ,"),
        ("a\x00b\ud800\ufffdc", "a b c", "a b c"),
    ],
)
def test_cleaning(text, albef, blip):
    assert clean_caption(text) == albef
    assert clean_caption(text, "blip") == blip


def test_rows_begin_end_and_are_padded(tokenizer):
    vocabulary = tokenizer.vocabulary
    tokens = tokenizer.encode(["A doggy", "", "dog " * 50], 6)
    assert tokens.dtype == np.int32 and tokens.shape == (3, 6)
    dog = tokenizer.pieces.index("dog")
    cls, sep, pad = vocabulary.cls_id, vocabulary.sep_id, vocabulary.pad_id
    assert tokens[0].tolist() == [cls, *tokens[0, 1:4], sep, pad]
    assert tokens[1].tolist() == [cls, sep, pad, pad, pad, pad]
    assert tokens[2].tolist() == [cls, dog, dog, dog, dog, sep]
    assert tokenizer.lengths(["A doggy", ""]).tolist() == [5, 2]


def test_without_sep_one_more_token_fits(tokenizer, tmp_path):
    without = Tokenizer(tmp_path, keeps_sep=False)
    cls, pad = tokenizer.vocabulary.cls_id, tokenizer.vocabulary.pad_id
    tokens = without.encode(["A doggy", "", "red " * 50], 6)
    dog = tokenizer.encode(["A doggy"], 6)[0, 1:4].tolist()
    red = tokenizer.pieces.index("red")
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [
        [cls, *dog, pad, pad],
        [cls, pad, pad, pad, pad, pad],
        [cls, red, red, red, red, red],
    ]
    assert without.lengths(["A doggy", ""]).tolist() == [4, 1]
    assert without.words(tokens[0]) == [("a", 1, 2), ("doggy", 2, 4)]
    copy = pickle.loads(pickle.dumps(without))
    np.testing.assert_array_equal(copy.encode(["A doggy"], 6)[0], tokens[0])


def test_no_caption_gives_no_rows(tokenizer):
    assert tokenizer.encode([], 6).shape == (0, 6)


def test_words_of_a_row(tokenizer):
    row = tokenizer.encode(["a doggy, surfboards zzz"], 12)[0]
    assert tokenizer.words(row) == [
        ("a", 1, 2),
        ("doggy", 2, 4),
        ("surfboards", 4, 7),
        ("[UNK]", 7, 8),
    ]


def test_a_piece_without_its_word_is_a_word(tokenizer):
    vocabulary = tokenizer.vocabulary
    piece = tokenizer.pieces.index("##gy")
    assert tokenizer.words([vocabulary.cls_id, piece, vocabulary.sep_id]) == [
        ("gy", 1, 2)
    ]


def test_which_tokens_are_editable(tokenizer):
    vocabulary = tokenizer.vocabulary
    pieces = np.array(tokenizer.pieces)
    no_words = {*SPECIAL_TOKENS, "[unused0]", ",", ".", "-", "##,"}
    assert set(pieces[~vocabulary.is_editable]) == no_words
    assert set(pieces[vocabulary.is_piece]) == {"##gy", "##s", "##board", "##,", "##ee"}


def test_special_tokens_in_a_caption_are_text(tokenizer):
    row = tokenizer.encode(["[SEP] [MASK] dog"], 16)[0]
    vocabulary = tokenizer.vocabulary
    assert (row == vocabulary.sep_id).sum() == 1
    assert (row != vocabulary.mask_id).all()


def test_strange_captions_never_fail(tokenizer):
    rng = random.Random(0)
    strange = ["\x00", "\ud83d", "🐕🐕", "שלום עולם", "a" * 100_000, "dog " * 25_000]
    strange += ["\u202e dog", "e\u0301" * 300, "\ufeffdog", "犬" * 40, "\t\n\r", "."]
    for _ in range(400):
        length = rng.randrange(0, 40)
        strange.append("".join(chr(rng.randrange(0, 0x11000)) for _ in range(length)))
    vocabulary = tokenizer.vocabulary
    tokens = tokenizer.encode(strange, 30)
    assert ((tokens >= 0) & (tokens < vocabulary.size)).all()
    assert (tokens[:, 0] == vocabulary.cls_id).all()
    assert ((tokens == vocabulary.sep_id).sum(1) == 1).all()
    for row in tokens:
        tokenizer.words(row)


def test_wrong_bytes_become_spaces(tokenizer):
    text = b"a dog\xff\xfe red".decode("utf-8", "replace")
    assert tokenizer.clean(text) == "a dog red"


def test_pickles_to_other_processes(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    captions = ["A doggy on a surfboard", "red, red"]
    np.testing.assert_array_equal(
        copy.encode(captions, 9), tokenizer.encode(captions, 9)
    )


def test_saved_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "copy")
    copy = Tokenizer(tmp_path / "copy")
    assert copy.pieces == tokenizer.pieces
    np.testing.assert_array_equal(
        copy.encode(["A café dog"], 9), tokenizer.encode(["A café dog"], 9)
    )


def test_ignores_cutting_and_padding_stored_beside_it(tokenizer, tmp_path):
    backend = tokenizer._wordpiece
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(tmp_path).lengths(["dog " * 20]).tolist() == [22]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a\nb\n", r"no \[PAD\]"),
        ("\n".join([*SPECIAL_TOKENS, "a", "a"]), "'a' twice"),
    ],
)
def test_other_vocabularies_are_refused(tmp_path, content, sentence):
    (tmp_path / "vocab.txt").write_text(content)
    with pytest.raises(UserError, match=sentence):
        Tokenizer(tmp_path)


def test_two_vocabularies_in_one_folder_are_refused(tokenizer, tmp_path):
    tokenizer._wordpiece.save(str(tmp_path / "tokenizer.json"))
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = stored["model"]["vocab"]
    vocabulary["dog"], vocabulary["cat"] = vocabulary["cat"], vocabulary["dog"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="another vocabulary"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_corrupt_settings_are_one_sentence(tokenizer, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=r"cannot be read \(.*\): is .* corrupt\?"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"version": "1.0"}'])
def test_a_tokenizer_json_without_a_tokenizer(tokenizer, tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"corrupt\?"):
        Tokenizer(tmp_path)


def test_missing_tokenizers_are_refused_in_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no vocab.txt"):
        Tokenizer(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        Tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no tokenizer is named"):
        Tokenizer("")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"neither a folder nor .* hub"):
        Tokenizer("nobody/no-such-model")


CAPTIONS = [
    f"a {c} {s} left of a {c}" for c in ("red", "teal") for s in ("cube", "disk")
]


def test_vocabulary_is_learned_and_repeats(tmp_path):
    files = [train_vocabulary(CAPTIONS * 5, 120, tmp_path / str(i)) for i in range(3)]
    assert len({file.read_bytes() for file in files}) == 1
    tokenizer = Tokenizer(tmp_path / "0")
    assert tokenizer.vocabulary.size <= 120
    assert tokenizer.vocabulary.pad_id == 0
    row = tokenizer.encode([CAPTIONS[0]], 12)[0]
    assert [word for word, *_ in tokenizer.words(row)] == CAPTIONS[0].split()
    assert (
        tokenizer.encode(["zebra 42 quiz"], 30) != tokenizer.vocabulary.unk_id
    ).all()


def test_vocabulary_without_room_for_words_is_refused(tmp_path):
    with pytest.raises(UserError, match="too small"):
        train_vocabulary(CAPTIONS, 40, tmp_path)


def test_nothing_is_printed_about_pytorch(tmp_path):
    """As where PyTorch is not installed, and without the command line."""
    train_vocabulary(CAPTIONS, 120, tmp_path)
    script = (
        "import importlib.util as util, sys\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda n, *rest: n != 'torch' and find(n, *rest) or None\n"
        "from vilem_jax.data.tokenizer import Tokenizer\n"
        "Tokenizer(sys.argv[1])\n"
    )
    given = {k: v for k, v in os.environ.items() if "ADVISORY" not in k}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=given,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
