"""Towers to start from: any known format, a file or a folder or a hub name.

What `config.model.vision.start_from` and `config.model.text.start_from` name.
"""

import dataclasses
from pathlib import Path

from vilem_jax.config.schema import TextConfig, VisionConfig
from vilem_jax.errors import UserError
from vilem_jax.weights import positions
from vilem_jax.weights.detect import FORMATS, recognise
from vilem_jax.weights.foreign import open_foreign
from vilem_jax.weights.formats import huggingface_bert, huggingface_vit
from vilem_jax.weights.model_folder import is_model_folder, read_model_folder


def read_vision_config(
    name: str, base: VisionConfig, *, allow_pickle: bool = False
) -> VisionConfig:
    """The tower's shape, epsilon and activation; the image's side from `base`.

    Args:
      name: a file, a folder or a hub name.
      allow_pickle: whether .pth, .pt and .bin may be read.

    Raises:
      UserError: nothing there that is known, or nothing with an image tower.
    """
    if _is_ours(name):
        stored = read_model_folder(name).config.model.vision
        positions.check_divides(base.image_size, stored.patch_size, name)
        return dataclasses.replace(
            stored, start_from=base.start_from, image_size=base.image_size
        )
    source, form = _open(name, "vision", allow_pickle)
    if form.module is huggingface_vit:
        return huggingface_vit.read_vision_config(source.folder, base)
    return form.module.read_vision_config(source, base)


def load_vision(name: str, config: VisionConfig, *, allow_pickle: bool = False) -> dict:
    """Parameters of `VisionTower`, the grid of positions resized to `config`'s.

    Raises:
      UserError: tensors that are missing, unknown, or of another shape than `config`.
    """
    if _is_ours(name):
        side = config.image_size // config.patch_size
        return positions.resize_vision(read_model_folder(name).params, side)["vision"]
    source, form = _open(name, "vision", allow_pickle)
    if form.module is huggingface_vit:
        return huggingface_vit.load_vision(source.folder, config, source.files)
    return form.module.load_vision(source, config)


def read_text_config(
    name: str, base: TextConfig, *, allow_pickle: bool = False
) -> TextConfig:
    """The tower's shape, epsilon and activation; dropout from `base`.

    Raises:
      UserError: nothing there that is known, or nothing with a text tower.
    """
    if _is_ours(name):
        stored = read_model_folder(name).config.model.text
        return dataclasses.replace(
            stored, start_from=base.start_from, dropout_rate=base.dropout_rate
        )
    source, form = _open(name, "text", allow_pickle)
    if form.module is huggingface_bert:
        return huggingface_bert.read_text_config(source.folder, base)
    return form.module.read_text_config(source, base)


def load_text(
    name: str, config: TextConfig, *, allow_pickle: bool = False
) -> tuple[dict, dict | None]:
    """Parameters of `TextTower` without cross-attention, and a masked-language head.

    The head is `huggingface_bert.load_mlm_head`'s, None where there is none.

    Raises:
      UserError: tensors that are missing, unknown, or of another shape than `config`.
    """
    if _is_ours(name):
        tower = read_model_folder(name).params["text"]
        layers = {
            number: {k: v for k, v in layer.items() if k != "cross_attention"}
            for number, layer in tower["layers"].items()
        }
        return tower | {"layers": layers}, None
    source, form = _open(name, "text", allow_pickle)
    if form.module is not huggingface_bert:
        return form.module.load_text(source, config), None
    folder, files = source.folder, source.files
    tower = huggingface_bert.load_text(folder, config, files)
    if not huggingface_bert.has_head(folder, files):
        return tower, None
    return tower, huggingface_bert.load_mlm_head(folder, config, files)


def _is_ours(name: str) -> bool:
    folder = Path(name).expanduser()
    return folder.is_dir() and is_model_folder(folder)


def _open(name: str, tower: str, allow_pickle: bool):
    source = open_foreign(name, allow_pickle=allow_pickle)
    key = recognise(source)
    form = FORMATS[key]
    if not getattr(form, f"has_{tower}"):
        formats = [k for k, f in FORMATS.items() if getattr(f, f"has_{tower}")]
        raise UserError(
            f"{source.path} (config.model.{tower}.start_from) is in the format {key}, "
            f"which has no {tower} tower; {', '.join(formats)} have one"
        )
    return source, form
