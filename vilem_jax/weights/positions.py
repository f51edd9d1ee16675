"""Position embeddings of a ViT for another number of patches."""

import math

import numpy as np

from vilem_jax.errors import UserError

SHARPNESS = -0.75  # the cubic's a; torch's choice, where Keys's and JAX's is -0.5


def side_of(
    shape: tuple[int, ...], name: str, origin: object, *, num_extra: int = 1
) -> int:
    """The side S of a stored table [1, num_extra + S * S, W].

    Args:
      num_extra: rows before the grid: that of [CLS], and of DeiT's distillation token.

    Raises:
      UserError: no such table.
    """
    rows = shape[1] - num_extra if len(shape) == 3 else 0
    side = math.isqrt(max(rows, 0))
    if side == 0 or side * side != rows:
        raise UserError(
            f"the tensor {name} in {origin} is {list(shape)}: [CLS] and a square grid "
            "of patches are expected"
        )
    return side


def check_divides(image_size: int, patch_size: int, origin: object) -> None:
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
    """[1 + S * S, W] -> [1 + side * side, W]: [CLS] kept, the grid resized; 0 is S.

    Bicubic as torch's `interpolate(mode="bicubic", align_corners=False)`: no
    antialiasing, positions beyond the edge repeat the edge. ALBEF resizes so.
    """
    old = math.isqrt(table.shape[0] - 1)
    if side in (0, old):
        return table
    grid = table[1:].reshape(old, old, -1).astype(np.float64)
    weights = _weights(old, side)
    grid = np.einsum("yr,xc,rcw->yxw", weights, weights, grid, optimize=True)
    resized = grid.reshape(side * side, -1).astype(np.float32)
    return np.concatenate([table[:1], resized])


def _weights(old: int, new: int) -> np.ndarray:
    """[new, old], rows sum to 1: how much of each old position is in each new one."""
    centers = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centers).astype(int)
    weights = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        index = first + offset
        share = _cubic(np.abs(centers - index))
        np.add.at(weights, (np.arange(new), index.clip(0, old - 1)), share)
    return weights


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Cubic convolution: 1 at 0, 0 at 1 and from 2 on."""
    a, d = SHARPNESS, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
