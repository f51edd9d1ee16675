"""Towers to start from: any known format, a file or a folder or a hub name.

The names are those of `config.model.vision.start_from` and `model.text.start_from`.
"""

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Literal

from vilem_jax.config.schema import TextConfig, VisionConfig
from vilem_jax.errors import UserError
from vilem_jax.weights import positions, tables
from vilem_jax.weights.detect import FORMATS, recognize
from vilem_jax.weights.folders import Tensors
from vilem_jax.weights.foreign import open_checkpoint
from vilem_jax.weights.formats import huggingface_bert
from vilem_jax.weights.formats.vision_names import VisionStart
from vilem_jax.weights.model_folder import is_model_folder, read_model_folder


def read_vision_config(
    name: str, base: VisionConfig, *, allow_pickle: bool = False
) -> VisionConfig:
    """The tower's shape, epsilon and activation; the image's side from `base`.

    Args:
      name: a file, a folder or a hub name.
      allow_pickle: whether .pth, .pt and .bin may be read.

    Raises:
      UserError: nothing known is there, or it has no image tower.
    """
    if _is_ours(name):
        stored = read_model_folder(name).config.model.vision
        positions.check_divides(base.image_size, stored.patch_size, name)
        return dataclasses.replace(
            stored,
            start_from=base.start_from,
            image_size=base.image_size,
            num_trained_layers=base.num_trained_layers,
        )
    source, module = _open(name, "vision", allow_pickle)
    return module.read_vision_config(source, base)


def read_vision_start(name: str, *, allow_pickle: bool = False) -> VisionStart | None:
    """The normalization of images that comes with the tower; None: the config decides.

    Raises:
      UserError: as of `read_vision_config`.
    """
    if _is_ours(name):
        augment = read_model_folder(name).config.augment
        return VisionStart(augment.mean, augment.std)
    source, module = _open(name, "vision", allow_pickle)
    return module.read_start(source) if hasattr(module, "read_start") else None


def load_vision(name: str, config: VisionConfig, *, allow_pickle: bool = False) -> dict:
    """Parameters of `VisionTower`, the grid of positions resized to `config`'s.

    Raises:
      UserError: tensors that are missing, unknown, or of another shape than `config`.
    """
    if _is_ours(name):
        side = config.image_size // config.patch_size
        return positions.resize_vision(read_model_folder(name).params, side)["vision"]
    source, module = _open(name, "vision", allow_pickle)
    return module.load_vision(source, config)


def read_text_config(
    name: str, base: TextConfig, *, allow_pickle: bool = False
) -> TextConfig:
    """The tower's shape, epsilon and activation; dropout from `base`.

    Raises:
      UserError: nothing known is there, or it has no text tower.
    """
    if _is_ours(name):
        stored = read_model_folder(name).config.model.text
        return dataclasses.replace(
            stored,
            start_from=base.start_from,
            dropout_rate=base.dropout_rate,
            num_trained_layers=base.num_trained_layers,
        )
    source, module = _open(name, "text", allow_pickle)
    return module.read_text_config(source, base)


def load_text(
    name: str, config: TextConfig, *, allow_pickle: bool = False
) -> tuple[dict, dict | None]:
    """Parameters of `TextTower` without cross-attention, and a masked-language head.

    The head is {"transform": ..., "bias": [V]}, None if there is none.

    Raises:
      UserError: tensors that are missing, unknown, or of another shape than `config`.
    """
    if _is_ours(name):
        tower = read_model_folder(name).params["text"]
        return tables.without(tower, lambda path: "cross_attention" in path), None
    source, module = _open(name, "text", allow_pickle)
    if module is huggingface_bert and huggingface_bert.has_head(source):
        head = huggingface_bert.load_masked_language_model(source, config)
        tower = head.pop("text")
        return tower, head
    return module.load_text(source, config), None


def _is_ours(name: str) -> bool:
    folder = Path(name).expanduser()
    return folder.is_dir() and is_model_folder(folder)


def _open(
    name: str, tower: Literal["vision", "text"], allow_pickle: bool
) -> tuple[Tensors, ModuleType]:
    """The opened checkpoint, and the module of its format, which has this tower."""
    source = open_checkpoint(name, allow_pickle=allow_pickle)
    key = recognize(source)
    having = [k for k, module in FORMATS.items() if hasattr(module, f"load_{tower}")]
    if key not in having:
        raise UserError(
            f"{source.path} (config.model.{tower}.start_from) is in the format {key}, "
            f"which has no {tower} tower; {', '.join(having)} have one"
        )
    return source, FORMATS[key]
