"""JSON annotations in every layout, images from folders and zips."""

import json
import pickle
import shutil

import numpy as np
import pytest

from tests.data.make_files import make_image, pair_folder, write_json, write_zip
from vilem_jax.config.sources import JsonConfig, ScenesConfig
from vilem_jax.data.images import decode
from vilem_jax.data.sources.packed_text import (
    PackedSource,
    PackedTexts,
    pack_records,
)
from vilem_jax.data.sources.source import Source, caption_counts, open_source
from vilem_jax.errors import UserError

EXPECTED = [("a.png", ("a dog", "one dog")), ("b.png", ("a cat",))]
LAYOUTS = {
    "albef_pretrain": [
        {"image": "a.png", "caption": ["a dog", "one dog"]},
        {"image": "b.png", "caption": "a cat"},
    ],
    "albef_finetune": [
        {"image": "a.png", "caption": "a dog", "image_id": "x_1"},
        {"image": "b.png", "caption": "a cat", "image_id": "x_2"},
        {"image": "a.png", "caption": "one dog", "image_id": "x_1"},
    ],
    "evaluation": [
        {"image": "a.png", "caption": ["a dog", "one dog"]},
        {"image": "b.png", "caption": ["a cat"]},
    ],
    "karpathy": {
        "dataset": "coco",
        "images": [
            {
                "filename": "a.png",
                "split": "train",
                "sentences": [{"raw": "a dog", "sentid": 1}, {"raw": "one dog"}],
            },
            {"filename": "b.png", "split": "restval", "sentences": [{"raw": "a cat"}]},
        ],
    },
    "coco": {
        "info": {},
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}],
        "annotations": [
            {"image_id": 3, "caption": "a cat", "id": 1},
            {"image_id": 7, "caption": "a dog", "id": 2},
            {"image_id": 7, "caption": "one dog", "id": 3},
        ],
    },
}


def records(source) -> list[tuple[str, tuple[str, ...]]]:
    return [(source.image_name(i), source.captions(i)) for i in range(len(source))]


def config(path, **settings) -> JsonConfig:
    return JsonConfig(name="pairs", path=str(path), **settings)


@pytest.fixture
def images(tmp_path):
    for name, value in (("a.png", 10), ("b.png", 20)):
        (tmp_path / name).write_bytes(make_image(value))
    return tmp_path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_records(images, layout):
    source = open_source(config(write_json(images, LAYOUTS[layout])))
    assert isinstance(source, Source) and source.name == "pairs"
    assert records(source) == EXPECTED
    assert caption_counts(source).tolist() == [2, 1]
    assert decode(source.read_image(1))[0, 0, 0] == 20


def test_splits(images):
    path = write_json(images, LAYOUTS["karpathy"])
    assert len(open_source(config(path))) == 2
    assert records(open_source(config(path, split="restval"))) == EXPECTED[1:]
    # Karpathy's training set of COCO is both.
    assert records(open_source(config(path, split="train"))) == EXPECTED
    assert records(open_source(config(path, split="restval+train"))) == EXPECTED
    rows = "1 of 'train', 1 of 'restval'"
    with pytest.raises(UserError, match=f"no split 'test'; rows: {rows}"):
        open_source(config(path, split="test"))
    with pytest.raises(UserError, match="rows: 2 without a split"):
        open_source(config(write_json(images, LAYOUTS["coco"]), split="val"))


def test_the_first_images(images):
    path = write_json(images, LAYOUTS["coco"])
    assert records(open_source(config(path, num_images=1))) == EXPECTED[:1]


def test_all_in_one_zip(images):
    file = write_zip(
        images / "all.zip",
        {
            "data/captions.json": json.dumps(LAYOUTS["evaluation"]).encode(),
            "a.png": make_image(10),
            "b.png": make_image(20),
        },
    )
    source = open_source(config(file / "data" / "captions.json"))
    assert records(source) == EXPECTED
    assert decode(source.read_image(1))[0, 0, 0] == 20
    copy = pickle.loads(pickle.dumps(source))  # with a handle open
    assert copy.read_image(0) == source.read_image(0)
    with pytest.raises(UserError, match=r"no member other.json"):
        open_source(config(file / "other.json"))


@pytest.mark.parametrize("packed", [False, True])
def test_paths_of_another_machine(tmp_path, packed):
    rows = [
        {"image": f"/export/share/coco/train/{i}.png", "caption": "x"}
        for i in range(30)
    ]
    members = {f"train/{i}.png": make_image(i) for i in range(29)}
    if packed:
        images = write_zip(tmp_path / "images.zip", members)
    else:
        images = tmp_path / "images"
        (images / "train").mkdir(parents=True)
        for name, content in members.items():
            (images / name).write_bytes(content)
    path = write_json(tmp_path, rows)
    source = open_source(config(path, images=str(images)))
    assert decode(source.read_image(28))[0, 0, 0] == 28
    with pytest.raises(OSError):  # missing, and never another one of the same name
        source.read_image(29)


def test_captions_keep_any_json_text(images):
    rows = [{"image": "a.png", "caption": ["", "\ud83d", "é\u0000🐕"]}]
    source = open_source(config(write_json(images, rows)))
    assert source.captions(0) == ("\ud83d", "é\u0000🐕")
    assert source.notes == ("1 blank captions left out",)


def test_wrong_bytes_in_the_file_cost_one_caption(images):
    path = images / "captions.json"
    path.write_bytes(b'\xef\xbb\xbf[{"image": "a.png", "caption": "a \xff dog"}]')
    assert open_source(config(path)).captions(0) == ("a \ufffd dog",)


def test_images_without_captions_are_left_out_and_said(images):
    rows = [*LAYOUTS["evaluation"], {"image": "c.png", "caption": []}]
    source = open_source(config(write_json(images, rows)))
    assert len(source) == 2 and "1 images without" in source.notes[0]


ROW = {"image": "a.png", "caption": "x"}
WRONG = {
    "not_json": ('[{"image": "a.png",\n "caption": }]', "not JSON: line 2, column 13"),
    "no_text": ("  \n", "is empty"),
    "no_records": ("[]", "holds no records"),
    "no_images": ('{"images": []}', "'images' is empty"),
    "other_object": ('{"a": 1}', "none of the known layouts"),
    "number": ("3", "none of the known layouts"),
    "no_caption": (
        [ROW, {"image": "b.png"}],
        r"record 1 has no 'caption' \(it has: im",
    ),
    "no_image": ([ROW, {"caption": "b"}], "record 1 has no 'image'"),
    "no_object": ([ROW, 5], "record 1 is 5, not an object"),
    "caption_number": ([{"image": "a", "caption": 3}], "'caption' = 3, which is not a"),
    "caption_null": ([{"image": "a", "caption": [None]}], r"'caption' = \[None\]"),
    "split_list": ([ROW | {"split": ["train"]}], "'split' = "),
    "karpathy": ({"images": [{"filename": "a"}]}, r"images\[0\] has no 'sentences'"),
    "karpathy_raw": (
        {"images": [{"filename": "a", "sentences": [{"tokens": []}]}]},
        r"images\[0\].sentences\[0\] has no 'raw'",
    ),
    "coco_file": ({"images": [{"id": 1}], "annotations": [1]}, "has no 'file_name'"),
    "coco_id": (
        {
            "images": [{"id": 1, "file_name": "a"}],
            "annotations": [{"image_id": 2, "caption": "x"}],
        },
        r"annotations\[0\] has 'image_id' = 2",
    ),
    "coco_same_id": (
        {
            "images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}],
            "annotations": [{"image_id": 1, "caption": "x"}],
        },
        r"images\[1\]: id 1 stands for two images, a and b",
    ),
    "all_empty": ([{"image": "a", "caption": []}], "no image has a caption"),
    "deep": ("[" * 200_000, "nested too deeply|not JSON"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_annotations_are_one_sentence(images, case):
    content, sentence = WRONG[case]
    path = images / "captions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=sentence) as raised:
        open_source(config(path))
    assert "captions.json" in str(raised.value) and "\n" not in str(raised.value)


def test_missing_files_are_one_sentence(images):
    path = write_json(images, LAYOUTS["coco"])
    with pytest.raises(
        UserError, match=r"annotation file .*nowhere.json does not exist"
    ):
        open_source(config(images / "nowhere.json"))
    with pytest.raises(UserError, match="is a folder"):
        open_source(config(images))
    with pytest.raises(UserError, match="needs a `path`"):
        open_source(config(""))
    with pytest.raises(UserError, match="nowhere does not exist"):
        open_source(config(path, images=str(images / "nowhere")))
    with pytest.raises(UserError, match="neither a folder nor an intact zip"):
        open_source(config(path, images=str(path)))


def test_missing_and_corrupt_members_are_os_errors(tmp_path):
    rows = [{"image": f"{i}.png", "caption": "x"} for i in range(3)]
    file = write_zip(tmp_path / "p.zip", {f"{i}.png": make_image(i) for i in range(2)})
    content = bytearray(file.read_bytes())
    offset = content.index(make_image(1)) + 40
    content[offset] ^= 255  # its check sum no longer holds
    file.write_bytes(content)
    source = open_source(config(write_json(tmp_path, rows), images=str(file)))
    assert source.read_image(0) == make_image(0)
    for index in (1, 2):
        with pytest.raises(OSError):
            source.read_image(index)


def test_packed_texts_are_a_list():
    texts = ["", "é", "x" * 300, "", "\ud800"]
    packed = PackedTexts(texts)
    assert list(packed) == texts and len(packed) == 5
    assert list(PackedTexts.joined([packed, PackedTexts(), packed])) == texts * 2
    assert list(PackedTexts.from_arrays(*packed.arrays())) == texts
    assert packed[1:4] == texts[1:4]
    with pytest.raises(IndexError):
        packed[5]


def test_packed_records_survive_storing(tmp_path):
    packed = pack_records([("a", ["x", "y"]), ("b", []), ("c", ["z"])])
    np.savez(tmp_path / "packed.npz", allow_pickle=False, **packed)
    with np.load(tmp_path / "packed.npz") as stored:
        both = [dict(stored), pack_records([]), packed]
    source = PackedSource("both", "both.json", both)
    assert list(source.names) == ["a", "c", "a", "c"]
    assert [source.captions(i) for i in range(4)] == [("x", "y"), ("z",)] * 2
    assert source.notes == ("2 images without a caption left out",)
    assert len(PackedSource("three", "both.json", both, 3)) == 3
    with pytest.raises(UserError, match=r"none\.json: no image has a caption"):
        PackedSource("none", "none.json", [pack_records([])])


def test_scenes_open_as_any_source():
    scenes = ScenesConfig(name="s", split="test", num_images=3)
    source = open_source(scenes)
    assert len(source) == 3 and source.read_image(0).dtype == np.uint8


def test_a_folder_may_move(tmp_path):
    path = pair_folder(tmp_path / "here", 3)
    source = open_source(config(path))
    shutil.rmtree(tmp_path / "here")
    with pytest.raises(FileNotFoundError):
        source.read_image(0)
    assert source.captions(0) == ("image 0 said in way 0", "image 0 said in way 1")


@pytest.mark.realdata
def test_flickr8k(shared_folder):
    file = shared_folder / "data" / "flickr8k-128.zip"
    counts = {"train": 6000, "val": 1000, "test": 1000}
    for split, count in counts.items():
        source = open_source(config(file / "captions.json", split=split))
        assert len(source) == count and caption_counts(source).sum() == 5 * count
        assert decode(source.read_image(count - 1)).shape == (128, 128, 3)


@pytest.mark.realdata
def test_photos(shared_folder):
    source = open_source(config(shared_folder / "data" / "photos" / "captions.json"))
    assert len(source) == 13 and caption_counts(source).sum() == 26
    for i in range(13):
        decode(source.read_image(i))


def test_blank_captions_are_left_out_and_counted(images):
    rows = [
        {"image": "a.png", "caption": ["", "a dog", " \u200b"]},
        {"image": "b.png", "caption": "\u3000\ufeff"},
    ]
    source = open_source(config(write_json(images, rows)))
    assert records(source) == [("a.png", ("a dog",))]
    assert source.notes == (
        "1 images without a caption left out",
        "3 blank captions left out",
    )
    with pytest.raises(UserError, match=r"no image has a caption; .*; 1 blank"):
        open_source(config(write_json(images, rows[1:])))
