"""Splits of one's own data: those of the file, or parts by a hash."""

import json

import pytest
from PIL import Image

from vilem_jax.data.own import own_sources
from vilem_jax.data.sources.source import open_source

NUM_IMAGES = 40


@pytest.fixture
def make_data(tmp_path):
    def make(*splits: str) -> str:
        for i in range(NUM_IMAGES):
            Image.new("RGB", (2, 2)).save(tmp_path / f"{i}.png")
        rows = [
            {"image": f"{i}.png", "caption": f"image {i}"}
            | ({"split": splits[i % len(splits)]} if splits else {})
            for i in range(NUM_IMAGES)
        ]
        (tmp_path / "captions.json").write_text(json.dumps(rows))
        return str(tmp_path / "captions.json")

    return make


def names(sources) -> dict[str, set[str]]:
    opened = {part: open_source(one["mine"]) for part, one in sources.items()}
    return {
        part: {source.image_name(i) for i in range(len(source))}
        for part, source in opened.items()
    }


def test_splits_of_the_file_are_taken(make_data):
    sources = own_sources(make_data("train", "validation", "test"))
    found = {part: one["mine"].split for part, one in sources.items()}
    assert found == {"train": "train", "validation": "validation", "test": "test"}
    assert own_sources(make_data("train", "val")).keys() == {"train", "validation"}


@pytest.mark.parametrize("splits", [(), ("train", "test"), ("train",)])
def test_what_lacks_is_held_out_by_a_hash_of_the_names(make_data, splits):
    parts = names(own_sources(make_data(*splits)))
    assert not parts["train"] & parts["validation"]
    assert len(parts["train"]) > 10 and parts["validation"]
    if not splits:
        assert not parts["test"] & (parts["train"] | parts["validation"])
    if splits != ("train",):
        assert len(set.union(*parts.values())) == NUM_IMAGES


def test_a_part_is_a_source_like_any_other(make_data):
    source = open_source(own_sources(make_data())["validation"]["mine"])
    assert list(source.caption_counts()) == [1] * len(source)
    assert source.has_image(0) and source.near_image(0) == source.image_name(0)
    assert source.captions(0) == (f"image {source.image_name(0)[:-4]}",)
