"""Scenes: what is in a drawn image, where, and how one is composed at random.

An image shows 2 to 4 objects on a background, in a space of `CANVAS` x `CANVAS`
units with the origin at the top left. Objects stand on a 2 x 2 grid, give or take a
unit, so that two of them are either clearly beside each other, clearly one above the
other, or diagonal. Alike objects (same shape, colour, size and texture) form a *group*,
which captions count.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

CANVAS = 64  # units of a scene; images of other sizes are scaled

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "moon", "arrow")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "big")
TEXTURES = ("plain", "striped", "dotted", "checked")
BACKGROUNDS = ("grass", "sand", "snow", "water", "brick", "wood", "stone", "space")
SIDES = ("left", "right", "above", "below")
RELATIONS = (*SIDES, "around", "amid")
NUM_TURNS = 5  # small rotations an object is drawn with

MARGIN = 16  # units between two centres from which a relation holds
NEAR, FAR = 16, 48  # centres of the grid's cells
JITTER = 1  # units

SPLIT_CODES = {"test": 0, "validation": 1, "train": 2}  # streams of random numbers

# How the objects of an image fall into groups of alike ones, whether the group lies
# on a diagonal of the grid (else in a row or column), and how many of 24 do so.
# Two on a diagonal are around one, as three are, so that the number cannot be told
# from the relation.
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
_GROUPING_DRAWS = tuple(g[:2] for g in _GROUPINGS for _ in range(g[2]))


@dataclass(frozen=True)
class SceneObject:
    """One object: four words, and where it stands.

    Attributes:
        x, y: centre, in units of the canvas, from the left and from the top.
        turn: which of `NUM_TURNS` small rotations; captions never say it.
        tone: shift of the colour in 8-bit steps, -14 to 14; never said either.
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
    def kind(self) -> tuple[str, str, str, str]:
        """What a caption says of it: (size, texture, colour, shape)."""
        return self.size, self.texture, self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """One image before it is drawn.

    Attributes:
        objects: 2 to 4 objects.
        background: one of `BACKGROUNDS`.
        backdrop: four integers that vary the background: shift to the right and
            down (units), mirrored or not, and the slope of the light.
    """

    objects: tuple[SceneObject, ...]
    background: str
    backdrop: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def description(self) -> tuple:
        """What identifies a scene: its background and its objects, places aside."""
        return self.background, tuple(sorted(o.kind for o in self.objects))

    @property
    def units(self) -> tuple[tuple[SceneObject, ...], ...]:
        """The objects as captions name them: one tuple for each kind."""
        by_kind: dict[tuple, list[SceneObject]] = {}
        for thing in self.objects:
            by_kind.setdefault(thing.kind, []).append(thing)
        return tuple(tuple(group) for group in by_kind.values())


class Draws:
    """Random integers that are the same on every platform and version.

    NumPy promises stable streams for its bit generators but not for the methods of
    `Generator`, so only raw Philox words are used.
    """

    def __init__(self, *seed_words: int):
        self._bits = np.random.Philox(np.random.SeedSequence(seed_words))
        self._words: list[int] = []

    def below(self, stop: int) -> int:
        """An integer from 0 to `stop` - 1."""
        if not self._words:
            self._words = self._bits.random_raw(4096).tolist()
        return ((self._words.pop() >> 32) * stop) >> 32

    def between(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return low + self.below(high - low + 1)

    def pick(self, items):
        """One of `items`."""
        return items[self.below(len(items))]

    def shuffled(self, items) -> list:
        """`items` in a random order."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order


def relation_holds(relation: str, first, second) -> bool:
    """Whether a group of objects is in a relation to another.

    The four sides hold if they do for every object of `first` and every one of
    `second`: "left" and "right" compare x, "above" and "below" y; centres must be at
    least `MARGIN` apart. Of two diagonal objects two sides hold. Several are "around"
    one if they are not all on one side of it; it is "amid" them.
    """
    if relation == "amid":
        return relation_holds("around", second, first)
    if relation == "around":
        are_some_around_one = len(first) > 1 and len(second) == 1
        return are_some_around_one and not any(
            relation_holds(side, first, second) for side in SIDES
        )
    axis = "x" if relation in ("left", "right") else "y"
    sign = 1 if relation in ("left", "above") else -1
    return all(
        sign * (getattr(b, axis) - getattr(a, axis)) >= MARGIN
        for a, b in product(first, second)
    )


def clear_relation(first, second) -> str | None:
    """The one relation between two groups, or None if there is none or two."""
    holding = [r for r in RELATIONS if relation_holds(r, first, second)]
    return holding[0] if len(holding) == 1 else None


def compose(draws: Draws) -> Scene:
    """Draw one scene at random."""
    grouping, is_diagonal = draws.pick(_GROUPING_DRAWS)
    kinds = _kinds(draws, len(grouping))
    objects = []
    for (size, texture, colour, shape), places in zip(
        kinds, _places(draws, grouping, is_diagonal), strict=True
    ):
        for x, y in places:
            objects.append(
                SceneObject(
                    shape=shape,
                    colour=colour,
                    size=size,
                    texture=texture,
                    x=x + draws.between(-JITTER, JITTER),
                    y=y + draws.between(-JITTER, JITTER),
                    turn=draws.below(NUM_TURNS),
                    tone=draws.between(-14, 14),
                )
            )
    backdrop = (
        draws.below(CANVAS),
        draws.below(CANVAS),
        draws.below(2),
        draws.between(-24, 24),
    )
    return Scene(tuple(objects), draws.pick(BACKGROUNDS), backdrop)


def _kinds(draws: Draws, count: int) -> list[tuple[str, str, str, str]]:
    """Kinds of which any two differ in two of colour, shape and size.

    So no single word replaced in a caption makes it speak of another object.
    """
    kinds: list[tuple[str, str, str, str]] = []
    while len(kinds) < count:
        colour, shape = draws.pick(COLOURS), draws.pick(SHAPES)
        # "plain" twice: it is never said, and captions should stay short.
        texture = draws.pick(("plain", *TEXTURES))
        size = draws.pick(SIZES)
        if all(
            (size != kind[0]) + (colour != kind[2]) + (shape != kind[3]) >= 2
            for kind in kinds
        ):
            kinds.append((size, texture, colour, shape))
    return kinds


def _places(
    draws: Draws, grouping: tuple[int, ...], is_diagonal: bool
) -> list[list[tuple[int, int]]]:
    """Centres for each group, such that aligned groups stay aligned.

    Written for rows (a group lies in a row, another above or below it) and turned
    into columns, upside down and mirrored at random.
    """
    near, far = NEAR, FAR
    if grouping == (1, 1):
        line = draws.between(near, far)
        places = [[(near, line)], [(far, line)]]
    elif grouping == (1, 1, 1):
        places = [[(near, near)], [(far, near)], [(near, far)]]
    elif grouping == (2, 1):
        places = [[(near, near), (far, near)], [(draws.between(near, far), far)]]
    elif grouping == (2, 2):
        places = [[(near, near), (far, near)], [(near, far), (far, far)]]
    elif grouping == (2, 1, 1):
        places = [[(near, near), (far, near)], [(near, far)], [(far, far)]]
    elif grouping == (3, 1):
        places = [[(near, near), (far, near), (near, far)], [(far, far)]]
    else:
        places = [[(near, near)], [(far, near)], [(near, far)], [(far, far)]]
    if is_diagonal:
        singles = [[(near, far)], [(far, near)]]
        places = [[(near, near), (far, far)], *singles[: len(grouping) - 1]]
    swap, mirror_x, mirror_y = draws.below(2), draws.below(2), draws.below(2)
    places = draws.shuffled(places) if len(set(grouping)) == 1 else places

    def turned(place):
        x, y = place[::-1] if swap else place
        return (CANVAS - x if mirror_x else x, CANVAS - y if mirror_y else y)

    return [[turned(place) for place in group] for group in places]
