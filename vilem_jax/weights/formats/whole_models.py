"""What imports of whole models share: ALBEF, and BLIP in two spellings.

They bring both towers, projections and the temperature, some of them momentum copies
and queues too. What they have not learnt, our heads, begins at random, so that such a
model may be searched with and trained on, but cannot proofread.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from vilem_jax.config.freeze import validate
from vilem_jax.config.schema import Config, LossConfig, ModelConfig
from vilem_jax.errors import UserError
from vilem_jax.models.vilem import new_params
from vilem_jax.weights import positions, tables
from vilem_jax.weights.folders import Tensors
from vilem_jax.weights.model_folder import model_tree
from vilem_jax.weights.tables import Entry, TreePath

QUEUES = ("image_queue", "text_queue")
NO_ONE = -100  # in `idx_queue`: a place of the queue that still holds its first noise
NEW = ("local_head", "global_head", "global_map")  # nothing foreign has these


@dataclass(frozen=True)
class WholeModel:
    """A foreign model in our tree."""

    config: Config
    params: dict
    momentum_params: dict | None
    queues: dict[str, np.ndarray]  # {} or both of QUEUES, [Q, E], newest first
    extra_pieces: tuple[str, ...] = ()  # tokens after those of BERT's vocabulary


def read_params(
    config: Config,
    table: Sequence[Entry],
    files: Tensors,
    names: Mapping[str, str],
    *,
    dropped: Sequence[str],
    is_new: Callable[[TreePath], bool],
) -> dict:
    """All parameters of a `ViLEM`: those of `table` read, the others at random.

    Args:
      is_new: which paths of our tree the checkpoint has nothing for.

    Raises:
      UserError: tensors that are missing, unknown, or of another shape.
    """
    expected = tables.without(model_tree(config.model), is_new)
    tree = tables.read_tree(table, files, names, dropped=dropped, expected=expected)
    key = jax.random.key(config.seed)
    new = jax.jit(lambda key: new_params(config.model, config.compute, key))(key)
    origin = str(files.folder)
    return tables.merge_into(jax.device_get(new), tree, origin=origin)


def read_momentum(
    config: Config,
    params: dict,
    table: Sequence[Entry],
    files: Tensors,
    names: Mapping[str, str],
    *,
    dropped: Sequence[str],
) -> dict | None:
    """The momentum copy; what it lacks (heads, temperature) is that of `params`.

    None where the checkpoint has none of `table`.
    """
    if not any(entry.name in names for entry in table):
        return None
    paths = {entry.path for entry in table}
    expected = tables.without(model_tree(config.model), lambda path: path not in paths)
    tree = tables.read_tree(table, files, names, dropped=dropped, expected=expected)
    return tables.merge_into(params, tree, origin=str(files.folder))


def read_queues(
    files: Tensors, names: Mapping[str, str], pointers: Sequence[str], width: int
) -> dict[str, np.ndarray]:
    """{} or both queues, float32 [Q, E], newest first.

    They are stored as [E, Q], written round and round; places that were never written
    are left out, where `idx_queue` tells which.

    Args:
      pointers: names of the place that comes next; one of them is there.
      width: E.

    Raises:
      UserError: one queue without the other, or of another shape.
    """
    if not any(name in names for name in QUEUES):
        return {}
    length = tables.shape_of(files, names, QUEUES[0], rank=2)[1]
    for name in QUEUES:
        shape = tables.shape_of(files, names, name, rank=2)
        if shape != (width, length):
            raise UserError(
                f"the tensor {names[name]} in {files.folder} is {list(shape)}: "
                f"{[width, length]} is expected"
            )
    pointer = next((names[name] for name in pointers if name in names), None)
    if pointer is None:
        raise UserError(f"{files.folder} lacks the tensor {pointers[0]}")
    place = int(files.array(pointer).reshape(-1)[0])
    newest_first = (place - 1 - np.arange(length)) % length
    if "idx_queue" in names:
        owner = files.array(names["idx_queue"]).reshape(-1)
        newest_first = newest_first[owner[newest_first] != NO_ONE]
    if not len(newest_first):
        return {}
    return {
        name: np.ascontiguousarray(files.read(names[name]).T[newest_first])
        for name in QUEUES
    }


def length_of_queues(files: Tensors, names: Mapping[str, str]) -> int:
    """N_q of the checkpoint; without queues the usual one."""
    if QUEUES[0] not in names:
        return LossConfig().queue_length
    return tables.shape_of(files, names, QUEUES[0], rank=2)[1]


def make_config(
    model: ModelConfig,
    queue_length: int,
    *,
    cleaning: str,
    keeps_sep: bool,
    text_length: int,
    evaluation_length: int,
) -> Config:
    """Settings with which the model is evaluated as its authors did.

    The four switches of proofreading are off: it was never learnt.
    """
    config = Config(model=model)
    longest = model.text.max_positions
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data,
            cleaning=cleaning,
            keeps_sep=keeps_sep,
            text_length=min(text_length, longest),
        ),
        loss=LossConfig(
            local_detect=False,
            local_correct=False,
            global_detect=False,
            global_correct=False,
            queue_length=queue_length,
        ),
        train=dataclasses.replace(
            config.train, batch_size=min(config.train.batch_size, queue_length)
        ),
        evaluation=dataclasses.replace(
            config.evaluation, text_length=min(evaluation_length, longest)
        ),
    )
    validate(config)
    return config


def resized(model: WholeModel, image_size: int) -> WholeModel:
    """The model for images of another side, online and momentum copy.

    Raises:
      UserError: not a multiple of the patches' side.
    """
    vision = model.config.model.vision
    positions.check_divides(image_size, vision.patch_size, "this model")
    side = image_size // vision.patch_size
    vision = dataclasses.replace(vision, image_size=image_size)
    config = dataclasses.replace(
        model.config, model=dataclasses.replace(model.config.model, vision=vision)
    )
    momentum = model.momentum_params
    return dataclasses.replace(
        model,
        config=config,
        params=positions.resize_vision(model.params, side),
        momentum_params=momentum and positions.resize_vision(momentum, side),
    )
