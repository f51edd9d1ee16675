"""Position embeddings of a ViT for another number of patches."""

import math

import jax
import numpy as np

from vilem_jax.errors import UserError


def check_divides(image_size: int, patch_size: int, origin: object) -> None:
    """Raises UserError if the image's side is no multiple of the patch's."""
    if image_size % patch_size:
        raise UserError(
            f"images of {image_size} pixels do not divide into the patches of "
            f"{patch_size} of {origin}: set config.model.vision.image_size to a "
            f"multiple of {patch_size}"
        )


def resize_vision(params: dict, side: int) -> dict:
    """Parameters of a `ViLEM`, online or momentum, for a grid of another side."""
    vision = params["vision"]
    table = resize(np.asarray(vision["position_embedding"]), side)
    return params | {"vision": vision | {"position_embedding": table}}


def resize(table: np.ndarray, side: int) -> np.ndarray:
    """[1 + S * S, W] -> [1 + side * side, W]: [CLS] kept, the grid resized; 0 keeps S.

    Bicubic as torch's `interpolate(mode="bicubic", align_corners=False)`: a = -0.75, no
    antialiasing, positions beyond the edge repeat the edge. ALBEF resizes so.
    """
    old = math.isqrt(table.shape[0] - 1)
    if side in (0, old):
        return table
    with jax.enable_x64(True):  # in float32 the last bits would depend on the device
        grid = table[1:].reshape(old, old, -1).astype(np.float64)
        shape = (side, side, grid.shape[-1])
        resized = jax.image.resize(grid, shape, "cubic-pytorch", antialias=False)
        rows = np.asarray(resized).reshape(side * side, -1).astype(np.float32)
    return np.concatenate([table[:1], rows])
