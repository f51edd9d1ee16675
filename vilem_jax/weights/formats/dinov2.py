"""DINOv2's ViTs: Hugging Face's `Dinov2Model`, in and out; the authors' names, in.

Their blocks have LayerScale, x + g * f(x), with one vector g after attention and one
after the MLP. Our block has none, so g is folded into the linear map that ends f, which
gives the same features. It trains differently: Adam changes a folded kernel by as much
as one that is not scaled, however small g is.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vilem_jax.config.schema import VisionConfig
from vilem_jax.errors import UserError
from vilem_jax.parsing import is_number, read_json
from vilem_jax.weights import folders, positions, tables
from vilem_jax.weights.folders import PREPROCESSOR, Stored, Tensors
from vilem_jax.weights.formats import huggingface_vit, timm_vit, vision_names
from vilem_jax.weights.formats.vision_names import VisionNames, VisionStart
from vilem_jax.weights.settings import Settings, layer_settings


class Spelling(NamedTuple):
    """The names of one kind of file."""

    names: VisionNames
    scales: Mapping[str, str]  # of a block: LayerScale's vector, the linear map it ends


# Both have the mask token of masked-image training, and may have a classifier.
HUGGING_FACE = Spelling(
    huggingface_vit.NAMES._replace(
        in_block={
            "norm1": "attention_norm",
            "attention.attention.query": "query",
            "attention.attention.key": "key",
            "attention.attention.value": "value",
            "attention.output.dense": "output",
            "norm2": "mlp_norm",
            "mlp.fc1": "mlp.expand",
            "mlp.fc2": "mlp.contract",
        },
        dropped=("embeddings.mask_token", "classifier."),
        distillation="",
    ),
    {
        "layer_scale1.lambda1": "attention.output.dense",
        "layer_scale2.lambda1": "mlp.fc2",
    },
)
AUTHORS = Spelling(  # timm has the same names
    timm_vit.NAMES._replace(dropped=("mask_token", "head."), distillation=""),
    {"ls1.gamma": "attn.proj", "ls2.gamma": "mlp.fc2"},
)
PREFIXES = (("dinov2.", ""),)  # of Dinov2ForImageClassification
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of DINOv2
NOTE = (
    "its LayerScale is folded into the linear maps before it: the features are the "
    "same, but training is not that of LayerScale as a parameter"
)


def matches(names: Collection[str]) -> bool:
    """Whether tensors of these names are in this format: a ViT with LayerScale."""
    firsts = ("encoder.layer.0.layer_scale1.lambda1", "blocks.0.ls1.gamma")
    return any(name.endswith(firsts) for name in names)


def read_vision_config(
    source: Tensors, base: VisionConfig, *, num_heads: int = 0
) -> VisionConfig:
    """The shape of the checkpoint; the image's side from `base`.

    Args:
      num_heads: 0 if not given; config.json decides if there is one.

    Raises:
      UserError: a variant with registers or SwiGLU, or tensors or settings that are
        missing.
    """
    files = _plain(source)
    if _spelling(files) is AUTHORS:
        config = timm_vit.shape_config(files, base, num_heads=num_heads)
    else:
        settings = Settings(source, "dinov2")
        # Its config.json has the MLP's width as a multiple of the tower's.
        ratio = settings.number("mlp_ratio", float, 4.0)
        mlp_width = int(settings.number("hidden_size") * ratio)
        settings.values["intermediate_size"] = mlp_width
        patch_size = settings.number("patch_size")
        config = dataclasses.replace(base, patch_size=patch_size, **settings.layers())
    positions.check_divides(config.image_size, config.patch_size, source.path)
    return config


def load_vision(source: Tensors, config: VisionConfig) -> dict:
    """Parameters of `VisionTower`, LayerScale folded in; positions resized to `config`.

    Raises:
      UserError: as of `read_vision_config`, or tensors of another shape than `config`.
    """
    files = _plain(source)
    names, scales = _spelling(files)
    folded = dict(files.stored)
    for number in range(config.num_layers):
        for scale, linear in scales.items():
            block = f"{names.block}{number}."
            _fold(files, folded, block + scale, block + linear)
    files = dataclasses.replace(files, stored=folded)
    return vision_names.load_vision(names, files, config)


def read_start(source: Tensors) -> VisionStart:
    """The normalization of preprocessor_config.json, if it is there; else DINOv2's."""
    file = source.folder / PREPROCESSOR
    found = read_json(file, "settings") if file.is_file() else {}
    if not isinstance(found, dict):
        raise UserError(f"{file} must hold an object, not a {type(found).__name__}")
    values = []
    for key, default in zip(("image_mean", "image_std"), IMAGENET, strict=True):
        value = found.get(key, default)
        is_rgb = isinstance(value, list | tuple) and len(value) == 3
        if not is_rgb or not all(map(is_number, value)):
            raise UserError(f"{file}: {key} must be three numbers, not {value!r}")
        values.append(tuple(map(float, value)))
    return VisionStart(*values, note=NOTE)


def save_vision(
    folder: Path, params: Mapping, config: VisionConfig, start: VisionStart
) -> None:
    """Writes a folder that Hugging Face's Dinov2Model and we load, as one change.

    LayerScale is all ones in it.

    Raises:
      UserError: `folder` holds something else.
    """
    names, scales = HUGGING_FACE
    ratio = config.mlp_width / config.width
    table = vision_names.vision_table(names, config.num_layers)
    tensors = tables.write_tensors(table, params)
    for number in range(config.num_layers):
        for scale in scales:
            ones = np.ones(config.width, np.float32)
            tensors[f"{names.block}{number}.{scale}"] = ones
    tensors["embeddings.mask_token"] = np.zeros((1, config.width), np.float32)
    settings = {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
        # transformers takes a whole number alone, if it is one.
        "mlp_ratio": int(ratio) if ratio.is_integer() else ratio,
        "use_swiglu_ffn": False,
        **layer_settings(config, dropout=0.0),
    }
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "do_normalize": True,
        "image_mean": start.mean,
        "image_std": start.std,
        "size": {"height": config.image_size, "width": config.image_size},
    }
    folders.write_folder(folder, settings, tensors, preprocessor=preprocessor)


def _plain(source: Tensors) -> Tensors:
    """In the spelling of the tables.

    Raises:
      UserError: a variant that our ViT does not compute.
    """
    refused = {
        "register tokens": ("register_tokens", "reg_token"),
        "a SwiGLU MLP": (
            ".mlp.w12.weight",
            ".mlp.weights_in.weight",
            "gate_proj.weight",
        ),
    }
    for what, endings in refused.items():
        if found := next((n for n in source.names if n.endswith(endings)), ""):
            raise UserError(
                f"{source.path} is a DINOv2 with {what} ({found}), which the image "
                "tower does not have: start from one without registers, of size "
                "small, base or large"
            )
    return tables.spell(source, PREFIXES)


def _spelling(files: Tensors) -> Spelling:
    is_authors = f"{AUTHORS.names.patches}.weight" in files.names
    return AUTHORS if is_authors else HUGGING_FACE


def _fold(files: Tensors, folded: dict[str, Stored], scale: str, linear: str) -> None:
    """Multiplies the rows of a linear map's weight and bias by a vector of `files`.

    Raises:
      UserError: there is no such vector, or it has another length.
    """
    (width,) = tables.shape_of(files, scale, rank=1)
    factor = files.read(scale)
    del folded[scale]
    for part in ("weight", "bias"):
        name = f"{linear}.{part}"
        if name not in files.names:
            continue  # reading the tower will name it
        array = files.read(name)
        if array.ndim == 0 or len(array) != width:
            raise UserError(
                f"the tensor {files.stored[scale].name} in {files.path} is "
                f"{[width]}, but {files.stored[name].name}, which it scales, is "
                f"{list(array.shape)}"
            )
        rows = factor.reshape(-1, *(1,) * (array.ndim - 1))
        folded[name] = Stored(files.stored[name].name, array * rows)
