"""The embedded data set `scenes`: drawn images with captions, generated from a seed.

Train, validation and test share no scene and no caption. Within validation, and
within test, each caption is true of exactly one image: checked by meaning, not by
comparing strings. Generating scenes and captions takes seconds; an image is drawn when
it is first read. See `docs/scenes.md`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import numpy as np

from vilem_jax.config.sources import ScenesConfig
from vilem_jax.data.scenes import layout
from vilem_jax.data.scenes.drawing import draw
from vilem_jax.data.scenes.grammar import Meaning, describe, holds, look, read
from vilem_jax.data.scenes.layout import CANVAS, Rng, Scene
from vilem_jax.errors import UserError

NUM_HELD_OUT = 500  # images of validation, and of test
NUM_TRAIN = 6000
SMALLEST_SIZE = 16  # pixels; in smaller images, shapes look alike


class _CaptionedScene(NamedTuple):
    scene: Scene
    captions: tuple[str, ...]


_Split = tuple[_CaptionedScene, ...]


@dataclass(frozen=True)
class ScenesSource:
    """One split of `scenes`, as a source of images and captions.

    Holds only its arguments, so sending it to worker processes is cheap. The scenes are
    generated at the first use in each process, and kept.

    Args:
        split: "train", "validation" or "test".
        seed: 0 or more; each seed gives another data set.
        size: side of the images in pixels, at least 16.
        num_images: 0 for 6,000 (train) or 500. The first n images of a split are the
            same for every `num_images`.
        name: for messages and records; "" for scenes/SPLIT.

    Raises:
        UserError: if an argument is outside its range.
    """

    split: str
    seed: int = 0
    size: int = CANVAS
    num_images: int = 0
    name: str = ""

    def __post_init__(self):
        if self.split not in layout.SPLIT_CODES:
            raise UserError(
                f"scenes has no split {self.split!r}: use train, validation or test"
            )
        if self.seed < 0:
            raise UserError(f"the seed of scenes is {self.seed}: use 0 or more")
        if self.size < SMALLEST_SIZE:
            raise UserError(
                f"images of scenes cannot be {self.size} pixels wide: "
                f"use {SMALLEST_SIZE} or more"
            )
        if self.num_images < 0:
            raise UserError(f"scenes with {self.num_images} images: use 1 or more")
        if self.split != "train" and self.num_images > NUM_HELD_OUT:
            raise UserError(
                f"the {self.split} split of scenes has {NUM_HELD_OUT} images, not "
                f"{self.num_images}: use {NUM_HELD_OUT} or fewer, or another seed"
            )
        # Frozen, hence `object.__setattr__`.
        default = NUM_TRAIN if self.split == "train" else NUM_HELD_OUT
        object.__setattr__(self, "num_images", self.num_images or default)
        object.__setattr__(self, "name", self.name or f"scenes/{self.split}")

    def __len__(self) -> int:
        return self.num_images

    def scene(self, index: int) -> Scene:
        """The content of image `index`."""
        return self._at(index).scene

    def captions(self, index: int) -> tuple[str, ...]:
        """The five captions of image `index`: lower case, no punctuation."""
        return self._at(index).captions

    def image_name(self, index: int) -> str:
        """Path of image `index` in an exported data set."""
        self._check(index)
        return f"{self.split}/{index:05d}.png"

    def read_image(self, index: int) -> np.ndarray:
        """Image `index`, uint8 [size, size, 3]; up to 64 pixels, kept and read-only."""
        if self.size > CANVAS:
            return draw(self.scene(index), self.size)
        return _kept_image(self, index)

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has no image {index}, only {len(self)}.")

    def _at(self, index: int) -> _CaptionedScene:
        self._check(index)
        if self.split == "train":
            return _make_train(self.seed, self.num_images)[index]
        return _make_held_out(self.seed)[self.split][index]


def open_scenes(config: ScenesConfig) -> ScenesSource:
    """The source that a config names; without a split, the training split."""
    return ScenesSource(
        split=config.split or "train",
        seed=config.seed,
        num_images=config.num_images,
        name=config.name,
    )


@lru_cache(maxsize=NUM_TRAIN + 2 * NUM_HELD_OUT)  # 86 MB at 64 x 64 pixels
def _kept_image(source: ScenesSource, index: int) -> np.ndarray:
    """A drawn image, kept because a run reads each image about twenty times."""
    image = draw(source.scene(index), source.size)
    image.flags.writeable = False
    return image


@lru_cache(maxsize=8)
def _make_held_out(seed: int) -> dict[str, _Split]:
    """Test, then validation, always complete: each scene depends on all before it."""
    descriptions, captions = set(), set()
    splits = {}
    for split in ("test", "validation"):
        rng = Rng(seed, layout.SPLIT_CODES[split])
        unambiguous = _UnambiguousScenes()
        proposals = _new_scenes(rng, descriptions, captions)
        for one in islice(filter(unambiguous.accept, proposals), NUM_HELD_OUT):
            descriptions.add(one.scene.description)
            captions.update(one.captions)
        splits[split] = tuple(unambiguous.accepted)
    return splits


@lru_cache(maxsize=4)
def _make_train(seed: int, num_images: int) -> _Split:
    """Training scenes, different from validation, test and each other."""
    held_out = [one for split in _make_held_out(seed).values() for one in split]
    descriptions = {one.scene.description for one in held_out}
    forbidden = {caption for one in held_out for caption in one.captions}
    rng = Rng(seed, layout.SPLIT_CODES["train"])
    accepted: list[_CaptionedScene] = []
    for one in islice(_new_scenes(rng, descriptions, forbidden), num_images):
        descriptions.add(one.scene.description)
        accepted.append(one)
    return tuple(accepted)


def _new_scenes(
    rng: Rng, descriptions: set[tuple], captions: set[str]
) -> Iterator[_CaptionedScene]:
    """Random scenes without end, none with these descriptions or captions.

    Both sets may grow between two scenes.
    """
    while True:
        scene = layout.compose(rng)
        own = describe(scene, rng)
        is_new = scene.description not in descriptions
        if own is not None and is_new and captions.isdisjoint(own):
            yield _CaptionedScene(scene, own)


class _UnambiguousScenes:
    """Collects scenes such that each caption is true of its own scene only."""

    def __init__(self):
        self.accepted: list[_CaptionedScene] = []
        # By look, because a caption can only be true of a scene that has an object with
        # the look of its first phrase.
        self._scenes: dict[tuple, list[Scene]] = {}
        self._meanings: dict[tuple, list[Meaning]] = {}

    def accept(self, proposed: _CaptionedScene) -> bool:
        """Adds a scene, unless a caption would then be true of two scenes."""
        scene, captions = proposed
        meanings = [meaning for caption in captions if (meaning := read(caption))]
        looks = set(map(look, scene.objects))
        if any(
            holds(meaning, other)
            for meaning in meanings
            for other in self._scenes.get(look(meaning.phrases[0]), ())
        ) or any(
            holds(meaning, scene)
            for each in looks
            for meaning in self._meanings.get(each, ())
        ):
            return False
        for each in looks:
            self._scenes.setdefault(each, []).append(scene)
        for meaning in meanings:
            self._meanings.setdefault(look(meaning.phrases[0]), []).append(meaning)
        self.accepted.append(proposed)
        return True
