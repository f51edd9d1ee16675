"""Ids that stand for two images, and captions of images that are not there."""

import json

import pytest

from vilem_jax.data.sources.annotations import read_annotations
from vilem_jax.errors import UserError


def said(tmp_path, content):
    (tmp_path / "a.json").write_text(json.dumps(content))
    return read_annotations(str(tmp_path / "a.json"))[0]


def coco(*images, captions=((1, "a dog"),)):
    return {
        "images": [{"id": number, "file_name": name} for number, name in images],
        "annotations": [
            {"image_id": number, "caption": text} for number, text in captions
        ],
    }


def karpathy(*images):
    return {
        "images": [
            {"imgid": number, "filename": name, "sentences": [{"raw": "a dog"}]}
            for number, name in images
        ]
    }


def rows(*images):
    return [{"image_id": n, "image": name, "caption": "a dog"} for n, name in images]


@pytest.mark.parametrize("layout", [coco, karpathy, rows])
def test_an_id_of_two_images_is_named(tmp_path, layout):
    with pytest.raises(UserError, match=r"a\.json.*1 stands for .* x\.jpg and y\.jpg"):
        said(tmp_path, layout((1, "x.jpg"), (2, "z.jpg"), (1, "y.jpg")))
    assert "x.jpg" in said(tmp_path, layout((1, "x.jpg"), (2, "y.jpg")))


def test_rows_of_one_image_may_repeat_its_id(tmp_path):
    assert said(tmp_path, rows((1, "x.jpg"), (1, "x.jpg"))) == {"x.jpg": ["a dog"] * 2}


def test_a_caption_of_an_image_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"annotations\[1\] has 'image_id' = 7"):
        said(tmp_path, coco((1, "x.jpg"), captions=((1, "a dog"), (7, "a cat"))))


@pytest.mark.parametrize("layout", [coco, karpathy, rows])
def test_an_id_is_compared_by_its_decimals(tmp_path, layout):
    for first, second in ((1, "1"), (1.0, 1), ("1", 1.0), (10**30, str(10**30))):
        with pytest.raises(UserError, match="stands for two images"):
            said(tmp_path, layout((first, "x.jpg"), (second, "y.jpg")))
    for second in ("0001", "1.0", " 1", "", "a", "-1"):
        assert len(said(tmp_path, layout((1, "x.jpg"), (second, "y.jpg")))) == 2
    for odd in (True, 1.5, [1], {}, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"whole number or a text"):
            said(tmp_path, layout((odd, "x.jpg")))


def test_a_caption_finds_its_image_by_any_spelling_of_the_id(tmp_path):
    content = coco((7, "x.jpg"), ("8", "y.jpg"), captions=(("7", "a"), (8.0, "b")))
    assert said(tmp_path, content) == {"x.jpg": ["a"], "y.jpg": ["b"]}


@pytest.mark.parametrize("layout", [karpathy, rows])
def test_null_is_no_id(tmp_path, layout):
    assert len(said(tmp_path, layout((None, "x.jpg"), (None, "y.jpg")))) == 2


@pytest.mark.parametrize(
    ("split", "others", "note"),
    [
        ("train", ["training", "training", "Train"], "2 of 'training', 1 of 'Train'"),
        ("train", ["tain", None, ""], "1 of 'tain', 2 without a split"),
        ("val", ["validation"], "1 of 'validation'"),
        ("test+val", ["test2"], "1 of 'test2'"),
        ("train", ["val", "test", "restval", "dev"], ""),
        ("test", ["val", "train", "restval"], ""),
        ("", ["val", None, "x"], ""),
    ],
)
def test_rows_of_a_misspelled_split_are_counted(tmp_path, split, others, note):
    splits = [*split.split("+"), *others]
    content = [
        {"image": f"{i}.jpg", "caption": "a dog", "split": name}
        for i, name in enumerate(splits)
    ]
    (tmp_path / "a.json").write_text(json.dumps(content))
    notes = read_annotations(str(tmp_path / "a.json"), split)[1]
    assert [line.rpartition(": ")[2] for line in notes] == [note] * bool(note)


def test_json_lines_and_one_object_are_annotations(tmp_path):
    record = {"image": "x.jpg", "caption": "a\u2028dog"}
    (tmp_path / "a.json").write_text(json.dumps(record, indent=1))
    assert read_annotations(str(tmp_path / "a.json"))[0] == {"x.jpg": ["a\u2028dog"]}
    (tmp_path / "a.json").write_text(json.dumps(record) + '\n{"image": "y"}\n')
    with pytest.raises(UserError, match=r"a\.json: line 2 has no 'caption'"):
        read_annotations(str(tmp_path / "a.json"))


def test_captions_in_another_encoding_are_counted(tmp_path):
    rows = [{"image": f"{i}.png", "caption": text} for i, text in enumerate(("é", "e"))]
    file = tmp_path / "a.json"
    for encoding, count in (("utf-8", 0), ("utf-16", 0), ("cp1252", 1)):
        file.write_bytes(json.dumps(rows, ensure_ascii=False).encode(encoding))
        notes = read_annotations(str(file))[1]
        assert len(notes) == count
    assert "1 captions with bytes that are not UTF-8" in notes[0]
