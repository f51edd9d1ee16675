"""Ids that stand for two images, and captions of images that are not there."""

import json

import pytest

from vilem_jax.data.sources.annotations import read_annotations
from vilem_jax.errors import UserError


def said(tmp_path, content):
    (tmp_path / "a.json").write_text(json.dumps(content))
    return read_annotations(str(tmp_path / "a.json"))


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
