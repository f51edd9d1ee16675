"""Winoground's scores on matrices made by hand, and its folder."""

import json
import zipfile

import numpy as np
import pytest

from tests.evaluation.colours import colour_encoder, write_image
from vilem_jax.errors import UserError
from vilem_jax.evaluation import winoground
from vilem_jax.evaluation.winoground import (
    evaluate_winoground,
    read_winoground,
    winoground_metrics,
)

# s(caption, image): rows are captions. What text, image and group say of it.
CASES = [
    ([[2, 1], [1, 2]], (1, 1, 1)),
    ([[1, 2], [2, 1]], (0, 0, 0)),
    ([[3, 2], [1, 4]], (1, 1, 1)),
    ([[2, 3], [1, 4]], (1, 0, 0)),  # caption 0 prefers image 1
    ([[2, 1], [3, 4]], (0, 1, 0)),  # image 0 prefers caption 1
    ([[1, 1], [1, 1]], (0, 0, 0)),  # a collapsed model knows nothing
    ([[2, 1], [2, 3]], (0, 1, 0)),  # a tie for image 0
    ([[2, 2], [1, 3]], (1, 0, 0)),  # a tie for caption 0
    ([[2, 1], [1, 1]], (0, 0, 0)),  # ties for image 1 and caption 1
]


@pytest.mark.parametrize(("scores", "expected"), CASES)
def test_scores_by_hand(scores, expected):
    found = winoground_metrics(np.array([scores]), ["Object"], [1])
    assert tuple(found[kind] / 100 for kind in ("text", "image", "group")) == expected


def test_any_matrix_is_scored_as_the_definition_says():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, (300, 2, 2))
    text = image = group = 0
    for s in scores:
        is_text = s[0][0] > s[1][0] and s[1][1] > s[0][1]
        is_image = s[0][0] > s[0][1] and s[1][1] > s[1][0]
        text, image = text + is_text, image + is_image
        group += is_text and is_image
    found = winoground_metrics(scores, ["Both"] * 300, [2] * 300)
    for kind, count in (("text", text), ("image", image), ("group", group)):
        assert 0 < count < 300
        assert found[kind] == pytest.approx(100 * count / 300)


def test_scores_by_tag_and_by_number_of_predicates():
    scores = np.array([scores for scores, _ in CASES])
    tags = ["Object", "Object", "Relation", "Relation", *["Both"] * 5]
    predicates = [1, 2, 1, 1, 2, 2, 2, 2, 2]
    found = winoground_metrics(scores, tags, predicates)
    assert found["text"] == pytest.approx(400 / 9) and found["examples"] == 9
    assert found["by_tag"]["Object"] == {
        **{"text": 50.0, "image": 50.0, "group": 50.0},
        "examples": 2,
    }
    assert found["by_tag"]["Relation"]["text"] == 100.0
    assert found["by_tag"]["Both"]["image"] == 40.0
    assert found["by_predicates"]["1"]["examples"] == 3
    assert found["by_predicates"]["2"]["group"] == 0.0


def test_nothing_and_nan_are_refused():
    with pytest.raises(UserError, match="no example"):
        winoground_metrics(np.zeros((0, 2, 2)), [], [])
    with pytest.raises(UserError, match="not finite"):
        winoground_metrics(np.full((1, 2, 2), np.nan), ["Both"], [1])
    with pytest.raises(ValueError, match="must be"):
        winoground_metrics(np.zeros((4, 2)), [""] * 4, [1] * 4)


# ---- the data set's folder ----


def record(number, first="red thing", second="blue thing", **others):
    return {
        "id": number,
        "image_0": f"ex_{number}_img_0",
        "image_1": f"ex_{number}_img_1",
        "caption_0": first,
        "caption_1": second,
        "tag": "Noun",
        "secondary_tag": "",
        "num_main_preds": 1 + number % 2,
        "collapsed_tag": "Object" if number < 2 else "Relation",
    } | others


def write_examples(folder, records):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [one if isinstance(one, str) else json.dumps(one) for one in records]
    (folder / "examples.jsonl").write_text("\n".join(lines) + "\n")


def write_images(folder, number, first=(255, 0, 0), second=(0, 0, 255)):
    write_image(folder / "images" / f"ex_{number}_img_0.png", first)
    write_image(folder / "images" / f"ex_{number}_img_1.png", second)


def measure(folder):
    return evaluate_winoground(colour_encoder(text_length=8), folder)


@pytest.mark.parametrize("below", ["", "data"])
def test_a_model_is_measured_from_the_folder(tmp_path, below):
    folder = tmp_path / below
    swapped = record(2, "blue thing", "red thing")  # of the images of `record`
    write_examples(folder, [record(0), record(1, second="red thing"), swapped])
    for number in range(3):
        write_images(folder, number)
    metrics = measure(tmp_path)
    assert metrics["text"] == metrics["group"] == pytest.approx(100 / 3)
    assert metrics["by_tag"]["Object"]["text"] == 50.0  # captions that are equal: a tie
    assert metrics["by_tag"]["Relation"]["image"] == 0.0
    protocol = metrics["protocol"]
    assert (protocol["images"], protocol["captions"]) == (6, 6)
    assert "3 examples, not the benchmark's 400" in protocol["notes"][0]
    assert {"encode_images", "encode_texts", "similarity", "ranking"} <= set(
        metrics["measured"]["seconds"]
    )


def test_scores_are_of_captions_with_images(tmp_path, monkeypatch):
    """In float32, in which scores that differ by the order of a sum are ties."""
    scores = []

    def keep(found, *_):
        scores.append(found)
        return {}

    monkeypatch.setattr(winoground, "winoground_metrics", keep)
    write_examples(tmp_path, [record(0, "red thing", "red blue")])
    write_images(tmp_path, 0)
    measure(tmp_path)
    (found,) = scores
    # A second word weighs half; the images are red and blue.
    length = np.sqrt(1 + 0.25)
    expected = [[[1.0, 0.0], [1 / length, 0.5 / length]]]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32


def test_images_in_the_zip_they_come_in(tmp_path):
    write_examples(tmp_path, [record(0)])
    write_images(tmp_path / "elsewhere", 0)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for file in (tmp_path / "elsewhere" / "images").iterdir():
            archive.write(file, f"images/{file.name}")
    assert measure(tmp_path)["text"] == 100.0


def test_missing_images_are_counted(tmp_path):
    write_examples(tmp_path, [record(0), record(1)])
    with pytest.raises(UserError, match="4 of 4 images of Winoground are missing"):
        measure(tmp_path)
    write_images(tmp_path, 0)
    with pytest.raises(UserError, match=r"2 of 4 .* images/ex_1_img_0\.png"):
        measure(tmp_path)
    for index in (0, 1):
        (tmp_path / "images" / f"ex_1_img_{index}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"ex_1_img_0\.png of Winoground cannot"):
        measure(tmp_path)


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "is empty"),
        ([record(0), "{"], "is not JSON: line 2"),
        ([record(0), record(0)], "line 2: id 0 is that of line 1"),
        ([record(0, caption_1=None)], "line 1 has no text in 'caption_1'"),
        ([record(0, num_main_preds="1")], "no whole number in 'num_main_preds'"),
        (["[]"], "holds no examples"),
        (["{}"], "line 1 has no text in"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, records, words):
    write_examples(tmp_path, records)
    with pytest.raises(UserError, match=words):
        read_winoground(tmp_path)


def test_a_folder_without_the_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no examples\.jsonl"):
        read_winoground(tmp_path)


def test_lines_end_at_newlines_alone(tmp_path):
    caption = "a\u2028red\u2029\x85square"
    lines = [
        json.dumps(record(number, caption_0=caption), ensure_ascii=False)
        for number in range(2)
    ]
    write_examples(tmp_path, [*lines, "", ""])
    assert [one.captions[0] for one in read_winoground(tmp_path)] == [caption] * 2


def test_ids_are_compared_by_their_decimals(tmp_path):
    for ids in ((1, "1"), (1.0, 1)):
        write_examples(tmp_path, [record(0, id=number) for number in ids])
        with pytest.raises(UserError, match="line 2: id 1 is that of line 1"):
            read_winoground(tmp_path)
    write_examples(tmp_path, [record(0, id=one) for one in (1, "0001", None, None)])
    assert len(read_winoground(tmp_path)) == 4
