"""`vilem data check` finds what is wrong, and says nothing about what is right."""

import json

import pytest

from tests.data.make_files import make_image, pair_folder, write_json
from vilem_jax.config.sources import JsonConfig
from vilem_jax.data.check import (
    CAPTION_PROBLEMS,
    IMAGE_PROBLEMS,
    check,
    format_report,
    num_faults,
)
from vilem_jax.data.sources.source import open_source
from vilem_jax.data.tokenizer import Tokenizer, train_vocabulary


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_vocabulary([f"image said in way {i}" for i in range(50)], 120, folder)
    return Tokenizer(folder)


def open_json(path, **settings):
    return open_source(JsonConfig(name=path.parent.name, path=str(path), **settings))


def counts(report, split: str) -> dict[str, int]:
    found = report["splits"][split]
    problems = [*IMAGE_PROBLEMS, *CAPTION_PROBLEMS]
    return {key: found[key]["count"] for key in problems if found[key]["count"]}


def test_clean_data_is_clean(tmp_path, tokenizer):
    source = open_json(pair_folder(tmp_path, 4))
    report = check({"train": [source]}, tokenizer, 30)
    assert counts(report, "train") == {} and report["in_two_splits"] == []
    assert report["splits"]["train"]["captions"] == 8
    text = format_report(report)
    assert "4 images (4 decoded), 8 captions" in text and "\n" not in text
    assert num_faults(report) == 0


def test_every_problem_is_counted(tmp_path, tokenizer):
    rows = [
        {"image": "a.png", "caption": ["image one", "Image, one.", "?!"]},
        {"image": "b.png", "caption": ["image one", "way " * 40]},
        {"image": "gone.png", "caption": "in way 犬"},
        {"image": "corrupt.png", "caption": "said in way"},
        {"image": "copy.png", "caption": "犬"},
        {"image": "none.png", "caption": []},
    ]
    for name, content in (
        ("a.png", make_image(1)),
        ("b.png", make_image(2)),
        ("copy.png", make_image(1)),
        ("corrupt.png", make_image(3)[:50]),
    ):
        (tmp_path / name).write_bytes(content)
    report = check({"train": [open_json(write_json(tmp_path, rows))]}, tokenizer, 30)
    assert counts(report, "train") == {
        "missing_images": 1,
        "corrupt_images": 1,
        "double_images": 1,
        "empty_captions": 1,
        "duplicate_captions": 1,
        "shared_captions": 1,
        "truncated_captions": 1,
        "unknown_captions": 2,
        "uneditable_captions": 2,
    }
    found = report["splits"]["train"]
    assert found["tokens"]["max"] == 42
    assert found["missing_images"]["examples"][0].startswith("gone.png: ")
    assert found["notes"] == ["1 images without a caption left out"]
    assert (found["images"], found["images_checked"], found["images_decoded"]) == (
        5,
        5,
        3,
    )
    assert num_faults(report) == 3
    text = format_report(report)
    assert "1 images missing (20.00%)" in text and "copy.png = a.png" in text
    json.dumps(report)


def test_images_in_two_splits(tmp_path, tokenizer):
    train = pair_folder(tmp_path / "train", 6)
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "2.png").write_bytes(make_image(200))
    (tmp_path / "val" / "other.png").write_bytes(make_image(3))
    rows = [{"image": n, "caption": "said"} for n in ("2.png", "other.png")]
    sources = {
        "train": [open_json(train)],
        "validation": [open_json(write_json(tmp_path / "val", rows))],
    }
    (pair,) = check(sources, tokenizer, 30)["in_two_splits"]
    assert pair == {
        "splits": ["train", "validation"],
        "by_name": 1,
        "by_content": 1,
        "examples": {"by_name": ["2.png"], "by_content": ["3.png = other.png"]},
    }
    assert num_faults(check(sources, tokenizer, 30)) == 1
    text = format_report(check(sources, tokenizer, 30))
    assert "1 images in train and validation with the same file" in text


def test_a_sample_of_the_images(tmp_path, tokenizer):
    source = open_json(pair_folder(tmp_path, 12))
    report = check({"train": [source]}, tokenizer, 30, max_images=3)
    assert report["splits"]["train"]["images_decoded"] == 3
    assert report["splits"]["train"]["captions"] == 24


def test_long_data_is_read_in_chunks(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("vilem_jax.data.check._CHUNK", 2)
    source = open_json(pair_folder(tmp_path, 7))
    report = check({"train": [source, source]}, tokenizer, 30)
    assert counts(report, "train") == {"double_images": 7, "shared_captions": 14}


@pytest.mark.realdata
def test_photos(shared_folder, tokenizer):
    photos = open_json(shared_folder / "data" / "photos" / "captions.json")
    report = check({"test": [photos]}, tokenizer, 300)
    assert set(counts(report, "test")) <= {"unknown_captions"}
