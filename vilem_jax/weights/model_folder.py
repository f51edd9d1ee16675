"""A whole ViLEM as one folder that `vilem_jax.load` and `--model` take.

config.json            format_version, and the frozen config, shapes complete
model.safetensors      the parameters by dotted names, "text.layers.0.norm.scale"
momentum.safetensors   their moving average, if it was kept
queues.safetensors     image_queue and text_queue [Q, E], newest first, if kept
vocab.txt              and tokenizer_config.json: the tokenizer
README.md              the model card
files.json             sizes and checksums of all these
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.numpy

from vilem_jax.config.freeze import freeze, to_dict
from vilem_jax.config.schema import Config, ModelConfig
from vilem_jax.data.tokenizer import Tokenizer, vocabulary_digest
from vilem_jax.errors import UserError
from vilem_jax.files import check_format_version
from vilem_jax.integrity import LISTING
from vilem_jax.models.vilem import Params, ViLEM
from vilem_jax.weights import folders, tables

FORMAT_VERSION = 1  # of the whole folder, in config.json
CARD = "README.md"
MOMENTUM, QUEUES = "momentum.safetensors", "queues.safetensors"
QUEUE_NAMES = ("image_queue", "text_queue")
FILES = {*folders.FILES, MOMENTUM, QUEUES, CARD}
_SECTIONS = ("task", "model", "loss")  # only our config.json has them
_VOCABULARY_KEY = "vocabulary_sha256"  # in the header of model.safetensors


@dataclass(frozen=True)
class StoredModel:
    """What a model folder holds."""

    config: Config  # frozen, shapes complete
    params: Params  # nested float32 arrays, the tree of a run's `params`
    momentum_params: Params | None  # the same tree
    queues: dict[str, np.ndarray]  # {} or both of QUEUE_NAMES, [Q, E], newest first
    tokenizer_folder: Path  # holds vocab.txt


def is_model_folder(folder: str | Path) -> bool:
    """Whether `folder` has our config.json beside weights.

    The work directory of a run has no weights beside it, a folder in Hugging Face's
    layout another config.json.
    """
    folder = Path(folder)
    settings = folders.config_or_empty(folder)
    return settings.keys() >= {*_SECTIONS} and (folder / folders.WEIGHTS).is_file()


def write_model_folder(
    folder: str | Path,
    config: Config,
    params: Mapping,
    tokenizer: Tokenizer,
    *,
    momentum_params: Mapping | None = None,
    queues: Mapping[str, np.ndarray] | None = None,
    card: str = "",
) -> None:
    """Writes a folder that `read_model_folder` reads bit for bit, as one change.

    Args:
      config: frozen, with the shapes of `params`.
      params: nested, the tree of a `ViLEM`; arrays that the host can read.
      tokenizer: that of the text tower.
      momentum_params: the tree of `params`.
      queues: both of "image_queue" and "text_queue", float32 [Q, E], newest first.
      card: README.md, for people.

    Raises:
      UserError: `folder` holds something else, cannot be written, or tree, queues or
        vocabulary are not what `config` says.
    """
    _check_parts(config, tokenizer, queues or {})
    contents = {folders.WEIGHTS: _flat(params, config.model)}
    if momentum_params is not None:
        contents[MOMENTUM] = _flat(momentum_params, config.model)
    if queues:
        contents[QUEUES] = {
            name: np.ascontiguousarray(queues[name], np.float32) for name in QUEUE_NAMES
        }
    # One entry: the library shuffles several, and equal models would differ as files.
    header = {_VOCABULARY_KEY: vocabulary_digest(tokenizer)}
    with folders.whole_folder(folder, FILES, is_earlier=is_model_folder) as new:
        for name, tensors in contents.items():
            safetensors.numpy.save_file(tensors, new / name, header)
        tokenizer.save(new)
        (new / CARD).write_text(card, encoding="utf-8")
        settings = {"format_version": FORMAT_VERSION, **to_dict(config)}
        text = json.dumps(settings, indent=2)
        (new / folders.CONFIG).write_text(f"{text}\n", encoding="utf-8")


def read_model_folder(name: str | Path) -> StoredModel:
    """The model in a local folder, or in a repository of the Hugging Face hub.

    Raises:
      UserError: no such folder or repository, not a model folder, a file that is cut
        short, another format version, tensors or a vocabulary that do not fit the
        config.
    """
    folder = folders.read_folder(name, also=(MOMENTUM, QUEUES, LISTING))
    config = read_config(folder)
    params = _read_params(folders.open_tensors(folder), config.model)
    _check_tokenizer(folder, config)
    momentum_params = None
    if (folder / MOMENTUM).is_file():
        momentum = folders.open_file(folder / MOMENTUM)
        momentum_params = _read_params(momentum, config.model)
    queues = _read_queues(folder)
    folders.verify(folder, but=CARD)  # last: other errors say more
    return StoredModel(config, params, momentum_params, queues, folder)


def without_origins(config: ModelConfig) -> ModelConfig:
    """The same shapes, without the folders that model or towers once started from."""
    return replace(
        config,
        start_from="",
        text=replace(config.text, start_from=""),
        vision=replace(config.vision, start_from=""),
    )


def without_paths(config: Config) -> Config:
    """`config` for other machines: without folders and files of this one.

    Settings that named a folder (`start_from`, tokenizer, editor, edit table,
    images) are empty. An annotation file keeps its own name, TFDS that of the data
    set. The digests of editor and edit table stay.
    """
    splits = {
        split: tuple(s.without_folders() for s in getattr(config.data, split))
        for split in ("train", "validation", "test")
    }
    return replace(
        config,
        model=without_origins(config.model),
        data=replace(config.data, tokenizer="", **splits),
        editor=replace(config.editor, path="", edit_table=""),
    )


def read_config(folder: Path) -> Config:
    """The config in a model folder; errors as of `read_model_folder`."""
    settings, file = folders.read_config(folder), folder / folders.CONFIG
    missing = next((name for name in _SECTIONS if name not in settings), None)
    if missing and "model_type" in settings:
        raise UserError(
            f"{file} is a {settings['model_type']} of Hugging Face's layout, not a "
            "ViLEM's: a tower can start from it (config.model.text.start_from, "
            "vision.start_from)"
        )
    if missing:
        raise UserError(
            f"{file} is not a ViLEM's settings: it has no {missing!r}; give a folder "
            "that `vilem weights export` wrote"
        )
    version = settings.pop("format_version", None)
    rebuild = "write it again with `vilem weights export --format=vilem` or `import`"
    check_format_version(version, FORMAT_VERSION, folder, rebuild)
    try:
        config = freeze(settings)
    except UserError as error:
        raise UserError(f"{file} is not a ViLEM's settings: {error}") from error
    if config.task != "vilem":
        raise UserError(f"{file} belongs to an editor, not to a ViLEM")
    return config


def model_tree(config: ModelConfig) -> Params:
    """The tree of a `ViLEM`'s parameters, shapes for leaves; costs no memory."""
    return tables.shapes_of(ViLEM, config)


def _table(tree: Mapping) -> list[tables.Entry]:
    """Every tensor under its own dotted name."""
    return [
        tables.Entry(".".join(map(str, path)), path, tables.SAME)
        for path, _ in tables.leaves(tree)
    ]


def _flat(params: Mapping, config: ModelConfig) -> dict[str, np.ndarray]:
    """By dotted names; raises ValueError if the tree is not the config's."""
    tree = model_tree(config)
    found = {path: leaf.shape for path, leaf in tables.leaves(params)}
    if found != {path: leaf.shape for path, leaf in tables.leaves(tree)}:
        raise ValueError("the parameters are not the tree of their config")
    return tables.write_tensors(_table(tree), params)


def _read_params(files: folders.Tensors, config: ModelConfig) -> dict:
    tree = model_tree(config)
    return tables.read_tree(_table(tree), files, dropped=(), expected=tree)


def _read_queues(folder: Path) -> dict[str, np.ndarray]:
    if not (folder / QUEUES).is_file():
        return {}
    files = folders.open_file(folder / QUEUES)
    if sorted(files.names) != sorted(QUEUE_NAMES):
        raise UserError(f"{folder / QUEUES} must hold {' and '.join(QUEUE_NAMES)}")
    return {name: files.read(name) for name in QUEUE_NAMES}


def _check_parts(config: Config, tokenizer: Tokenizer, queues: Mapping) -> None:
    size = config.model.text.vocab_size
    if tokenizer.vocabulary.size != size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocabulary.size} tokens, but the text tower "
            f"{size}: use the vocabulary that it was trained with"
        )
    shapes = {name: np.shape(queue) for name, queue in queues.items()}
    length = next(iter(shapes.values()), ())[:1]
    wanted = dict.fromkeys(QUEUE_NAMES, (*length, config.model.embedding_width))
    if queues and shapes != wanted:
        raise ValueError(f"queues must be both [Q, E], not {shapes}")


def _check_tokenizer(folder: Path, config: Config) -> None:
    """Raises UserError if vocab.txt is not that of the weights."""
    tokenizer = Tokenizer(folder)
    found, size = tokenizer.vocabulary.size, config.model.text.vocab_size
    if found != size:
        raise UserError(
            f"{folder / folders.VOCABULARY} has {found} tokens, but the text tower "
            f"{size}: it is another model's; get the folder again"
        )
    header = folders.read_header(folder / folders.WEIGHTS)
    if header.get(_VOCABULARY_KEY) not in (None, vocabulary_digest(tokenizer)):
        raise UserError(
            f"{folder / folders.VOCABULARY} is not the vocabulary that the weights "
            "beside it were trained with: get the folder again"
        )
