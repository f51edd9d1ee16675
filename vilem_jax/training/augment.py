"""Augmentation on the device: flip and RandAugment.

RandAugment's ten operations are three kinds of work: a look-up table over the 256
levels (AutoContrast, Equalize, Brightness), a blend with the smoothed picture
(Sharpness), and an affine map (shears, translations, rotation). Each round does the
three once for the whole batch, with neutral settings where a sample drew something
else; a `switch` under `vmap` would run all ten branches for every sample.
"""

import jax
import jax.numpy as jnp

from vilem_jax.config import AugmentConfig

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
FILL = 128.0  # grey for what an affine map uncovers


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
    images = pixels.astype(jnp.float32)
    if config.flip_rate > 0:
        coin = jax.vmap(jax.random.uniform)(flip_keys) < config.flip_rate
        images = _where(coin & may_flip, images[:, :, ::-1], images)
    for round_number in range(config.num_ops):
        keys = jax.vmap(jax.random.fold_in, (0, None))(op_keys, round_number)
        images = _random_operation(images, keys, config)
    return images


def _where(choose: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    """Per-sample choice between [B, ...] arrays; choose is bool [B]."""
    return jnp.where(choose.reshape(-1, *(1,) * (no.ndim - 1)), yes, no)


def _random_operation(images, keys, config: AugmentConfig):
    """One drawn operation per sample, applied with probability `op_rate`."""
    draws = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys)
    operation = jnp.floor(draws[:, 0] * len(OPERATIONS)).astype(jnp.int32)
    is_applied = draws[:, 1] < config.op_rate
    operation = jnp.where(is_applied, operation, OPERATIONS.index("identity"))
    sign = jnp.where(draws[:, 2] < 0.5, -1.0, 1.0)
    return apply_operation(images, operation, sign, config.level)


def apply_operation(
    images: jax.Array, operation: jax.Array, sign: jax.Array, level: int
) -> jax.Array:
    """Applies OPERATIONS[operation[i]] to image i.

    Args:
      images: float32 [B, R, R, 3], whole levels in 0..255.
      operation: int32 [B].
      sign: [B], the direction of geometric operations, -1 or 1.
      level: strength 0..10.
    """
    enhance = 1.8 * level / 10 + 0.1
    images = _apply_tables(images, operation, enhance)
    is_sharpness = operation == OPERATIONS.index("sharpness")
    images = _where(is_sharpness, sharpen(images, enhance), images)
    return warp(images, _affine(operation, sign, level, images.shape[1]))


def _apply_tables(images, operation, factor: float):
    levels = jnp.clip(images, 0, 255).astype(jnp.int32)
    counts = jax.vmap(_histogram)(levels)  # [B, 3, 256]
    identity = jnp.broadcast_to(jnp.arange(256.0), counts.shape)
    table = identity
    for name, candidate in (
        ("auto_contrast", contrast_table(counts)),
        ("equalize", equalize_table(counts)),
        ("brightness", jnp.floor(jnp.clip(identity * factor, 0, 255))),
    ):
        table = _where(operation == OPERATIONS.index(name), candidate, table)

    def look_up(table, image):  # [3, 256], [R, R, 3]
        return jax.vmap(lambda row, channel: row[channel], (0, 2), 2)(table, image)

    return jax.vmap(look_up)(table, levels)


def _histogram(image):
    """int [R, R, 3] -> counts [3, 256]."""
    channels = image.reshape(-1, 3).T
    zeros = jnp.zeros(256)
    return jax.vmap(lambda values: zeros.at[values].add(1.0))(channels)


def contrast_table(counts: jax.Array) -> jax.Array:
    """AutoContrast: the used levels stretched to 0..255, a channel at a time."""
    used = counts > 0
    low = jnp.argmax(used, axis=-1, keepdims=True).astype(jnp.float32)
    high = 255.0 - jnp.argmax(used[..., ::-1], axis=-1, keepdims=True)
    levels = jnp.broadcast_to(jnp.arange(256.0), counts.shape)
    stretched = (levels - low) * (255.0 / jnp.maximum(high - low, 1.0))
    stretched = jnp.floor(jnp.clip(stretched, 0, 255))
    return jnp.where(high > low, stretched, levels)


def equalize_table(counts: jax.Array) -> jax.Array:
    """Equalize: levels spread so that each is used alike, by whole-number steps."""
    last = 255 - jnp.argmax((counts > 0)[..., ::-1], axis=-1, keepdims=True)
    total = counts.sum(axis=-1, keepdims=True)
    of_last = jnp.take_along_axis(counts, last, axis=-1)
    step = jnp.floor((total - of_last) / 255.0)
    before = jnp.cumsum(counts, axis=-1) - counts
    spread = jnp.floor((before + jnp.floor(step / 2)) / jnp.maximum(step, 1.0))
    levels = jnp.broadcast_to(jnp.arange(256.0), counts.shape)
    return jnp.where(step > 0, jnp.minimum(spread, 255.0), levels)


def sharpen(images: jax.Array, factor: float) -> jax.Array:
    """Away from the smoothed picture by `factor`; the border stays as it is."""
    weights = jnp.asarray([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    size = images.shape[1]
    inner = sum(
        weights[i, j] * images[:, i : size - 2 + i, j : size - 2 + j]
        for i in range(3)
        for j in range(3)
    )
    smooth = images.at[:, 1:-1, 1:-1].set(jnp.floor(inner + 0.5))
    return jnp.floor(jnp.clip(smooth + factor * (images - smooth), 0, 255))


def _affine(operation, sign, level: int, size: int):
    """The map from a target pixel to its source, [B, 2, 3] over (x, y, 1)."""

    def strength(name, largest):
        is_this = operation == OPERATIONS.index(name)
        return jnp.where(is_this, sign * largest * level / 10, 0.0)

    angle = jnp.deg2rad(strength("rotate", 30.0))
    shear_x, shear_y = strength("shear_x", 0.3), strength("shear_y", 0.3)
    move_x, move_y = strength("translate_x", 10.0), strength("translate_y", 10.0)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    middle = (size - 1) / 2
    return jnp.stack(
        [
            jnp.stack([cosine, sine + shear_x, move_x], -1),
            jnp.stack([shear_y - sine, cosine, move_y], -1),
        ],
        axis=1,
    ) @ jnp.asarray([[1.0, 0, -middle], [0, 1, -middle], [0, 0, 1]]) + jnp.asarray(
        [[[0.0, 0, middle], [0, 0, middle]]]
    )


def warp(images: jax.Array, matrix: jax.Array) -> jax.Array:
    """Bilinear sampling at matrix @ (x, y, 1); outside the picture lies grey.

    Args:
      images: [B, R, R, 3].
      matrix: [B, 2, 3], target pixel -> source pixel.
    """
    size = images.shape[1]
    y, x = jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="ij")
    grid = jnp.stack([x.ravel(), y.ravel(), jnp.ones(size * size)])  # [3, R R]
    # HIGHEST: coordinates must not be rounded to bfloat16 or TF32.
    source = jnp.einsum(
        "bij,jp->bip", matrix, grid, precision=jax.lax.Precision.HIGHEST
    )
    return jax.vmap(_sample)(images, source[:, 0], source[:, 1])


def _sample(image, x, y):
    size = image.shape[0]
    left, top = jnp.floor(x), jnp.floor(y)
    result = jnp.zeros((size * size, 3))
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = left + dx, top + dy
        weight = jnp.abs(1 - dx - (x - left)) * jnp.abs(1 - dy - (y - top))
        is_inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
        column = jnp.clip(column, 0, size - 1).astype(jnp.int32)
        row = jnp.clip(row, 0, size - 1).astype(jnp.int32)
        value = jnp.where(is_inside[:, None], image[row, column], FILL)
        result = result + weight[:, None] * value
    return jnp.floor(result + 0.5).reshape(size, size, 3)
