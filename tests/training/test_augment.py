"""RandAugment's operations against Pillow, and when an image is flipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from tests.tiny import (
    CLS,
    FIRST_WORD,
    LEFT,
    PAD,
    RIGHT,
    SEP,
    tiny_batch,
    tiny_config,
    token_tables,
)
from vilem_jax.config.schema import AugmentConfig
from vilem_jax.distributed.mesh import make_mesh, over_batch, put_batch, replicated
from vilem_jax.editing.editor import FrozenEditor
from vilem_jax.keys import sample_keys
from vilem_jax.training import augment
from vilem_jax.training.step import make_preprocess

SIZE = 24


@pytest.fixture(scope="module")
def images():
    """Smooth, dark, noisy and plain, uint8 [4, 24, 24, 3]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    smooth = np.stack([8 * x, 5 * y, 4 * x + 4 * y], axis=-1)
    dark = 30 + smooth // 4
    noisy = rng.integers(0, 256, (SIZE, SIZE, 3))
    plain = np.full((SIZE, SIZE, 3), 90)
    return np.stack([smooth, dark, noisy, plain]).astype(np.uint8)


apply_operation = jax.jit(augment.apply_operation, static_argnames="level")


def ours(images, name, level=7, sign=1):
    count = len(images)
    number = augment.OPERATIONS.index(name)
    return np.asarray(
        apply_operation(
            jnp.asarray(images, jnp.int32),
            jnp.full(count, number),
            jnp.full(count, sign, jnp.int32),
            level=level,
        )
    )


def by_pillow(images, change):
    changed = [np.asarray(change(Image.fromarray(p))) for p in images]
    return np.stack(changed).astype(np.float32)


def test_identity_is_exact(images):
    np.testing.assert_array_equal(ours(images, "identity"), images)


def test_equalize_equals_pillow(images):
    theirs = by_pillow(images, ImageOps.equalize)
    np.testing.assert_array_equal(ours(images, "equalize"), theirs)
    assert (theirs != images).any()


@pytest.mark.parametrize(
    "name, change",
    [
        ("auto_contrast", ImageOps.autocontrast),
        ("brightness", lambda p: ImageEnhance.Brightness(p).enhance(1.8 * 0.7 + 0.1)),
        ("sharpness", lambda p: ImageEnhance.Sharpness(p).enhance(1.8 * 0.7 + 0.1)),
    ],
)
def test_colors_and_sharpness_are_within_one_level_of_pillow(images, name, change):
    theirs = by_pillow(images, change)
    assert np.abs(ours(images, name) - theirs).max() <= 1
    assert (theirs != images).any()


@pytest.mark.parametrize("level", [0, 10])
@pytest.mark.parametrize("name", ["brightness", "sharpness"])
def test_weakest_and_strongest_enhancement_match_pillow(images, name, level):
    enhance = {
        "brightness": ImageEnhance.Brightness,
        "sharpness": ImageEnhance.Sharpness,
    }
    theirs = by_pillow(
        images, lambda p: enhance[name](p).enhance(1.8 * level / 10 + 0.1)
    )
    assert np.abs(ours(images, name, level) - theirs).max() <= 1


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("axis, name", [(2, "translate_x"), (1, "translate_y")])
def test_translation_moves_whole_pixels(images, axis, name, sign):
    moved = ours(images, name, level=7, sign=sign)
    grey = np.full_like(images, 128)
    wide = np.concatenate([grey, images, grey], axis=axis)
    start = SIZE + 7 * sign
    expected = np.take(wide, range(start, start + SIZE), axis=axis)
    np.testing.assert_array_equal(moved, expected)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", ["shear_x", "shear_y", "rotate"])
def test_shears_and_rotation_match_pillow(images, name, sign):
    """Against Pillow's bilinear map, away from the edge of the old image."""
    middle, angle = SIZE / 2, np.deg2rad(21.0) * sign
    shear = 0.21 * sign
    matrices = {
        "shear_x": [[1, shear], [0, 1]],
        "shear_y": [[1, 0], [shear, 1]],
        "rotate": [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]],
    }
    matrix = np.array(matrices[name])
    offset = middle - matrix @ [middle, middle]
    data = np.concatenate([matrix, offset[:, None]], axis=1).ravel()

    def change(image):
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            tuple(data),
            Image.Resampling.BILINEAR,
            fillcolor=(128, 128, 128),
        )

    found, theirs = ours(images, name, sign=sign), by_pillow(images, change)
    inner = slice(6, -6)  # both read inside the old image here
    difference = np.abs(found - theirs)[:, inner, inner]
    assert difference.max() <= 1
    assert np.abs(theirs - images)[0, inner, inner].mean() > 1
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    source = np.stack([x, y], axis=-1) @ matrix.T + offset
    is_outside = ((source < -1) | (source > SIZE + 1)).any(axis=-1)
    assert is_outside.any() and (found[:, is_outside] == 128).all()


def test_mixed_operations_equal_single_ones(images):
    """Each sample gets its own operation, as if alone."""
    batch = np.repeat(images[2:3], len(augment.OPERATIONS), axis=0)
    mixed = apply_operation(
        jnp.asarray(batch, jnp.int32),
        jnp.arange(len(batch)),
        jnp.ones(len(batch), jnp.int32),
        level=7,
    )
    for row, name in zip(mixed, augment.OPERATIONS, strict=True):
        np.testing.assert_array_equal(row, ours(images[2:3], name)[0])


CONFIG = AugmentConfig()


@jax.jit
def augmented(pixels, keys):
    may_flip = jnp.ones(len(pixels), bool)
    return augment.augment(pixels, keys, keys, CONFIG, may_flip=may_flip)


def test_augmentation_of_a_sample_does_not_depend_on_the_batch(images):
    batch = np.repeat(images, 4, axis=0)
    keys = jax.random.split(jax.random.key(0), 16)
    whole = np.asarray(augmented(batch, keys))
    part = np.asarray(augmented(batch[5:9], keys[5:9]))
    np.testing.assert_array_equal(whole[5:9], part)
    assert whole.min() >= 0 and whole.max() <= 255
    np.testing.assert_array_equal(whole, np.round(whole))


def test_devices_change_no_pixel():
    """One level in one pixel is a difference of 1e-6 in the loss."""
    found = []
    for num_devices in (1, 8):
        mesh = make_mesh(num_devices)
        whole, rows = replicated(mesh), over_batch(mesh)
        run = jax.jit(
            lambda pixels, ids, step: augment.augment(
                pixels,
                sample_keys(jax.random.key(0), step, ids),
                sample_keys(jax.random.key(1), step, ids),
                CONFIG,
                may_flip=jnp.ones(len(pixels), bool),
            ),
            in_shardings=(rows, rows, whole),
            out_shardings=rows,
        )
        batches = [put_batch(tiny_batch(step), mesh) for step in range(12)]
        found.append(
            [run(b["pixels"], b["sample_id"], i) for i, b in enumerate(batches)]
        )
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_augmentation_changes_the_expected_share_of_images():
    """Twice, with probability 1/2, one of 10 operations of which one is identity."""
    rng = np.random.default_rng(0)
    # Half the range of levels, so that AutoContrast changes every one.
    image = rng.integers(60, 180, (1, SIZE, SIZE, 3), dtype=np.uint8)
    count, changed = 400, 0
    config = AugmentConfig(flip_rate=0.0)
    run = jax.jit(
        lambda p, k: augment.augment(p, k, k, config, may_flip=jnp.ones(100, bool))
    )
    for seed in range(count // 100):
        batch = np.repeat(image, 100, axis=0)
        result = run(batch, jax.random.split(jax.random.key(seed), 100))
        changed += (np.asarray(result) != batch).any(axis=(1, 2, 3)).sum()
    rate = 1 - (1 - 0.5 * 0.9) ** 2
    assert abs(changed / count - rate) < 4 * np.sqrt(rate * (1 - rate) / count)


@pytest.mark.parametrize("spares", [True, False])
def test_captions_with_left_or_right_are_not_flipped(spares):
    changes = {"flip_rate": 1.0, "num_ops": 0, "flip_spares_sides": spares}
    off = {
        f"{b}_{t}": False for b in ("local", "global") for t in ("detect", "correct")
    }
    config = tiny_config(augment=changes, loss=off)
    batch = tiny_batch()
    batch["tokens"][:] = [CLS, FIRST_WORD + 5, SEP, *[PAD] * 9]
    batch["tokens"][2, 1], batch["tokens"][5, 1] = LEFT, RIGHT
    prepare = make_preprocess(config, None)
    keys = sample_keys(jax.random.key(0), 0, batch["sample_id"])
    samples = jax.jit(prepare)(FrozenEditor({}, token_tables()), batch, keys)
    mean, std = np.array(config.augment.mean), np.array(config.augment.std)
    for row, pixels in enumerate(batch["pixels"]):
        stays = spares and row in (2, 5)
        wanted = pixels if stays else pixels[:, ::-1]
        np.testing.assert_allclose(
            samples.pixels[row], (wanted / 255 - mean) / std, atol=1e-5
        )


def test_operations_and_signs_are_drawn_evenly(monkeypatch):
    """Each operation in each direction, and only at the configured rate."""
    seen = []
    monkeypatch.setattr(augment, "apply_operation", lambda *given: seen.append(given))
    count, config = 4000, AugmentConfig(op_rate=0.8)
    keys = jax.random.split(jax.random.key(0), count)
    augment._random_operation(None, keys, config)
    _, operation, sign, level = map(np.asarray, seen[0])
    assert level == config.level and set(sign) == {-1, 1}
    for number in range(1, len(augment.OPERATIONS)):
        for direction in (-1, 1):
            found = ((operation == number) & (sign == direction)).mean()
            rate = 0.8 / len(augment.OPERATIONS) / 2
            assert abs(found - rate) < 4.5 * np.sqrt(rate * (1 - rate) / count)


def test_each_round_has_its_own_keys(monkeypatch):
    seen = []

    def record(images, keys, config):
        seen.append(jax.random.key_data(keys))
        return images

    monkeypatch.setattr(augment, "_random_operation", record)
    flip_keys, op_keys = jax.random.split(jax.random.key(0), (2, 3))
    pixels, may_flip = np.zeros((3, 4, 4, 3), np.uint8), np.ones(3, bool)
    augment.augment(pixels, flip_keys, op_keys, CONFIG, may_flip=may_flip)
    assert len(seen) == CONFIG.num_ops
    for number, found in enumerate(seen):
        keys = [jax.random.fold_in(key, number) for key in op_keys]
        np.testing.assert_array_equal(found, [jax.random.key_data(k) for k in keys])


def test_smoothed_image_equals_pillow(images):
    """Sharpness of 0 is Pillow's SMOOTH, rounded to the nearest level."""
    theirs = by_pillow(images, lambda p: p.filter(ImageFilter.SMOOTH))
    smooth = augment.sharpen(jnp.asarray(images, jnp.int32), 0)
    np.testing.assert_array_equal(smooth, theirs)


def test_bilinear_samples_are_rounded_to_the_nearest_level():
    """Not down, which would darken every image."""
    pixel = 2 * augment.ONE
    image = jnp.broadcast_to(jnp.array([10, 20, 21, 50])[None, :, None], (4, 4, 3))
    x = jnp.array([[pixel // 4, 3 * pixel // 2, 5 * pixel // 2 + pixel // 4]])
    found = augment._sample(image, x, jnp.full(x.shape, pixel))
    # 12.5, 20.5 and 42.75: halves go up.
    np.testing.assert_array_equal(found[0, :, 0], [13, 21, 43])
    # In weights of pixel / 2048, before and after a pixel.
    unit = pixel >> augment.WEIGHT_BITS
    near = jnp.array([unit - 1, unit // 2 - 1, -1, 3 * pixel + unit // 2])
    before, weight = augment._split(near)
    np.testing.assert_array_equal(before, [0, 0, 0, 3])
    np.testing.assert_array_equal(weight, [1, 0, 0, 1])
