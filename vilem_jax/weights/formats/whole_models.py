"""What imports of whole models share: ALBEF, and BLIP in two spellings.

They have both towers, projections and the temperature, some of them momentum copies
and queues too. Our heads are not in them and are initialized at random: such a model
can search and be trained further, but cannot proofread.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from flax.nnx.traversals import flatten_mapping

from vilem_jax.config import schema
from vilem_jax.config.freeze import validate
from vilem_jax.config.schema import Config
from vilem_jax.errors import UserError
from vilem_jax.models.vilem import new_params
from vilem_jax.weights import positions, tables
from vilem_jax.weights.folders import Tensors
from vilem_jax.weights.model_folder import QUEUE_NAMES, model_tree
from vilem_jax.weights.tables import Entry

# Parts of our tree that not every foreign model, or none, has.
NEW = (
    *("local_head", "global_head", "global_map", "temperature"),
    *("cross_attention", "token_types"),
)
NO_ONE = -100  # in `idx_queue`: a row of the queue that still holds its first noise
POINTERS = ("queue_ptr", "ptr_queue")  # names of the index that is written next


@dataclass(frozen=True)
class WholeModel:
    """A foreign model in our tree."""

    config: Config
    params: dict
    momentum_params: dict | None
    queues: dict[str, np.ndarray]  # {} or both of QUEUE_NAMES, [Q, E], newest first
    extra_pieces: tuple[str, ...] = ()  # tokens after those of BERT's vocabulary


def new_model(config: Config) -> dict:
    """Random parameters of a `ViLEM`, for the leaves that a checkpoint lacks."""
    make = jax.jit(functools.partial(new_params, config.model, config.compute))
    return jax.device_get(make(jax.random.key(config.seed)))


def read_copy(
    base: dict,
    config: Config,
    table: Sequence[Entry],
    files: Tensors,
    dropped: Sequence[str],
) -> dict:
    """`base`, parameters of a `ViLEM`, with the leaves of `table` as `files` has them.

    Raises:
      UserError: tensors that are missing, unknown, or of another shape.
    """
    paths = {entry.path for entry in table}
    for path in flatten_mapping(model_tree(config.model)):
        if path not in paths and not set(path) & set(NEW):
            raise ValueError(f"the table of {files.path} lacks {path}")
    expected = tables.without(model_tree(config.model), lambda path: path not in paths)
    tree = tables.read_tree(table, files, dropped=dropped, expected=expected)
    if not any("token_types" in path for path in paths):  # BLIP has none: they add 0
        base = base | {"text": with_zero_token_types(base["text"])}
    return tables.merge_into(base, tree, origin=str(files.path))


def with_zero_token_types(tower: dict) -> dict:
    """`TextTower` with zeros for the token types that a BLIP lacks."""
    width = tower["embedding"]["words"].shape[1]
    zeros = np.zeros((1, width), np.float32)
    return tower | {"embedding": tower["embedding"] | {"token_types": zeros}}


def read_queues(files: Tensors, width: int) -> dict[str, np.ndarray]:
    """{} or both queues, float32 [Q, E], newest first.

    They are stored as ring buffers [E, Q]. Rows that were never written are left out,
    if `idx_queue` marks them.

    Args:
      width: E.

    Raises:
      UserError: one queue without the other, or of another shape.
    """
    if not any(name in files.names for name in QUEUE_NAMES):
        return {}
    length = tables.shape_of(files, QUEUE_NAMES[0], rank=2)[1]
    for name in QUEUE_NAMES:
        shape = tables.shape_of(files, name, rank=2)
        if shape != (width, length):
            raise UserError(
                f"the tensor {name} in {files.path} is {list(shape)}: "
                f"{[width, length]} is expected"
            )
    pointer = next((name for name in POINTERS if name in files.names), None)
    if pointer is None:
        raise UserError(f"{files.path} lacks the tensor {POINTERS[0]}")
    next_index = int(files.array(pointer).reshape(-1)[0])
    newest_first = (next_index - 1 - np.arange(length)) % length
    if "idx_queue" in files.names:
        owner = files.array("idx_queue").reshape(-1)
        newest_first = newest_first[owner[newest_first] != NO_ONE]
    if not len(newest_first):
        return {}
    return {
        name: np.ascontiguousarray(files.read(name).T[newest_first])
        for name in QUEUE_NAMES
    }


def make_config(
    model: schema.ModelConfig,
    files: Tensors,
    data: schema.DataConfig,
    *,
    evaluation_length: int,
) -> Config:
    """Settings with which the model is evaluated as its authors did.

    The embeddings' width and the length of the queues are those of `files`, without
    queues the default. The four switches of proofreading are off: the model has not
    learned it.
    """
    default, longest = Config(), model.text.max_positions
    queue_length = default.loss.queue_length
    if QUEUE_NAMES[0] in files.names:
        queue_length = tables.shape_of(files, QUEUE_NAMES[0], rank=2)[1]
    batch_size = min(default.train.batch_size, queue_length)
    width = tables.shape_of(files, "vision_proj.weight", rank=2)[0]
    config = Config(
        model=replace(model, embedding_width=width),
        data=replace(data, text_length=min(30, longest)),
        loss=schema.LossConfig(
            local_detect=False,
            local_correct=False,
            global_detect=False,
            global_correct=False,
            queue_length=queue_length,
        ),
        train=schema.TrainConfig(batch_size=batch_size),
        evaluation=schema.EvaluationConfig(text_length=min(evaluation_length, longest)),
    )
    validate(config)
    return config


def resized(model: WholeModel, image_size: int) -> WholeModel:
    """The model for images of another side, online and momentum copy.

    Raises:
      UserError: not a multiple of the patches' side.
    """
    shapes, momentum = model.config.model, model.momentum_params
    positions.check_divides(image_size, shapes.vision.patch_size, "this model")
    side = image_size // shapes.vision.patch_size
    shapes = replace(shapes, vision=replace(shapes.vision, image_size=image_size))
    return replace(
        model,
        config=replace(model.config, model=shapes),
        params=positions.resize_vision(model.params, side),
        momentum_params=momentum and positions.resize_vision(momentum, side),
    )
