"""Users' files as values: encodings, JSON lines, arrays, numbers, blank texts."""

import json
import os
import zipfile

import numpy as np
import pytest

from tests.intact_files import PARSERS
from vilem_jax.errors import UserError
from vilem_jax.files import read_errors
from vilem_jax.parsing import (
    Records,
    decode,
    is_blank,
    is_number,
    parse_json,
    read_arrays,
    read_json,
    read_text,
    whole_number,
)

MARKED = (
    *("rows", "rows in lines", "coco", "clips in lines", "clips, csv", "winoground"),
    *("sugarcrepe", "config.json", "vocab.txt", "tokenizer.json"),
    *("tokenizer_config.json", "safetensors index"),
)
ROWS = [
    {"image": "é.png", "caption": "one\u2028two\u0085three\u2029 four\u000b"},
    {"image": "b.png", "caption": ["五", "🐕 \x1c"]},
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n \t\n"])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_lines_are_the_list_in_any_encoding(tmp_path, encoding, end, indent):
    file = tmp_path / "a.jsonl"
    # Escaped is what must not be in a string as it is: below U+0020.
    lines = [json.dumps(row, ensure_ascii=False, indent=indent) for row in ROWS]
    file.write_bytes(("\n\n".join(lines) + end).encode(encoding))
    assert read_json(file) == ROWS
    file.write_bytes((json.dumps(ROWS, ensure_ascii=False) + end).encode(encoding))
    assert read_json(file) == ROWS


@pytest.mark.parametrize("name", MARKED)
def test_byte_order_marks_change_nothing(tmp_path, name):
    file = PARSERS[name].make(tmp_path)
    text, expected = file.read_text(encoding="utf-8"), repr(PARSERS[name].read(file))
    for encoding in ("utf-8-sig", "utf-16"):
        file.write_bytes(text.encode(encoding))
        assert repr(PARSERS[name].read(file)) == expected


def test_big_endian_marks_are_read():
    for encoding, mark in (("utf-16-be", b"\xfe\xff"), ("utf-32-be", b"\0\0\xfe\xff")):
        assert decode(mark + "é🐕".encode(encoding)) == "é🐕"


def test_records_know_their_lines():
    records = parse_json('\n{"a": 1}\n\n{\n"a": 2\n}\n{"a": 3}', "f")
    assert [records.where(i) for i in range(3)] == ["line 2", "line 4", "line 7"]
    assert Records([1, 2]).where(1) == "record 1"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"a": 1}\n{"a": 2\n{"a": 3}\n', "f is not JSON: line 2: "),
        ('{"a": 1}\n{"a": 2', "f is not JSON: line 2, column 8: "),
        ('{"a": 1}\nnull x', "f is not JSON: line 2, column 6: "),
        ("[1]\n[2]", "f is not JSON: line 2, column 1: Extra data"),
        ('{"a": "\n"}', "f is not JSON: line 1, column 8: Invalid control"),
        (
            '[1,\n{"k": ' + "7" * 5000 + "}]",
            "f: line 2 has an integer of more than 4,3",
        ),
        ('{"a": 1}\n{"a": ' + "7" * 5000 + "}", "f: line 2 has an integer"),
        ('{"0": 1, "0": 2}', "f: an object has the key '0' twice"),
        ('{"a": 1}\n' + '{"a":' * 100_000, "f is nested too deeply, from line 2 on"),
        ("", "f is not JSON: line 1"),
        ("\ufeff{}", "f is not JSON: line 1"),
    ],
)
def test_text_that_is_not_json_is_named_with_its_line(text, sentence):
    with pytest.raises(UserError) as error:
        parse_json(text, "f")
    assert str(error.value).startswith(sentence)


def test_folders_and_devices_are_refused_and_pipes_do_not_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path, "it is a folder"),
        ("/dev/null", "it is a device, not a file"),
        ("/dev/zero", "it is a device, not a file"),
        (tmp_path / "pipe", "is empty"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / "x\0y", "cannot be read"),
    ):
        with pytest.raises(UserError, match=words):
            read_text(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_of_zips_that_do_not_open_are_a_sentence(tmp_path, method):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("a.json", json.dumps(ROWS))
    intact = file.read_bytes()
    assert read_json(file / "a.json") == ROWS
    with pytest.raises(UserError, match=r"the zip has no member b\.json"):
        read_json(file / "b.json")
    refused = 0
    for index in range(len(intact)):
        file.write_bytes(
            intact[:index] + bytes([intact[index] ^ 33]) + intact[index + 1 :]
        )
        try:
            assert read_json(file / "a.json") == ROWS
        except UserError:
            refused += 1
    assert refused > len(intact) // 3


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_flipped_bit_changes_an_array(tmp_path, save):
    file, arrays = tmp_path / "a.npz", {"a": np.arange(12.0).reshape(3, 4)}
    save(file, **arrays)
    intact, refused = file.read_bytes(), 0
    for index in range(len(intact)):
        file.write_bytes(
            intact[:index] + bytes([intact[index] ^ 1]) + intact[index + 1 :]
        )
        try:
            with read_errors(file):
                np.testing.assert_array_equal(read_arrays(file)["a"], arrays["a"])
        except UserError as error:
            refused += not isinstance(error.__cause__, AssertionError)
            assert not isinstance(error.__cause__, AssertionError), index
    assert refused > 96


def test_python_objects_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([None]))
    with pytest.raises(UserError, match="cannot be read"), read_errors("a.npz"):
        read_arrays(tmp_path / "a.npz")


def test_memory_and_interrupts_stay_what_they_are():
    for kind in (MemoryError, KeyboardInterrupt):
        with pytest.raises(kind), read_errors("f"):
            raise kind
    for kind in (RecursionError, OverflowError, AttributeError, LookupError):
        with pytest.raises(UserError, match="f cannot be read"), read_errors("f"):
            raise kind("x")


def test_numbers_are_finite_and_counts_whole():
    infinite = [float("nan"), float("inf"), float("-inf"), json.loads("1e400")]
    for value in (*infinite, "3", True, False, None, [], 10**400):
        assert not is_number(value) and whole_number(value) is None
    assert is_number(0.5) and whole_number(0.5) is None
    assert [whole_number(value) for value in (3, 3.0, -0.0, 10**30)] == [
        3,
        3,
        0,
        10**30,
    ]


def test_blank_texts_show_nothing():
    blank = [
        "",
        " \t\n\r\f",
        "\u00a0\u3000\u2028",
        "\u200b\u200d\ufeff\u2060",
        "\u00ad",
    ]
    for text in (*blank, "\0", "\u3164", "\u2800", "\ufe0f", "\u0301", "\u202e"):
        assert is_blank(text), ascii(text)
    for text in ("a", " .", "五", "🐕", "\u200ba", "0", "\ufffd", "ÿ", "\ue000"):
        assert not is_blank(text), ascii(text)
