"""Augmentation on the device: flip and RandAugment.

RandAugment's ten operations are three kinds of work: a look-up table over the 256
levels (AutoContrast, Equalize, Brightness), a blend with the smoothed image
(Sharpness), and an affine map (shears, translations, rotation). Each round does the
three once for the whole batch, with neutral settings where a sample drew something
else; a `switch` under `vmap` would run all ten branches for every sample.

All of it is whole-number arithmetic. Where a float would be rounded to a level, exact
ties are common (1.36 times every 25th level), and which way they fall changed with the
number of devices; one level in one pixel shows in the sixth digit of the loss.
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
FILL = 128  # grey for what an affine map uncovers
ONE = 2**15  # fixed point of an affine map's numbers
WEIGHT_BITS = 11  # of a bilinear weight: two of them times 255 fit into int32


def augment(
    pixels: jax.Array,
    flip_keys: jax.Array,
    op_keys: jax.Array,
    config: AugmentConfig,
    *,
    may_flip: jax.Array,
) -> jax.Array:
    """Flips and RandAugments.

    Args:
      pixels: uint8 [B, R, R, 3].
      flip_keys, op_keys: typed keys [B].
      may_flip: bool [B], False where a flip would contradict the caption.

    Returns:
      float32 [B, R, R, 3], whole levels in 0..255.
    """
    images = pixels.astype(jnp.int32)
    if config.flip_rate > 0:
        coin = jax.vmap(jax.random.uniform)(flip_keys) < config.flip_rate
        images = _where(coin & may_flip, images[:, :, ::-1], images)
    for round_number in range(config.num_ops):
        keys = jax.vmap(jax.random.fold_in, (0, None))(op_keys, round_number)
        images = _random_operation(images, keys, config)
    return images.astype(jnp.float32)


def _where(choose: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    """Per-sample choice between [B, ...] arrays; choose is bool [B]."""
    return jnp.where(choose.reshape(-1, *(1,) * (no.ndim - 1)), yes, no)


def _random_operation(images, keys, config: AugmentConfig):
    """One drawn operation per sample, applied with probability `op_rate`."""
    draws = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys)
    operation = jnp.floor(draws[:, 0] * len(OPERATIONS)).astype(jnp.int32)
    is_applied = draws[:, 1] < config.op_rate
    operation = jnp.where(is_applied, operation, OPERATIONS.index("identity"))
    sign = jnp.where(draws[:, 2] < 0.5, -1, 1)
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
    channels = image.reshape(-1, 3).T
    zeros = jnp.zeros(256, jnp.int32)
    return jax.vmap(lambda values: zeros.at[values].add(1))(channels)


def contrast_table(counts: jax.Array) -> jax.Array:
    """AutoContrast: the used levels stretched to 0..255, a channel at a time."""
    used = counts > 0
    low = jnp.argmax(used, axis=-1, keepdims=True).astype(jnp.int32)
    high = 255 - jnp.argmax(used[..., ::-1], axis=-1, keepdims=True).astype(jnp.int32)
    levels = jnp.broadcast_to(jnp.arange(256), counts.shape)
    stretched = (levels - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, jnp.clip(stretched, 0, 255), levels)


def equalize_table(counts: jax.Array) -> jax.Array:
    """Equalize: levels spread so that each is used alike, by whole-number steps."""
    last = 255 - jnp.argmax((counts > 0)[..., ::-1], axis=-1, keepdims=True)
    total = counts.sum(axis=-1, keepdims=True)
    step = (total - jnp.take_along_axis(counts, last, axis=-1)) // 255
    before = jnp.cumsum(counts, axis=-1) - counts
    spread = (before + step // 2) // jnp.maximum(step, 1)
    levels = jnp.broadcast_to(jnp.arange(256), counts.shape)
    return jnp.where(step > 0, jnp.minimum(spread, 255), levels)


def sharpen(images: jax.Array, percent: int) -> jax.Array:
    """Away from the smoothed image by `percent`; the border stays as it is."""
    size = images.shape[1]
    inner = 4 * images[:, 1:-1, 1:-1] + sum(
        images[:, i : size - 2 + i, j : size - 2 + j]
        for i in range(3)
        for j in range(3)
    )
    smooth = images.at[:, 1:-1, 1:-1].set((2 * inner + 13) // 26)
    return jnp.clip(smooth + percent * (images - smooth) // 100, 0, 255)


def _affine(operation, sign, level: int):
    """The map from a target pixel to its source about the middle of the image:
    a matrix over (x, y) in units of 1 / ONE, int32 [B, 2, 2], and whole pixels to
    move by, int32 [B, 2]."""

    def where(name, value, otherwise=0):
        return jnp.where(operation == OPERATIONS.index(name), value, otherwise)

    angle, shear = math.radians(3.0 * level), round(0.03 * level * ONE)
    cosine = where("rotate", round(math.cos(angle) * ONE), ONE)
    sine = where("rotate", sign * round(math.sin(angle) * ONE))
    shear_x, shear_y = where("shear_x", sign * shear), where("shear_y", sign * shear)
    rows = [[cosine, sine + shear_x], [shear_y - sine, cosine]]
    move = [where("translate_x", sign * level), where("translate_y", sign * level)]
    matrix = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=1)
    return matrix.astype(jnp.int32), jnp.stack(move, axis=-1).astype(jnp.int32)


def warp(images: jax.Array, matrix: jax.Array, move: jax.Array) -> jax.Array:
    """Bilinear sampling at matrix @ (x, y) + move; outside the image lies grey.

    Args:
      images: int32 [B, R, R, 3].
      matrix, move: see `_affine`.
    """
    size = images.shape[1]
    # Twice the distance from the middle, which may lie between two pixels.
    centred = 2 * jnp.arange(size) - (size - 1)
    x, y = centred[None, None, :], centred[None, :, None]

    def source(row):  # [B, R, R], in units of 1 / (2 ONE) of a pixel
        a, b = matrix[:, row, 0], matrix[:, row, 1]
        middle = (2 * move[:, row] + size - 1) * ONE
        return sum(v[:, None, None] * u for v, u in ((a, x), (b, y), (middle, 1)))

    return jax.vmap(_sample)(images, source(0), source(1))


def _sample(image, x, y):
    """image [R, R, 3] at x, y [R, R], in units of 1 / (2 ONE)."""
    size = image.shape[0]
    (left, right_weight), (top, bottom_weight) = _split(x), _split(y)
    full = 2**WEIGHT_BITS
    total = full * full // 2  # so that the shift below rounds
    for dx, column_weight in ((0, full - right_weight), (1, right_weight)):
        for dy, row_weight in ((0, full - bottom_weight), (1, bottom_weight)):
            column, row = left + dx, top + dy
            is_inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
            value = image[jnp.clip(row, 0, size - 1), jnp.clip(column, 0, size - 1)]
            value = jnp.where(is_inside[..., None], value, FILL)
            total += (column_weight * row_weight)[..., None] * value
    return total >> (2 * WEIGHT_BITS)


def _split(place):
    """The pixel before `place`, and the weight of the one after it in WEIGHT_BITS."""
    bits = (2 * ONE).bit_length() - 1
    place = place + 2 ** (bits - WEIGHT_BITS - 1)  # rounds the weight
    weight = (place & (2 * ONE - 1)) >> (bits - WEIGHT_BITS)
    return place >> bits, weight
