"""The image tower of all formats in torch's layout: one table by each one's names."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vilem_jax.config.schema import RGB, VisionConfig
from vilem_jax.errors import UserError
from vilem_jax.models.vision import VisionTower
from vilem_jax.weights import positions, tables
from vilem_jax.weights.folders import Tensors
from vilem_jax.weights.tables import Entry


class VisionNames(NamedTuple):
    """What a format calls the parts of a ViT."""

    class_token: str
    positions: str
    patches: str
    norm: str
    block: str  # before the number of a block
    # Of each block: the format's name, and ours. Several of ours are linear maps that
    # the format stores as one.
    in_block: Mapping[str, str | tuple[str, ...]]
    dropped: Sequence[str]  # left out on purpose
    distillation: str = ""  # DeiT's token, whose position is the second


class VisionStart(NamedTuple):
    """What comes with an image tower besides its shape and parameters."""

    mean: RGB  # of the images that it has learnt from, see `AugmentConfig`
    std: RGB
    note: str = ""  # for the user, a sentence without its subject


def vision_table(
    names: VisionNames, num_layers: int, *, is_distilled: bool = False
) -> list[Entry]:
    """The format's tensors -> `VisionTower`.

    Args:
      is_distilled: of a DeiT, whose second position is that of its distillation token.
    """
    grid = tables.DISTILLED if is_distilled else tables.FIRST_OF_ONE
    kernel, bias = ("patch_embedding", "kernel"), ("patch_embedding", "bias")
    table = [
        Entry(names.class_token, ("class_token",), tables.FIRST_OF_ONE_TWICE),
        Entry(names.positions, ("position_embedding",), grid),
        Entry(f"{names.patches}.weight", kernel, tables.PATCHES),
        Entry(f"{names.patches}.bias", bias, tables.SAME),
        *tables.layer_norm(names.norm, ("norm",)),
    ]
    for number in range(num_layers):
        for theirs, ours in names.in_block.items():
            name, path = f"{names.block}{number}.{theirs}", ("blocks", number)
            if isinstance(ours, tuple):
                table += tables.thirds(name, path, ours)
            elif ours in ("attention_norm", "mlp_norm"):
                table += tables.layer_norm(name, (*path, ours))
            else:
                table += tables.linear(name, (*path, *ours.split(".")))
    return table


def load_vision(names: VisionNames, files: Tensors, config: VisionConfig) -> dict:
    """Parameters of `VisionTower`, the grid of positions resized to `config`'s.

    Raises:
      UserError: tensors that are missing, unknown, or of another shape than `config`.
    """
    is_distilled = names.distillation in files.names
    table = vision_table(names, config.num_layers, is_distilled=is_distilled)
    stored = stored_config(files, config, names.positions, num_extra=1 + is_distilled)
    return read_tower(table, files, config, stored, names.dropped)


def read_tower(
    table: Sequence[Entry],
    files: Tensors,
    config: VisionConfig,
    stored: VisionConfig,
    dropped: Sequence[str],
) -> dict:
    """Parameters of `VisionTower` by a format's table, positions resized to `config`.

    Args:
      stored: of `stored_config`.

    Raises:
      UserError: tensors that are missing, unknown, or of another shape than `config`.
    """
    expected = tables.shapes_of(VisionTower, stored)
    tree = tables.read_tree(table, files, dropped=dropped, expected=expected)
    side = config.image_size // config.patch_size
    tree["position_embedding"] = positions.resize(tree["position_embedding"], side)
    return tree


def stored_config(
    files: Tensors, config: VisionConfig, table: str, *, num_extra: int = 1
) -> VisionConfig:
    """`config` with the image's side that the checkpoint was trained at.

    Args:
      table: the name of its positions [1, num_extra + S * S, W].
      num_extra: rows before the grid: [CLS], and DeiT's distillation token.

    Raises:
      UserError: the positions have another shape.
    """
    if table not in files.names:
        return config  # reading the tensors will name what is missing
    shape = files.shape(table)
    rows = shape[1] - num_extra if len(shape) == 3 else 0
    side = math.isqrt(max(rows, 0))
    if side == 0 or side * side != rows:
        raise UserError(
            f"the tensor {files.stored[table].name} in {files.path} is {list(shape)}: "
            "[CLS] and a square grid of patches are expected"
        )
    return dataclasses.replace(config, image_size=side * config.patch_size)
