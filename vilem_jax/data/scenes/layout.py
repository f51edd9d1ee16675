"""Scenes: what a drawn image shows and where, and how a scene is sampled.

An image shows 2 to 4 objects on a background, in a space of `CANVAS` x `CANVAS`
units with the origin at the top left. Each object is in its own cell of a 2 x 2 grid,
at most `JITTER` units off the centre. So two objects are clearly side by side, clearly
one above the other, or diagonal. Objects with the same shape, colour, size and texture
form a *group*, which captions count.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import TypeVar

import numpy as np

CANVAS = 64  # units of a scene; images of other sizes are scaled

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "moon", "arrow")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "big")
TEXTURES = ("plain", "striped", "dotted", "checked")
BACKGROUNDS = ("grass", "sand", "snow", "water", "brick", "wood", "stone", "space")
SIDES = ("left", "right", "above", "below")
RELATIONS = (*SIDES, "around", "amid")
NUM_TURNS = 5  # small rotations that an object may have

MARGIN = 16  # units: a relation needs at least this distance between two centres
NEAR, FAR = 16, 48  # units: coordinates of the centres of the cells
JITTER = 1  # units

# Part of each random seed: another code gives another data set.
SPLIT_CODES = {"test": 0, "validation": 1, "train": 2}

# Sizes of the groups of a scene; whether the first group lies on a diagonal of the grid
# (otherwise in a row or column); how many of 24 scenes are like this. Both two objects
# on a diagonal and three objects are "around" one, so the relation does not reveal the
# number.
_GROUPINGS = (
    ((1, 1), False, 7),
    ((1, 1, 1), False, 5),
    ((2, 1), False, 2),
    ((2, 1), True, 2),
    ((1, 1, 1, 1), False, 2),
    ((2, 1, 1), False, 1),
    ((2, 1, 1), True, 2),
    ((2, 2), False, 1),
    ((3, 1), False, 2),
)
_WEIGHTED_GROUPINGS = tuple(g[:2] for g in _GROUPINGS for _ in range(g[2]))


Kind = tuple[str, str, str, str]  # size, texture, colour, shape
Item = TypeVar("Item")


@dataclass(frozen=True)
class SceneObject:
    """One object: the four words that describe it, and its position.

    Attributes:
        x, y: centre, in units of the canvas, from the left and from the top.
        turn: index of one of `NUM_TURNS` small rotations; not in captions.
        tone: offset of the colour in 8-bit steps, -14 to 14; not in captions.
    """

    shape: str
    colour: str
    size: str
    texture: str
    x: int
    y: int
    turn: int = NUM_TURNS // 2
    tone: int = 0

    @property
    def kind(self) -> Kind:
        """What a caption says of the object: (size, texture, colour, shape)."""
        return self.size, self.texture, self.colour, self.shape


Group = Sequence[SceneObject]


@dataclass(frozen=True)
class Scene:
    """The content of one image.

    Attributes:
        objects: 2 to 4 objects.
        background: one of `BACKGROUNDS`.
        backdrop: four integers that vary the background: offset to the right and
            down (units), mirrored (0 or 1), slope of the light.
    """

    objects: tuple[SceneObject, ...]
    background: str
    backdrop: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def description(self) -> tuple[str, tuple[Kind, ...]]:
        """What identifies a scene: background and objects, without their cells."""
        return self.background, tuple(sorted(o.kind for o in self.objects))

    @property
    def groups(self) -> tuple[Group, ...]:
        """The objects by their kind; a group may be a single object."""
        by_kind: dict[Kind, list[SceneObject]] = {}
        for item in self.objects:
            by_kind.setdefault(item.kind, []).append(item)
        return tuple(tuple(group) for group in by_kind.values())


class Rng:
    """Random integers, the same on every platform and for every version of NumPy.

    NumPy guarantees the streams of its bit generators, but not those of the methods of
    `Generator`. So this class uses only raw Philox numbers.
    """

    def __init__(self, *seeds: int):
        self._bits = np.random.Philox(np.random.SeedSequence(seeds))
        self._raw: list[int] = []

    def below(self, stop: int) -> int:
        """An integer from 0 to `stop` - 1."""
        if not self._raw:
            self._raw = self._bits.random_raw(4096).tolist()
        # Of 64 bits the upper 32, scaled to [0, stop).
        return ((self._raw.pop() >> 32) * stop) >> 32

    def between(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return low + self.below(high - low + 1)

    def choice(self, items: Sequence[Item]) -> Item:
        """One of `items`."""
        return items[self.below(len(items))]

    def shuffled(self, items: Iterable[Item]) -> list[Item]:
        """`items` in a random order."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order


def relation_holds(relation: str, first: Group, second: Group) -> bool:
    """Returns whether the group `first` is in a relation to the group `second`.

    "left" and "right" compare x, "above" and "below" y; centres must be at least
    `MARGIN` apart. Such a side holds if it holds for every object of `first` and every
    object of `second`; for two diagonal objects, two sides hold. Several objects are
    "around" one if they are not all on one side of it; the one is then "amid" them.
    """
    if relation == "amid":
        return relation_holds("around", second, first)
    if relation == "around":
        if len(first) < 2 or len(second) != 1:
            return False
        return not any(relation_holds(side, first, second) for side in SIDES)
    axis = "x" if relation in ("left", "right") else "y"
    sign = 1 if relation in ("left", "above") else -1
    return all(
        sign * (getattr(b, axis) - getattr(a, axis)) >= MARGIN
        for a, b in product(first, second)
    )


def clear_relation(first: Group, second: Group) -> str | None:
    """The only relation between two groups, or None if none or two hold."""
    holding = [r for r in RELATIONS if relation_holds(r, first, second)]
    return holding[0] if len(holding) == 1 else None


def compose(rng: Rng) -> Scene:
    """Samples one scene."""
    # The order of the calls of `rng` is part of the data set.
    group_sizes, is_diagonal = rng.choice(_WEIGHTED_GROUPINGS)
    kinds = _sample_kinds(rng, len(group_sizes))
    cells_of = _sample_cells(rng, group_sizes, is_diagonal)
    objects = [
        SceneObject(
            shape=shape,
            colour=colour,
            size=size,
            texture=texture,
            x=x + rng.between(-JITTER, JITTER),
            y=y + rng.between(-JITTER, JITTER),
            turn=rng.below(NUM_TURNS),
            tone=rng.between(-14, 14),
        )
        for (size, texture, colour, shape), cells in zip(kinds, cells_of, strict=True)
        for x, y in cells
    ]
    offset = rng.below(CANVAS), rng.below(CANVAS)
    backdrop = (*offset, rng.below(2), rng.between(-24, 24))
    return Scene(tuple(objects), rng.choice(BACKGROUNDS), backdrop)


def _sample_kinds(rng: Rng, count: int) -> list[Kind]:
    """Kinds such that any two differ in at least two of colour, shape and size.

    So replacing a single word of a caption never makes it describe another object.
    """
    kinds: list[Kind] = []
    while len(kinds) < count:
        colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
        # "plain" twice: captions do not say it, and should stay short.
        texture = rng.choice(("plain", *TEXTURES))
        size = rng.choice(SIZES)
        if all(
            (size != kind[0]) + (colour != kind[2]) + (shape != kind[3]) >= 2
            for kind in kinds
        ):
            kinds.append((size, texture, colour, shape))
    return kinds


def _sample_cells(
    rng: Rng, group_sizes: tuple[int, ...], is_diagonal: bool
) -> list[list[tuple[int, int]]]:
    """Centres (x, y) of the objects of each group.

    Written for groups in rows; then transposed and mirrored at random.
    """
    top_left, top_right = (NEAR, NEAR), (FAR, NEAR)
    bottom_left, bottom_right = (NEAR, FAR), (FAR, FAR)
    cells = iter((top_left, top_right, bottom_left, bottom_right))
    groups = [list(islice(cells, size)) for size in group_sizes]
    if group_sizes == (1, 1):
        y = rng.between(NEAR, FAR)
        groups = [[(NEAR, y)], [(FAR, y)]]
    elif group_sizes == (2, 1):
        groups[1] = [(rng.between(NEAR, FAR), FAR)]
    if is_diagonal:
        singles = [[bottom_left], [top_right]]
        groups = [[top_left, bottom_right], *singles[: len(group_sizes) - 1]]
    swap, mirror_x, mirror_y = rng.below(2), rng.below(2), rng.below(2)
    if len(set(group_sizes)) == 1:
        groups = rng.shuffled(groups)

    def transform(cell: tuple[int, int]) -> tuple[int, int]:
        x, y = cell[::-1] if swap else cell
        return (CANVAS - x if mirror_x else x, CANVAS - y if mirror_y else y)

    return [[transform(cell) for cell in group] for group in groups]
