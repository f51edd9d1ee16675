"""The embedded data set `scenes`: drawn images with captions, made from a seed.

Train, validation and test share no scene and no caption. Within validation, and
within test, each caption is true of exactly one image: checked by meaning, not by
comparing strings. Scenes and captions are made in seconds; an image is drawn when
it is read first. See `docs/scenes.md`.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vilem_jax.data.scenes.drawing import draw
from vilem_jax.data.scenes.grammar import Meaning, describe, holds, read
from vilem_jax.data.scenes.layout import CANVAS, SPLIT_CODES, Draws, Scene, compose
from vilem_jax.errors import UserError

NUM_HELD_OUT = 500  # images of validation, and of test
NUM_TRAIN = 6000
SMALLEST_SIZE = 16  # pixels; below, shapes cannot be told apart


@dataclass(frozen=True)
class _Records:
    """The scenes of one split and their captions, in the same order."""

    scenes: tuple[Scene, ...]
    captions: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ScenesSource:
    """One split of `scenes`, as a source of images and captions.

    Holds its four arguments only, so it travels to worker processes for free; what
    it stands for is made on first use and kept per process.

    Args:
        split: "train", "validation" or "test".
        seed: which draw of the benchmark, 0 or more.
        size: side of the images in pixels, at least 16.
        num_images: how many images; None or 0 for 6,000 (train) or 500. The first
            n of a split are the same for every `num_images`.

    Raises:
        UserError: if an argument is outside its range.
    """

    split: str
    seed: int = 0
    size: int = CANVAS
    num_images: int | None = None
    name: str = ""  # for messages and records; "" stands for scenes/SPLIT

    def __post_init__(self):
        if self.split not in SPLIT_CODES:
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
        if not self.name:
            object.__setattr__(self, "name", f"scenes/{self.split}")
        if not self.num_images:
            default = NUM_TRAIN if self.split == "train" else NUM_HELD_OUT
            object.__setattr__(self, "num_images", default)
        if self.num_images < 1:
            raise UserError(f"scenes with {self.num_images} images: use 1 or more")
        if self.split != "train" and self.num_images > NUM_HELD_OUT:
            raise UserError(
                f"the {self.split} split of scenes has {NUM_HELD_OUT} images, not "
                f"{self.num_images}: use {NUM_HELD_OUT} or fewer, or another seed"
            )

    def __len__(self) -> int:
        return self.num_images

    def scene(self, index: int) -> Scene:
        """What image `index` shows."""
        return self._records().scenes[self._checked(index)]

    def captions(self, index: int) -> tuple[str, ...]:
        """The five captions of image `index`: lower case, no punctuation."""
        return self._records().captions[self._checked(index)]

    def image_name(self, index: int) -> str:
        """Path of image `index` inside an exported benchmark."""
        return f"{self.split}/{self._checked(index):05d}.png"

    def read_image(self, index: int) -> np.ndarray:
        """Image `index`, uint8 [size, size, 3]; those of 64 pixels or less are kept,
        and cannot be written to."""
        if self.size > CANVAS:
            return draw(self.scene(index), self.size)
        return _kept_image(self, index)

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has no image {index}, only {len(self)}.")
        return index

    def _records(self) -> _Records:
        if self.split == "train":
            return _make_train(self.seed, self.num_images)
        return _make_held_out(self.seed)[self.split]


@lru_cache(maxsize=NUM_TRAIN + 2 * NUM_HELD_OUT)  # 86 MB of 64 x 64 pixels
def _kept_image(source: ScenesSource, index: int) -> np.ndarray:
    """An image as it was drawn first: a run visits each some twenty times."""
    image = draw(source.scene(index), source.size)
    image.flags.writeable = False
    return image


@lru_cache(maxsize=8)
def _make_held_out(seed: int) -> dict[str, _Records]:
    """Test, then validation: whole, whatever part of them is asked for."""
    descriptions: set[tuple] = set()
    captions: set[str] = set()
    splits = {}
    for split in ("test", "validation"):
        draws = Draws(seed, SPLIT_CODES[split])
        truths = _Truths()
        while len(truths.scenes) < NUM_HELD_OUT:
            scene, said = _propose(draws)
            is_fresh = scene.description not in descriptions
            if is_fresh and captions.isdisjoint(said) and truths.accept(scene, said):
                descriptions.add(scene.description)
                captions.update(said)
        splits[split] = _Records(tuple(truths.scenes), tuple(truths.captions))
    return splits


@lru_cache(maxsize=4)
def _make_train(seed: int, num_images: int) -> _Records:
    """Training scenes unlike any of validation and test, and unlike each other."""
    held_out = _make_held_out(seed).values()
    descriptions = {s.description for records in held_out for s in records.scenes}
    forbidden = {c for records in held_out for said in records.captions for c in said}
    draws = Draws(seed, SPLIT_CODES["train"])
    scenes, captions = [], []
    while len(scenes) < num_images:
        scene, said = _propose(draws)
        if scene.description not in descriptions and forbidden.isdisjoint(said):
            descriptions.add(scene.description)
            scenes.append(scene)
            captions.append(said)
    return _Records(tuple(scenes), tuple(captions))


def _propose(draws: Draws) -> tuple[Scene, tuple[str, ...]]:
    """A random scene with its captions."""
    while True:
        scene = compose(draws)
        said = describe(scene, draws)
        if said is not None:
            return scene, said


class _Truths:
    """Scenes of a split in the making, each caption true of its own scene alone."""

    def __init__(self):
        self.scenes: list[Scene] = []
        self.captions: list[tuple[str, ...]] = []
        # Only scenes and captions that share a size-colour-shape with the other
        # side can make it true, so only those are looked at.
        self._scenes_with: dict[tuple, list[Scene]] = {}
        self._meanings_with: dict[tuple, list[Meaning]] = {}

    def accept(self, scene: Scene, said: tuple[str, ...]) -> bool:
        """Add a scene, unless a caption would then be true of two scenes."""
        meanings = [read(caption) for caption in said]
        looks = {(o.size, o.colour, o.shape) for o in scene.objects}
        for meaning in meanings:
            if any(
                holds(meaning, other)
                for other in self._scenes_with.get(_first_look(meaning), ())
            ):
                return False
        for look in looks:
            if any(holds(m, scene) for m in self._meanings_with.get(look, ())):
                return False
        for look in looks:
            self._scenes_with.setdefault(look, []).append(scene)
        for meaning in meanings:
            self._meanings_with.setdefault(_first_look(meaning), []).append(meaning)
        self.scenes.append(scene)
        self.captions.append(said)
        return True


def _first_look(meaning: Meaning) -> tuple[str, str, str]:
    phrase = meaning.phrases[0]
    return phrase.size, phrase.colour, phrase.shape
