"""The image tower: order of pixels, levels, exact savings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vilem_jax.models.vision import VisionTower


def see(tower, levels=()):
    return jax.jit(lambda pixels: tower(pixels, levels=levels))


def test_patches_are_read_row_by_row(build, vision_config, pixels):
    tower = build(VisionTower, vision_config)
    kernel = tower.patch_embedding.kernel[...].reshape(4, 4, 3, -1)
    embedded = jax.jit(tower._embed)(pixels)
    for row, column in np.ndindex(2, 2):
        corner = pixels[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        wanted = jnp.einsum("bijc,ijcw->bw", corner, kernel)
        position = 1 + 2 * row + column
        shift = (
            tower.patch_embedding.bias[...] + tower.position_embedding[...][position]
        )
        wanted = wanted + shift[None]
        np.testing.assert_allclose(embedded[:, position], wanted, rtol=1e-5, atol=1e-5)


def test_cls_only_last_block_equals_the_whole_block(
    build, vision_config, pixels, assert_close
):
    on = build(VisionTower, vision_config)
    off = build(VisionTower, vision_config, cls_only_last_layer=False)
    assert_close(see(on, (1, 2))(pixels), see(off, (1, 2))(pixels))


def test_level_at_the_last_block_needs_all_patches(
    build, vision_config, pixels, assert_close
):
    """Then the last block must compute its patches, also if the switch is on."""
    on = see(build(VisionTower, vision_config), (2, 3))(pixels)
    off = build(VisionTower, vision_config, cls_only_last_layer=False)
    assert on.levels[1].shape == (4, 4, 8)
    assert_close(on, see(off, (2, 3))(pixels))


def test_levels_are_the_patches_after_the_block(build, vision_config, pixels):
    tower = build(VisionTower, vision_config, cls_only_last_layer=False)

    @jax.jit
    def by_hand(pixels):
        hidden, seen = tower._embed(pixels), []
        for block in tower.blocks:
            hidden = block(hidden)
            seen.append(hidden[:, 1:])
        return seen

    features = see(tower, (1, 2, 3))(pixels)
    seen = by_hand(pixels)
    for ours, number in zip(features.levels, (1, 2, 3), strict=True):
        np.testing.assert_allclose(ours, seen[number - 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("levels", [(2,), (1, 3)])
def test_recomputing_and_scanning_change_no_gradient(
    build, vision_config, pixels, assert_close, levels
):
    """Level 3 is the last block: then the scan runs through all of them."""
    grads = []
    for recompute, scan in ((False, False), (True, False), (False, True), (True, True)):
        tower = build(VisionTower, vision_config, recompute=recompute, scan_blocks=scan)
        graph, params = nnx.split(tower, nnx.Param)

        def loss(params, graph=graph):
            features = nnx.merge(graph, params)(pixels, levels=levels)
            seen = sum(jnp.square(level).sum() for level in features.levels)
            return features.class_feature[:, 0].sum() + seen

        grads.append(nnx.to_pure_dict(jax.jit(jax.grad(loss))(params)))
    for other in grads[1:]:
        assert_close(other, grads[0])


def test_image_of_another_size_is_refused(build, vision_config):
    tower = build(VisionTower, vision_config)
    for shape in ((1, 8, 12, 3), (1, 16, 16, 3), (1, 3, 8, 8), (8, 8, 3)):
        with pytest.raises(ValueError, match=r"pixels must be \[B, 8, 8, 3\], not"):
            tower(jnp.zeros(shape))
