"""Images of the embedded data set: any size, every word visible, exported whole."""

import json
from itertools import permutations

import numpy as np
import pytest
from PIL import Image

from vilem_jax.data.scenes import drawing, layout
from vilem_jax.data.scenes.export import export
from vilem_jax.data.scenes.layout import Scene, SceneObject
from vilem_jax.data.scenes.source import SMALLEST_SIZE, ScenesSource
from vilem_jax.errors import UserError


def test_an_image_does_not_depend_on_caches():
    scene = ScenesSource("test", seed=1).scene(0)
    image = drawing.draw(scene, 64)
    drawing._sprite.cache_clear()
    drawing._tile.cache_clear()
    np.testing.assert_array_equal(drawing.draw(scene, 64), image)


@pytest.mark.parametrize("size", [32, 100, 128])
def test_any_size_shows_the_same_image(size):
    source = ScenesSource("train", size=size, num_images=4)
    reference = ScenesSource("train", size=64, num_images=4)
    for index in range(4):
        image = source.read_image(index)
        assert image.shape == (size, size, 3)
        small = [
            np.asarray(Image.fromarray(p).resize((16, 16), Image.Resampling.BOX), int)
            for p in (image, reference.read_image(index))
        ]
        assert abs(small[0] - small[1]).mean() < 16


def test_every_word_for_an_object_changes_the_image():
    fields = {
        "shape": layout.SHAPES,
        "colour": layout.COLOURS,
        "size": layout.SIZES,
        "texture": layout.TEXTURES,
    }
    base = {"shape": "star", "colour": "pink", "size": "small", "texture": "dotted"}
    for field, values in fields.items():
        images = [
            drawing.draw(
                Scene((SceneObject(**{**base, field: value}, x=30, y=30),), "wood")
            )
            for value in values
        ]
        for one, other in permutations(images, 2):
            assert abs(one.astype(int) - other).sum() > 3000


def test_export_has_images_captions_and_hard_pairs(tmp_path):
    folder = export(tmp_path / "out", seed=2, num_train=3, num_held_out=12)
    for split, number in (("train", 3), ("validation", 12), ("test", 12)):
        source = ScenesSource(split, seed=2, num_images=number)
        rows = json.loads((folder / f"{split}.json").read_text())
        assert len(rows) == number
        for index, row in enumerate(rows):
            assert row["caption"] == list(source.captions(index))
            image = np.asarray(Image.open(folder / row["image"]))
            np.testing.assert_array_equal(image, source.read_image(index))
    rows = json.loads((folder / "hard_test" / "swap.json").read_text())
    assert set(rows["0"]) == {"filename", "caption", "negative_caption"}
    assert (folder / rows["0"]["filename"]).exists()
    assert list(tmp_path.iterdir()) == [folder]
    with pytest.raises(UserError, match="not an empty folder"):
        export(folder, num_train=1, num_held_out=1)


@pytest.mark.parametrize("background", layout.BACKGROUNDS)
def test_the_smallest_image_has_any_background(background):
    item = SceneObject("star", "pink", "small", "dotted", x=30, y=30)
    image = drawing.draw(Scene((item,), background), SMALLEST_SIZE)
    assert image.shape == (SMALLEST_SIZE, SMALLEST_SIZE, 3)
