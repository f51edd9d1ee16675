"""The model that a run is fine-tuned from, `config.model.start_from`.

The run takes all its parameters, and its momentum parameters if it has them; the queues
start empty. The run also takes its shapes, except the image size.
"""

import dataclasses
from pathlib import Path
from typing import TypeVar

import numpy as np

from vilem_jax.config.schema import Config, ModelConfig, TextConfig, VisionConfig
from vilem_jax.errors import UserError
from vilem_jax.models.locked import join_params
from vilem_jax.runs.checkpoint_contents import check_same, describe_shapes, flatten
from vilem_jax.runs.checkpoints import CHECKPOINTS_FOLDER, restore_fields
from vilem_jax.runs.workdir import CONFIG_FILE, read_config
from vilem_jax.weights import model_folder, positions

Section = TypeVar("Section", bound=ModelConfig | TextConfig | VisionConfig)

TOKENIZER_FOLDER = "tokenizer"  # in a work directory

# Fields that every run sets itself. They change no shape of a parameter, except that of
# the position embeddings, which are resized, and not what the weights compute.
_OWN = (
    "start_from",
    "image_size",
    "dropout_rate",
    "num_trained_layers",
    "decoder_trains_embeddings",
    "initial_temperature",
    "init_std",
)


def find_origin(name: str) -> Path:
    """The folder of the run or model that `config.model.start_from` names.

    Raises:
      UserError: if there is no such folder or model of the hub, or no ViLEM in it.
    """
    folder = Path(name).expanduser()
    if _is_run(folder):
        if read_config(folder).task != "vilem":
            raise UserError(
                f"{name} (config.model.start_from) holds the run of an editor, not of "
                "a ViLEM: a text tower may start from the editor it wrote "
                f"(config.model.text.start_from={Path(name) / 'editor'})"
            )
        return folder
    if folder.is_dir() and not model_folder.is_model_folder(folder):
        raise UserError(
            f"{name} (config.model.start_from) is neither the work directory of a run "
            "nor a folder that `vilem weights export` or `import` wrote"
        )
    if folder.is_dir():
        return folder
    return model_folder.read_model_folder(name).tokenizer_folder


def origin_tokenizer(name: str) -> Path:
    """The folder of the model's vocab.txt."""
    folder = find_origin(name)
    return folder / TOKENIZER_FOLDER if _is_run(folder) else folder


def _is_run(folder: Path) -> bool:
    return (folder / CHECKPOINTS_FOLDER).is_dir() and (folder / CONFIG_FILE).is_file()


def complete_model(model: ModelConfig, stored: ModelConfig | None) -> ModelConfig:
    """`model` in the shape of the one it starts from.

    Args:
      model: of the config, with `start_from`. A field at its default takes the
        origin's value; another value must be the origin's.
      stored: the stored config of the run that is resumed, or None. With it the origin
        is not read: it may be gone.

    Raises:
      UserError: if there is no origin, or if a field is not the origin's.
    """
    name = model.start_from
    if stored is not None and stored.start_from == name:
        return _fitted(model, stored, name)
    return _fitted(model, read_origin_config(name).model, name)


def read_origin_config(name: str) -> Config:
    """The config of the run or model; errors as of `find_origin`."""
    folder = find_origin(name)
    read = read_config if _is_run(folder) else model_folder.read_config
    return read(folder)


def _fitted(
    ours: Section, theirs: Section, name: str, path: str = "config.model"
) -> Section:
    defaults, changes = type(ours)(), {}
    for field in dataclasses.fields(ours):
        mine, origin = getattr(ours, field.name), getattr(theirs, field.name)
        key = f"{path}.{field.name}"
        if isinstance(mine, TextConfig | VisionConfig):
            changes[field.name] = _fitted(mine, origin, name, key)
        elif field.name not in _OWN:
            if mine not in (origin, getattr(defaults, field.name)):
                raise UserError(
                    f"{key}={mine!r} is not that of the model in {name} "
                    f"(config.model.start_from), {origin!r}: leave it out, or start "
                    "from another model"
                )
            changes[field.name] = origin
    return dataclasses.replace(ours, **changes)


def load_origin(config: Config) -> tuple[dict, dict]:
    """The parameters and momentum parameters that the run starts with, on the host.

    The momentum parameters equal the parameters if the origin has none. Position
    embeddings are resized to `config.model.vision.image_size`.

    Args:
      config: with `config.model` from `complete_model`.

    Raises:
      UserError: if there is no origin, or a tensor has another shape.
    """
    name = config.model.start_from
    folder = find_origin(name)
    if _is_run(folder):
        names = ("params", "momentum_params")
        found, _ = restore_fields(folder, dict.fromkeys(names))
        params = found["params"]
        # It has no locked parameters of its own.
        momentum_params = join_params(params, found["momentum_params"])
    else:
        found = model_folder.read_model_folder(folder)
        params, momentum_params = found.params, found.momentum_params
    side = config.model.vision.image_size // config.model.vision.patch_size  # patches
    params = _resized(params, side)
    wanted = flatten(model_folder.model_tree(config.model))
    check_same(describe_shapes(flatten(params)), wanted, Path(name))
    if momentum_params is None:
        return params, params
    return params, _resized(momentum_params, side)


def _resized(params: dict, side: int) -> dict:
    vision = params["vision"]
    table = positions.resize(np.asarray(vision["position_embedding"]), side)
    return {**params, "vision": {**vision, "position_embedding": table}}
