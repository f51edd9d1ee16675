"""Draw a scene: scene -> uint8 [S, S, 3].

Objects are sprites: antialiased coverage masks, computed once for each shape, size,
texture, turn and image size by 8-fold supersampling. Backgrounds are windows into tiles
that are also computed once. So drawing an image takes only a few integer operations on
small arrays: images need not be stored on disk, and are equal on every platform.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from vilem_jax.data.scenes import layout
from vilem_jax.data.scenes.layout import CANVAS, Rng, Scene, SceneObject

_OVERSAMPLE = 8
_FULL = 256  # coverage of a pixel that is completely inside a mask
_HALF_BOX = 18  # units: half the side of a sprite with outline, at any turn
_RADIUS = {"small": 10.5, "big": 13.5}  # units
_DEGREES_PER_TURN = 3.0
_OUTLINE_UNITS = 2.2
_OUTLINE = np.array((28, 26, 38), np.int32)
_LIGHT = np.array((255, 252, 244), np.int32)

Colour = tuple[int, int, int]
Point = tuple[float, float]  # units

_COLOUR_RGB = {
    "red": (222, 32, 38),
    "orange": (255, 138, 0),
    "yellow": (255, 222, 20),
    "green": (24, 150, 56),
    "cyan": (36, 208, 224),
    "blue": (36, 62, 214),
    "purple": (134, 40, 178),
    "pink": (255, 122, 190),
}


def draw(scene: Scene, size: int = CANVAS) -> np.ndarray:
    """Draws a scene as a square image.

    Args:
        scene: what to draw.
        size: side of the image in pixels, at least 16.

    Returns:
        uint8 [size, size, 3], RGB.
    """
    image = _background(scene, size)
    for item in scene.objects:
        _paint(image, item, size)
    return image.astype(np.uint8)


def _paint(image: np.ndarray, item: SceneObject, size: int) -> None:
    """Draws one object into an int32 [S, S, 3] image, in place."""
    layers = _sprite(item.shape, item.size, item.texture, item.turn, size)
    side = len(layers[0])
    left = (2 * item.x * size // CANVAS - side) // 2
    top = (2 * item.y * size // CANVAS - side) // 2
    rows = slice(max(top, 0), min(top + side, size))
    columns = slice(max(left, 0), min(left + side, size))
    inside = (
        slice(rows.start - top, rows.stop - top),
        slice(columns.start - left, columns.stop - left),
    )
    colour = np.clip(np.array(_COLOUR_RGB[item.colour], np.int32) + item.tone, 0, 255)
    # Dark squares, but light stripes and dots: distinguishable in small objects too.
    second = colour // 4 if item.texture == "checked" else _LIGHT
    window = image[rows, columns]
    for coverage, paint in zip(layers, (_OUTLINE, colour, second), strict=True):
        window += (coverage[inside] * (paint - window)) >> 8


@cache
def _sprite(
    shape: str, object_size: str, texture: str, turn: int, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coverage, 0 to 256, of outline, body and pattern: each int32 [s, s, 1]."""
    side = 2 * -(-_HALF_BOX * size // CANVAS)
    fine = side * _OVERSAMPLE
    units_per_step = CANVAS / (size * _OVERSAMPLE)
    radius = _RADIUS[object_size]
    line = (np.arange(fine) - (fine - 1) / 2) * units_per_step / radius
    angle = np.deg2rad(_DEGREES_PER_TURN * (turn - layout.NUM_TURNS // 2))
    # In the object's own frame: 1 is its radius, y points down.
    x = line[None, :] * np.cos(angle) + line[:, None] * np.sin(angle)
    y = line[:, None] * np.cos(angle) - line[None, :] * np.sin(angle)
    body = _SHAPE_TESTS[shape](x, y)
    pattern = body & _pattern(texture, x * radius, y * radius)
    outline = _dilate(body, round(_OUTLINE_UNITS / units_per_step))
    return _coverage(outline), _coverage(body), _coverage(pattern)


def _dilate(mask: np.ndarray, steps: int) -> np.ndarray:
    """A mask dilated by a square of 2 `steps` + 1 a side."""
    for axis in (0, 1):
        edge = [(0, 0), (0, 0)]
        edge[axis] = (steps + 1, steps)
        counts = np.cumsum(np.pad(mask, edge), axis)
        # A window contains some of the mask if the counts at its two ends differ.
        last = np.delete(counts, slice(0, 2 * steps + 1), axis)
        before_first = np.delete(counts, slice(len(mask), None), axis)
        mask = last > before_first
    return mask


def _coverage(mask: np.ndarray) -> np.ndarray:
    """Coverage of each pixel, 0 to 256, by a mask of `_OVERSAMPLE` its resolution."""
    side = len(mask) // _OVERSAMPLE
    blocks = mask.reshape(side, _OVERSAMPLE, side, _OVERSAMPLE).sum((1, 3))
    return (blocks * _FULL // _OVERSAMPLE**2).astype(np.int32)[:, :, None]


def _pattern(texture: str, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Mask of a texture's second colour, from units: equal periods for both sizes."""
    if texture == "striped":
        return (across - down) / np.sqrt(2) % 5.0 < 2.2
    if texture == "dotted":
        period = 5.6
        u, v = across % period - period / 2, down % period - period / 2
        return u**2 + v**2 < 1.75**2
    if texture == "checked":
        return (np.floor(across / 3.2) + np.floor(down / 3.2)) % 2 == 0
    return np.zeros(across.shape, bool)


def _polygon(points: list[Point], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether (x, y) is inside a polygon, by counting crossings of its sides."""
    inside = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        if y0 != y1:
            crossing = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
            inside ^= ((y0 > y) != (y1 > y)) & (x < crossing)
    return inside


def _star_points() -> list[Point]:
    angles = np.deg2rad(np.arange(10) * 36.0 - 90.0)
    radii = np.where(np.arange(10) % 2 == 0, 1.08, 0.5)
    return [
        (float(r * np.cos(a)), float(r * np.sin(a) + 0.06))
        for r, a in zip(radii, angles, strict=True)
    ]


_TRIANGLE = [(0.0, -0.98), (0.98, 0.84), (-0.98, 0.84)]
_ARROW = [
    (1.0, 0.0), (0.1, -0.96), (0.1, -0.42), (-1.0, -0.42),
    (-1.0, 0.42), (0.1, 0.42), (0.1, 0.96),
]  # fmt: skip
_SHAPE_TESTS = {
    "circle": lambda x, y: x**2 + y**2 <= 0.96**2,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.86,
    "triangle": lambda x, y: _polygon(_TRIANGLE, x, y),
    "star": lambda x, y: _polygon(_star_points(), x, y),
    # The implicit heart curve (a^2 + b^2 - 1)^3 = a^2 b^3, b upwards.
    "heart": lambda x, y: (
        ((1.18 * x) ** 2 + (0.1 - 1.14 * y) ** 2 - 1) ** 3
        <= (1.18 * x) ** 2 * (0.1 - 1.14 * y) ** 3
    ),
    "cross": lambda x, y: (
        (np.minimum(abs(x), abs(y)) <= 0.36) & (np.maximum(abs(x), abs(y)) <= 1.0)
    ),
    "moon": lambda x, y: (
        ((x + 0.1) ** 2 + y**2 <= 1.05) & ((x - 0.5) ** 2 + (y + 0.12) ** 2 > 0.62)
    ),
    "arrow": lambda x, y: _polygon(_ARROW, x, y),
}


def _background(scene: Scene, size: int) -> np.ndarray:
    """A window of the background's tile with a slope of light, int32 [S, S, 3]."""
    tile = _tile(scene.background, size)
    right, down, is_mirrored, slope = scene.backdrop
    top, left = down * size // CANVAS, right * size // CANVAS
    window = tile[top : top + size, left : left + size]
    if is_mirrored:
        window = window[:, ::-1]
    line = np.arange(size, dtype=np.int32)
    light = slope * (2 * line - size) // (2 * size)
    return np.clip(window + light[:, None, None] + light[None, :, None] // 2, 0, 255)


@cache
def _tile(background: str, size: int) -> np.ndarray:
    """A background, int32 [2 S, 2 S, 3], drawn at 4 times the resolution and reduced.

    `_background` takes windows of S x S from it.
    """
    scale = 4 * size / CANVAS
    side = 8 * size
    image = Image.new("RGB", (side, side))
    number = layout.BACKGROUNDS.index(background)
    pen = _Pen(ImageDraw.Draw(image), scale, Rng(_TILE_SEED, number))
    _TILE_PAINTERS[background](pen)
    # Pale, so that objects have contrast on every background.
    return (np.asarray(image.reduce(4)).astype(np.int32) + 255) // 2


_TILE_SEED = 7_140_301  # tiles are the same for every seed of the data set


class _Pen:
    """Draws in units on a tile of 2 x 2 canvases."""

    def __init__(self, canvas: ImageDraw.ImageDraw, scale: float, rng: Rng):
        self.canvas, self.scale, self.rng = canvas, scale, rng

    def fill(self, rgb: Colour) -> None:
        self.box(0, 0, 2 * CANVAS, 2 * CANVAS, rgb)

    def box(self, x: float, y: float, width: float, height: float, rgb: Colour) -> None:
        edges = (x, y, x + width, y + height)
        left, top, right, bottom = (v * self.scale for v in edges)
        # Pillow includes the last pixel; a thin box in a small image has at least one.
        last = max(left, right - 1), max(top, bottom - 1)
        self.canvas.rectangle((left, top, *last), fill=rgb)

    def disc(self, x: float, y: float, radius: float, rgb: Colour) -> None:
        edges = (x - radius, y - radius, x + radius, y + radius)
        self.canvas.ellipse([v * self.scale for v in edges], fill=rgb)

    def path(self, points: Sequence[Point], width: float, rgb: Colour) -> None:
        self.canvas.line(
            [(x * self.scale, y * self.scale) for x, y in points],
            fill=rgb,
            width=max(1, round(width * self.scale)),
            joint="curve",
        )

    def random_point(self) -> Point:
        return self.rng.below(8 * CANVAS) / 4, self.rng.below(8 * CANVAS) / 4


def _grass(pen: _Pen) -> None:
    pen.fill((146, 186, 110))
    for _ in range(900):
        (x, y), tilt = pen.random_point(), pen.rng.between(-2, 2)
        shade = pen.rng.choice(((122, 168, 90), (168, 204, 128), (130, 176, 96)))
        pen.path([(x, y), (x + tilt / 2, y - 4)], 0.8, shade)


def _sand(pen: _Pen) -> None:
    pen.fill((232, 208, 160))
    for _ in range(1500):
        shade = pen.rng.choice(((208, 180, 130), (246, 228, 188), (216, 190, 142)))
        pen.disc(*pen.random_point(), 0.5, shade)


def _snow(pen: _Pen) -> None:
    pen.fill((240, 244, 250))
    for _ in range(110):
        x, y = pen.random_point()
        drift = [(x - 6, y), (x - 2, y - 1.5), (x + 4, y + 0.5)]
        pen.path(drift, 1.1, (202, 214, 234))


def _water(pen: _Pen) -> None:
    pen.fill((120, 168, 206))
    for row in range(0, 2 * CANVAS + 8, 8):
        shift = pen.rng.below(12)
        wave = [(x - shift, row + (2 if x // 6 % 2 else -1)) for x in range(0, 150, 6)]
        pen.path(wave, 1.3, (164, 202, 228))


def _brick(pen: _Pen) -> None:
    pen.fill((214, 204, 196))
    for row in range(17):
        for column in range(-1, 9):
            shade = pen.rng.choice(((158, 92, 74), (148, 84, 68), (168, 102, 82)))
            pen.box(column * 16 + 8 * (row % 2), row * 8, 15, 7, shade)


def _wood(pen: _Pen) -> None:
    pen.fill((176, 132, 88))
    for column in range(9):
        shade = pen.rng.choice(((186, 142, 98), (166, 122, 80), (176, 132, 88)))
        pen.box(column * 16, 0, 16, 2 * CANVAS, shade)
        for _ in range(3):
            x = column * 16 + pen.rng.between(2, 13)
            bend = pen.rng.between(-1, 1)
            grain = [(x + (bend if y // 16 % 2 else 0), y) for y in range(0, 136, 8)]
            pen.path(grain, 0.7, (144, 102, 64))
        pen.box(column * 16, 0, 0.9, 2 * CANVAS, (112, 76, 46))


def _stone(pen: _Pen) -> None:
    pen.fill((116, 116, 120))
    for row in range(-1, 12):
        for column in range(-1, 12):
            gray = pen.rng.between(150, 184)
            x = column * 12 + 6 * (row % 2) + pen.rng.below(3) + 6
            y = row * 12 + pen.rng.below(3) + 6
            pen.disc(x, y, 5.6, (gray, gray, gray + 3))


def _space(pen: _Pen) -> None:
    pen.fill((34, 34, 58))
    for _ in range(130):
        glow = pen.rng.choice(((230, 230, 250), (170, 170, 210), (130, 130, 170)))
        pen.disc(*pen.random_point(), pen.rng.choice((0.4, 0.6, 0.9)), glow)


_TILE_PAINTERS = {
    "grass": _grass,
    "sand": _sand,
    "snow": _snow,
    "water": _water,
    "brick": _brick,
    "wood": _wood,
    "stone": _stone,
    "space": _space,
}
