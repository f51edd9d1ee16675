"""Augmentation on the device: flip and RandAugment.

RandAugment's ten operations are three kinds of work: a look-up table over the 256
levels (AutoContrast, Equalize, Brightness), a blend with the smoothed image
(Sharpness), and an affine map (shears, translations, rotation). Each round does the
three once for the whole batch, with neutral settings for samples that drew another
kind; a `switch` under `vmap` would run all ten branches for every sample.

All arithmetic is in integers. When a float is rounded to a level, exact ties are common
(1.36 times every 25th level), and their rounding changed with the number of devices;
one level in one pixel shows in the sixth digit of the loss.
"""

import math

import jax
import jax.numpy as jnp

from vilem_jax.config.schema import AugmentConfig

OPERATIONS = (
    "identity",
    "auto_contrast",
    "equalize",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
)
FILL = 128  # gray, for pixels from outside the image
ONE = 2**15  # 1.0 in the fixed-point numbers of an affine map
WEIGHT_BITS = 11  # of a bilinear weight: two of them times 255 fit into int32


def augment(
    pixels: jax.Array,
    flip_keys: jax.Array,
    op_keys: jax.Array,
    config: AugmentConfig,
    *,
    may_flip: jax.Array,
) -> jax.Array:
    """Random flip and RandAugment (Cubuk et al. 2020) with ALBEF's ten operations.

    Args:
      pixels: uint8 [B, R, R, 3].
      flip_keys, op_keys: typed keys [B].
      may_flip: bool [B], False where a flip would contradict the caption.

    Returns:
      float32 [B, R, R, 3], integers in 0..255.
    """
    images = pixels.astype(jnp.int32)  # room for sums of products
    if config.flip_rate > 0:
        is_flipped = jax.vmap(jax.random.uniform)(flip_keys) < config.flip_rate
        images = _where(is_flipped & may_flip, images[:, :, ::-1], images)
    for round_number in range(config.num_ops):
        keys = jax.vmap(jax.random.fold_in, (0, None))(op_keys, round_number)
        images = _random_operation(images, keys, config)
    return images.astype(jnp.float32)


def _where(choose: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    """Per-sample choice between [B, ...] arrays; choose is bool [B]."""
    return jnp.where(choose.reshape(-1, *(1,) * (no.ndim - 1)), yes, no)


def _random_operation(images, keys, config: AugmentConfig):
    """One random operation per sample, applied with probability `op_rate`."""
    # [B, 3]: which operation, whether it is applied, in which direction.
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys)
    operation = jnp.floor(uniform[:, 0] * len(OPERATIONS)).astype(jnp.int32)
    is_applied = uniform[:, 1] < config.op_rate
    operation = jnp.where(is_applied, operation, OPERATIONS.index("identity"))
    sign = jnp.where(uniform[:, 2] < 0.5, -1, 1)
    return apply_operation(images, operation, sign, config.level)


def apply_operation(
    images: jax.Array, operation: jax.Array, sign: jax.Array, level: int
) -> jax.Array:
    """Applies OPERATIONS[operation[i]] to image i.

    Args:
      images: int32 [B, R, R, 3], 0..255.
      operation: int32 [B].
      sign: int32 [B], the direction of geometric operations, -1 or 1.
      level: strength 0..10.
    """
    percent = 18 * level + 10  # ALBEF's factor 1.8 level / 10 + 0.1
    images = _apply_tables(images, operation, percent)
    # Samples with another operation get a neutral table, no sharpening and an identity
    # map, which change nothing.
    is_sharpness = operation == OPERATIONS.index("sharpness")
    images = _where(is_sharpness, sharpen(images, percent), images)
    return warp(images, *_affine(operation, sign, level))


def _apply_tables(images, operation, percent: int):
    counts = jax.vmap(_histogram)(images)  # [B, 3, 256]
    identity = jnp.broadcast_to(jnp.arange(256), counts.shape)
    table = identity
    for name, candidate in (
        ("auto_contrast", contrast_table(counts)),
        ("equalize", equalize_table(counts)),
        ("brightness", jnp.minimum(identity * percent // 100, 255)),
    ):
        table = _where(operation == OPERATIONS.index(name), candidate, table)

    def look_up(table, image):  # [3, 256], [R, R, 3]
        return jax.vmap(lambda row, channel: row[channel], (0, 2), 2)(table, image)

    return jax.vmap(look_up)(table, images)


def _histogram(image):
    """int [R, R, 3] -> counts int32 [3, 256]."""
    channels = image.reshape(-1, 3).T  # [3, R R]
    zeros = jnp.zeros(256, jnp.int32)
    return jax.vmap(lambda values: zeros.at[values].add(1))(channels)


def contrast_table(counts: jax.Array) -> jax.Array:
    """AutoContrast: the used levels stretched to 0..255, each channel by itself."""
    used = counts > 0
    low = jnp.argmax(used, axis=-1, keepdims=True).astype(jnp.int32)
    # argmax finds the first used level; from the other end, the last one.
    high = 255 - jnp.argmax(used[..., ::-1], axis=-1, keepdims=True).astype(jnp.int32)
    levels = jnp.broadcast_to(jnp.arange(256), counts.shape)
    stretched = (levels - low) * 255 // jnp.maximum(high - low, 1)
    # A channel of one level stays as it is.
    return jnp.where(high > low, jnp.clip(stretched, 0, 255), levels)


def equalize_table(counts: jax.Array) -> jax.Array:
    """Equalize: levels spread so that each is used equally often, in integer steps."""
    last = 255 - jnp.argmax((counts > 0)[..., ::-1], axis=-1, keepdims=True)
    total = counts.sum(axis=-1, keepdims=True)
    # Pixels per output level; the last used level is not counted, so that it maps to
    # 255.
    step = (total - jnp.take_along_axis(counts, last, axis=-1)) // 255
    before = jnp.cumsum(counts, axis=-1) - counts
    spread = (before + step // 2) // jnp.maximum(step, 1)
    levels = jnp.broadcast_to(jnp.arange(256), counts.shape)
    return jnp.where(step > 0, jnp.minimum(spread, 255), levels)


def sharpen(images: jax.Array, percent: int) -> jax.Array:
    """Extrapolates from the smoothed image by `percent`; the border stays as it is."""
    size = images.shape[1]
    # A 3 x 3 kernel of ones with 5 in the middle, over 13, as Pillow's SMOOTH has it.
    inner = 4 * images[:, 1:-1, 1:-1] + sum(
        images[:, i : size - 2 + i, j : size - 2 + j]
        for i in range(3)
        for j in range(3)
    )
    # (2 n + 13) // 26 rounds n / 13 to the nearest integer.
    smooth = images.at[:, 1:-1, 1:-1].set((2 * inner + 13) // 26)
    return jnp.clip(smooth + percent * (images - smooth) // 100, 0, 255)


def _affine(operation, sign, level: int):
    """The map from a target pixel to its source, relative to the image's center.

    Returns:
      a matrix over (x, y) in units of 1 / ONE, int32 [B, 2, 2], and a translation in
      pixels, int32 [B, 2].
    """

    def where(name, value, otherwise=0):
        return jnp.where(operation == OPERATIONS.index(name), value, otherwise)

    # ALBEF's strengths at level 10: 30 degrees, a shear of 0.3, 10 pixels.
    angle, shear = math.radians(3.0 * level), round(0.03 * level * ONE)
    cosine = where("rotate", round(math.cos(angle) * ONE), ONE)
    sine = where("rotate", sign * round(math.sin(angle) * ONE))
    shear_x, shear_y = where("shear_x", sign * shear), where("shear_y", sign * shear)
    rows = [[cosine, sine + shear_x], [shear_y - sine, cosine]]
    move = [where("translate_x", sign * level), where("translate_y", sign * level)]
    matrix = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=1)
    return matrix.astype(jnp.int32), jnp.stack(move, axis=-1).astype(jnp.int32)


def warp(images: jax.Array, matrix: jax.Array, move: jax.Array) -> jax.Array:
    """Bilinear sampling at matrix @ (x, y) + move; gray outside the image.

    Args:
      images: int32 [B, R, R, 3].
      matrix, move: see `_affine`.
    """
    size = images.shape[1]
    # Twice the distance from the center, which may be between two pixels.
    centered = 2 * jnp.arange(size) - (size - 1)
    x, y = centered[None, None, :], centered[None, :, None]

    def source(row):  # [B, R, R], in units of 1 / (2 ONE) of a pixel
        a, b = matrix[:, row, 0], matrix[:, row, 1]
        center = (2 * move[:, row] + size - 1) * ONE
        return sum(v[:, None, None] * u for v, u in ((a, x), (b, y), (center, 1)))

    return jax.vmap(_sample)(images, source(0), source(1))


def _sample(image, x, y):
    """image [R, R, 3] at x, y [R, R], in units of 1 / (2 ONE)."""
    size = image.shape[0]
    (left, right_weight), (top, bottom_weight) = _split(x), _split(y)
    full = 2**WEIGHT_BITS
    total = full * full // 2  # one half, so that the shift below rounds
    for dx, column_weight in ((0, full - right_weight), (1, right_weight)):
        for dy, row_weight in ((0, full - bottom_weight), (1, bottom_weight)):
            column, row = left + dx, top + dy  # one of the four neighbors, [R, R]
            is_inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
            value = image[jnp.clip(row, 0, size - 1), jnp.clip(column, 0, size - 1)]
            value = jnp.where(is_inside[..., None], value, FILL)
            total += (column_weight * row_weight)[..., None] * value
    return total >> (2 * WEIGHT_BITS)


def _split(coordinate):
    """The pixel before it, and the weight of the pixel after it in WEIGHT_BITS."""
    bits = (2 * ONE).bit_length() - 1
    coordinate = coordinate + 2 ** (bits - WEIGHT_BITS - 1)  # rounds the weight
    # An arithmetic shift rounds down for negative coordinates too.
    weight = (coordinate & (2 * ONE - 1)) >> (bits - WEIGHT_BITS)
    return coordinate >> bits, weight
