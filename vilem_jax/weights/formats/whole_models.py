"""What imports of whole models share: ALBEF, and BLIP in two spellings.

They have both towers, projections and the temperature, some of them momentum copies
and queues too. Our heads are not in them and are initialized at random: such a model
can search and be trained further, but cannot proofread.
"""

import dataclasses
from collections.abc import Callable, Sequence
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
NO_ONE = -100  # in `idx_queue`: a row of the queue that still holds its first noise
NEW = ("local_head", "global_head", "global_map")  # no foreign model has these


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
    *,
    dropped: Sequence[str],
    is_new: Callable[[TreePath], bool],
) -> dict:
    """All parameters of a `ViLEM`: those of `table` read, the others at random.

    Args:
      is_new: whether the checkpoint lacks this path of our tree.

    Raises:
      UserError: tensors that are missing, unknown, or of another shape.
    """
    expected = tables.without(model_tree(config.model), is_new)
    tree = tables.read_tree(table, files, dropped=dropped, expected=expected)
    key = jax.random.key(config.seed)
    new = jax.jit(lambda key: new_params(config.model, config.compute, key))(key)
    return tables.merge_into(jax.device_get(new), tree, origin=str(files.path))


def read_momentum(
    config: Config,
    params: dict,
    table: Sequence[Entry],
    files: Tensors,
    *,
    dropped: Sequence[str],
) -> dict | None:
    """The momentum copy; leaves it lacks (heads, temperature) are those of `params`.

    None if the checkpoint has no tensor of `table`.
    """
    if not any(entry.name in files.names for entry in table):
        return None
    paths = {entry.path for entry in table}
    expected = tables.without(model_tree(config.model), lambda path: path not in paths)
    tree = tables.read_tree(table, files, dropped=dropped, expected=expected)
    return tables.merge_into(params, tree, origin=str(files.path))


def read_queues(
    files: Tensors, pointers: Sequence[str], width: int
) -> dict[str, np.ndarray]:
    """{} or both queues, float32 [Q, E], newest first.

    They are stored as ring buffers [E, Q]. Rows that were never written are left out,
    if `idx_queue` marks them.

    Args:
      pointers: possible names of the index that is written next.
      width: E.

    Raises:
      UserError: one queue without the other, or of another shape.
    """
    if not any(name in files.names for name in QUEUES):
        return {}
    length = tables.shape_of(files, QUEUES[0], rank=2)[1]
    for name in QUEUES:
        shape = tables.shape_of(files, name, rank=2)
        if shape != (width, length):
            raise UserError(
                f"the tensor {name} in {files.path} is {list(shape)}: "
                f"{[width, length]} is expected"
            )
    pointer = next((name for name in pointers if name in files.names), None)
    if pointer is None:
        raise UserError(f"{files.path} lacks the tensor {pointers[0]}")
    next_index = int(files.array(pointer).reshape(-1)[0])
    newest_first = (next_index - 1 - np.arange(length)) % length
    if "idx_queue" in files.names:
        owner = files.array("idx_queue").reshape(-1)
        newest_first = newest_first[owner[newest_first] != NO_ONE]
    if not len(newest_first):
        return {}
    return {
        name: np.ascontiguousarray(files.read(name).T[newest_first]) for name in QUEUES
    }


def length_of_queues(files: Tensors) -> int:
    """N_q of the checkpoint; without queues the default one."""
    if QUEUES[0] not in files.names:
        return LossConfig().queue_length
    return tables.shape_of(files, QUEUES[0], rank=2)[1]


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

    The four switches of proofreading are off: the model has not learned it.
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
