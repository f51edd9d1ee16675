"""Files of caption pairs: SugarCrepe, ARO and VALSE, recognized by their fields."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.colours import colour_encoder, write_image
from vilem_jax.errors import UserError
from vilem_jax.evaluation.pair_files import (
    Boxed,
    PairImages,
    read_pairs,
)
from vilem_jax.evaluation.pairs import CaptionPair, evaluate_pairs


def write(path, entries):
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))


def entry(number):
    return {
        "filename": f"{number}.jpg",
        "caption": f"true {number}",
        "negative_caption": f"wrong {number}",
    }


def test_a_folder_gives_one_type_a_file(tmp_path):
    write(tmp_path / "swap_obj.json", {"0": entry(0), "1": entry(1)})
    write(tmp_path / "add_att.json", [entry(2)])
    pairs, _ = read_pairs(tmp_path)
    assert [pair.kind for pair in pairs] == ["add_att", "swap_obj", "swap_obj"]
    assert pairs[1] == CaptionPair("0.jpg", "true 0", "wrong 0", "swap_obj")
    assert read_pairs(tmp_path / "add_att.json")[0] == pairs[:1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ({}, "holds no caption pairs"),
        ({"7": {"filename": "a.jpg", "caption": "a"}}, "entry '7'.*negative_caption"),
        ({"7": entry(0) | {"caption": " "}}, "entry '7'.*'caption'"),
        ({"7": "a"}, "entry '7'"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, words):
    write(tmp_path / "swap.json", content)
    with pytest.raises(UserError, match=f"swap.json.*{words}"):
        read_pairs(tmp_path / "swap.json")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no \.json file"):
        read_pairs(tmp_path)
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        read_pairs(tmp_path / "none.json")


# ---- ARO ----

RELATION = {
    "image_id": "7",
    "image_path": "7.png",
    "bbox_x": 8,
    "bbox_y": 0,
    "bbox_w": 8,
    "bbox_h": 16,
    "relation_name": "on",
    "true_caption": "the red thing",
    "false_caption": "the blue thing",
}


def test_aro_relations_and_attributes(tmp_path):
    write(tmp_path / "visual_genome_relation.json", [RELATION])
    attribute = {k: v for k, v in RELATION.items() if k != "relation_name"}
    attribute |= {"attributes": ["white", "open"]}
    write(tmp_path / "visual_genome_attribution.json", [attribute])
    found, protocol = read_pairs(tmp_path)
    assert protocol["layouts"] == ["ARO"]
    image = Boxed("7.png", (8, 0, 8, 16))
    assert found == (
        CaptionPair(
            *(image, "the red thing", "the blue thing", "visual_genome_attribution"),
            group="white_open",
        ),
        CaptionPair(
            *(image, "the red thing", "the blue thing", "visual_genome_relation"),
            group="on",
        ),
    )


def test_only_the_box_is_looked_at(tmp_path):
    """Left blue, right red: the caption is true of the right half alone."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8, 2], pixels[:, 8:, 0] = 255, 255
    Image.fromarray(pixels).save(tmp_path / "7.png")
    whole = {k: v for k, v in RELATION.items() if not k.startswith("bbox")}
    other_half = RELATION | {"bbox_x": 0, "bbox_w": 8.4}
    write(tmp_path / "r.json", [RELATION, other_half, whole])
    pairs, _ = read_pairs(tmp_path / "r.json")
    images = PairImages(tmp_path, pairs)
    np.testing.assert_array_equal(images.read_image(pairs[0].image), pixels[:, 8:])
    np.testing.assert_array_equal(images.read_image(pairs[1].image), pixels[:, :8])
    encoder = colour_encoder()
    for pair, accuracy in zip(pairs, (100.0, 0.0, 0.0), strict=True):  # a tie last
        metrics = evaluate_pairs(encoder, [pair], images)
        assert metrics["accuracy"] == accuracy
    assert metrics["measured"]["image_size"] == 8 and metrics["images"] == 1


def test_a_box_outside_the_image_is_named(tmp_path):
    write_image(tmp_path / "7.png", (255, 0, 0))
    pairs = [CaptionPair(Boxed("7.png", (900, 0, 5, 5)), "a", "b", "r")]
    with pytest.raises(UserError, match=r"box \[900, 0, 5, 5\] of 7\.png lies outside"):
        PairImages(tmp_path, pairs).read_image(pairs[0].image)


@pytest.mark.parametrize(
    "entry",
    [
        {"image": "7.png", "caption_options": ["true", "x", "y"]},
        {
            "image": "7.png",
            "correct_caption": "true",
            "hard_text_1": "x",
            "hard_text_2": "y",
        },
    ],
)
def test_aro_order(tmp_path, entry):
    write(tmp_path / "coco_order.json", [entry])
    found, _ = read_pairs(tmp_path / "coco_order.json")
    assert found == (CaptionPair("7.png", "true", ("x", "y"), "coco_order"),)


# ---- VALSE ----


def foil(name, votes, **others):
    return {
        "dataset": "SWiG",
        "image_file": name,
        "caption": f"true of {name}",
        "foil": f"wrong of {name}",
        "mturk": {"foil": 0, "caption": votes, "other": 3 - votes},
    } | others


def test_valse_takes_what_two_annotators_agree_on(tmp_path):
    entries = {f"actions_{votes}": foil(f"{votes}.png", votes) for votes in range(4)}
    entries["no_votes"] = foil("n.png", 0)
    del entries["no_votes"]["mturk"]
    write(tmp_path / "actions.json", entries)
    found, protocol = read_pairs(tmp_path)
    assert protocol["layouts"] == ["VALSE"]
    assert [pair.image for pair in found] == [
        *("SWiG/2.png", "SWiG/3.png", "SWiG/n.png")
    ]
    assert found[0].caption == "true of 2.png"
    assert found[0].wrong_caption == "wrong of 2.png"
    (note,) = protocol["notes"]
    assert "actions: 2 entries left out" in note


@pytest.mark.parametrize("below", ["", "SWiG"])
def test_valse_images_in_a_folder_each_or_all_in_one(tmp_path, below):
    write(tmp_path / "actions.json", {"a": foil("3.png", 3)})
    write_image(tmp_path / "images" / below / "3.png", (1, 2, 3))
    pairs, _ = read_pairs(tmp_path / "actions.json")
    images = PairImages(tmp_path / "images", pairs)
    assert images.read_image(pairs[0].image)


def test_missing_images_of_pairs_are_counted(tmp_path):
    write(tmp_path / "swap.json", [entry(number) for number in range(4)])
    write_image(tmp_path / "0.jpg", (1, 2, 3))
    pairs, _ = read_pairs(tmp_path / "swap.json")
    with pytest.raises(UserError, match=r"3 of 4 images .* the first is 1\.jpg"):
        PairImages(tmp_path, pairs)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([RELATION | {"false_caption": 3}], "'false_caption'"),
        ([RELATION | {"bbox_w": "8"}], "'bbox_w' is no finite number: '8'"),
        ([{"image": "a", "caption_options": ["alone"]}], "true and one or more wrong"),
        ([foil("a", 3) | {"mturk": 3}], "no whole number of votes"),
        ([{"image": "a.jpg", "caption": ["one", "two"]}], "'filename'.*ARO.*VALSE"),
    ],
)
def test_what_fits_no_layout_is_named(tmp_path, content, words):
    write(tmp_path / "odd.json", content)
    with pytest.raises(UserError, match=rf"odd\.json, entry '0'.*{words}"):
        read_pairs(tmp_path / "odd.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "3", True, None, [1]])
def test_a_box_that_is_not_of_numbers_is_named(tmp_path, value):
    write(tmp_path / "odd.json", [RELATION, RELATION | {"bbox_y": value}])
    with pytest.raises(UserError, match=r"odd\.json, entry '1': 'bbox_y' is no finite"):
        read_pairs(tmp_path / "odd.json")


def test_votes_are_whole_numbers(tmp_path):
    for value in (True, 2.5, float("inf"), "3", None):
        write(tmp_path / "odd.json", [foil("a", 3) | {"mturk": {"caption": value}}])
        with pytest.raises(UserError, match="no whole number of votes"):
            read_pairs(tmp_path / "odd.json")
    write(tmp_path / "odd.json", [foil("a", 3) | {"mturk": {"caption": 3.0}}])
    assert len(read_pairs(tmp_path / "odd.json")[0]) == 1


def test_an_entry_that_is_there_twice_is_named(tmp_path):
    both = f'{{"7": {json.dumps(entry(0))}, "7": {json.dumps(entry(1))}}}'
    write(tmp_path / "odd.json", both)
    with pytest.raises(UserError, match=r"odd\.json: an object has the key '7' twice"):
        read_pairs(tmp_path / "odd.json")


def test_json_lines_are_entries(tmp_path):
    lines = [json.dumps(entry(0)), json.dumps(entry(1) | {"caption": "\u200b"})]
    write(tmp_path / "odd.json", "\n".join(lines))
    with pytest.raises(UserError, match=r"entry 'line 2': no text in 'caption'"):
        read_pairs(tmp_path / "odd.json")
    write(tmp_path / "odd.json", f"{lines[0]}\n{lines[0]}\n")
    assert len(read_pairs(tmp_path / "odd.json")[0]) == 2


def test_own_pairs_as_json_or_a_table(tmp_path):
    row = {"image": "a.jpg", "caption": "a dog, brown", "wrong_caption": "a cat"}
    write(tmp_path / "mine.json", [row, row | {"kind": "animal"}])
    text = 'image,caption,wrong_caption,kind\na.jpg,"a dog, brown",a cat,{}\n'
    write(tmp_path / "mine.csv", text.format("") + 'a.jpg,"a dog, brown",a cat,animal')
    expected = tuple(
        CaptionPair("a.jpg", "a dog, brown", "a cat", kind)
        for kind in ("mine", "animal")
    )
    for name in ("mine.json", "mine.csv"):
        pairs, protocol = read_pairs(tmp_path / name)
        assert pairs == expected and protocol["layouts"] == ["own"]
    write(tmp_path / "a.tsv", "image\tcaption\twrong_caption\na.jpg\ta dog\ta cat\n")
    assert read_pairs(tmp_path / "a.tsv")[0][0].wrong_caption == "a cat"
    for rows, words in (
        ("", "holds no caption pairs"),
        ("a.jpg,a dog,,\n", "entry 'line 2': no text in 'wrong_caption'"),
        ("a.jpg,a dog\n", "row at line 2 has 2 fields"),
    ):
        write(tmp_path / "b.csv", "image,caption,wrong_caption,kind\n" + rows)
        with pytest.raises(UserError, match=words):
            read_pairs(tmp_path / "b.csv")
