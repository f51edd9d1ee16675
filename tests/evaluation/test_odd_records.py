"""Files of other programs: any value in any field gives one clear sentence.

Every value of a small file of each layout is replaced by odd ones, and left out.
"""

import copy
import json

import pytest

from vilem_jax.config.sources import JsonConfig
from vilem_jax.data.sources.json_file import JsonSource
from vilem_jax.data.video.clips import VideoClips
from vilem_jax.errors import UserError
from vilem_jax.evaluation.pair_files import PairImages, read_pairs
from vilem_jax.evaluation.winoground import read_winoground

ODD = [
    *(None, 3, -1, 1.5, True, "", "x", [], {}, [1], ["a"], [None], {"a": 1}, [[]]),
    *("/etc", "../..", "a\x00b", "\ud800", 10**30, float("nan")),
]
LEFT_OUT = object()
BOX = {"bbox_x": 1, "bbox_y": 1, "bbox_w": 2, "bbox_h": 2}
BOXED = {"image_path": "a", "true_caption": "x", "false_caption": "y", **BOX}
LAYOUTS = {
    "rows": [
        {"image": "a.jpg", "caption": ["x"], "image_id": 1, "split": "test"},
        {"image": "b.jpg", "caption": "z", "image_id": 2, "split": "val"},
    ],
    "karpathy": {
        "images": [
            {
                "filepath": "d",
                "filename": "a.jpg",
                "split": "test",
                "imgid": 1,
                "sentences": [{"raw": "a"}],
            },
            {"filename": "b.jpg", "split": "val", "sentences": [{"raw": "a"}]},
        ]
    },
    "coco": {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "caption": "x"}],
    },
    "clips": [
        {"video": "a.mp4", "caption": ["x"], "split": "test"},
        {"video": "b", "caption": "x", "split": "val"},
    ],
    "winoground": [
        {
            "id": number,
            **{"image_0": "a", "image_1": "b", "caption_0": "x", "caption_1": "y"},
            **{"collapsed_tag": "Object", "num_main_preds": 1},
        }
        for number in range(2)
    ],
    "sugarcrepe": {"0": {"filename": "a", "caption": "x", "negative_caption": "y"}},
    "relation": [BOXED | {"relation_name": "on"}],
    "attributes": [BOXED | {"attributes": ["a", "b"]}],
    "options": [{"image": "a", "caption_options": ["x", "y"]}],
    "hard": [{"image": "a", "correct_caption": "x", "hard_text_1": "y"}],
    "valse": {
        "k": {
            **{"dataset": "VQA", "image_file": "a", "caption": "x", "foil": "y"},
            "mturk": {"caption": 3, "foil": 0},
        }
    },
}


def read(layout, file, split=""):
    if layout in ("rows", "karpathy", "coco"):
        source = JsonSource(JsonConfig(path=str(file), split=split))
        return [source.has_image(index) for index in range(len(source))]
    if layout == "clips":
        clips = VideoClips(file, None, split)
        return [clips.file(index) for index in range(len(clips))]
    if layout == "winoground":
        return read_winoground(file.parent)
    return PairImages(file.parent, read_pairs(file)[0])


def write(layout, folder, content):
    file = folder / ("examples.jsonl" if layout == "winoground" else "file.json")
    in_lines = layout == "winoground" and isinstance(content, list)
    file.write_text(
        "\n".join(map(json.dumps, content)) if in_lines else json.dumps(content)
    )
    return file


def paths(content, path=()):
    yield path
    if isinstance(content, dict | list):
        keys = content if isinstance(content, dict) else range(len(content))
        for key in keys:
            yield from paths(content[key], (*path, key))


def changed(content, path, value):
    """`content` with `value` there, or without that place."""
    if not path:
        return value
    content = copy.deepcopy(content)
    inside = content
    for key in path[:-1]:
        inside = inside[key]
    if value is LEFT_OUT:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return content


@pytest.mark.parametrize("layout", LAYOUTS)
def test_odd_values_anywhere(tmp_path, layout):
    refused = 0
    for path in paths(LAYOUTS[layout]):
        for value in (*ODD, *([LEFT_OUT] if path else [])):
            file = write(layout, tmp_path, changed(LAYOUTS[layout], path, value))
            for split in ("", "test"):
                try:
                    read(layout, file, split)
                except UserError as error:
                    refused += 1
                    assert "\n" not in str(error), (path, value)
    assert refused > len(ODD)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "content",
    [
        bytes(range(256)) * 9,
        b"[" * 100_000,
        b'{"a":' * 3000,
        b'video_id,sentence\n"' + b"x" * 200_000,
        b"null",
        b"\x00",
        b'{"images": {}}',
    ],
    ids=["bytes", "list", "object", "quote", "null", "nul", "images"],
)
def test_files_of_something_else(tmp_path, layout, content):
    file = write(layout, tmp_path, [])
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(layout, file)
    assert file.name in str(error.value) and "\n" not in str(error.value)
