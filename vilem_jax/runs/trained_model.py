"""A trained model by name: a run's work directory, a model folder, or a hub name."""

import os
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vilem_jax.config.schema import Config
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.editing.loading import check_same_vocabulary, check_vocabulary
from vilem_jax.errors import UserError
from vilem_jax.models.locked import has_locked, join_params, split_params
from vilem_jax.models.vilem import Params
from vilem_jax.runs.checkpoint_contents import FIELDS
from vilem_jax.runs.checkpoints import restore_fields
from vilem_jax.runs.origin import TOKENIZER_FOLDER, origin_tokenizer
from vilem_jax.runs.workdir import read_config
from vilem_jax.weights.folders import VOCABULARY, WEIGHTS
from vilem_jax.weights.model_folder import QUEUE_NAMES, model_tree, read_model_folder

Weights = Literal["online", "momentum"]


class Stored(NamedTuple):
    """A trained model on the host, and what it takes to continue its training."""

    config: Config
    params: Params
    tokenizer: Tokenizer
    momentum_params: Params | None
    queues: dict[str, np.ndarray]  # {} or image_queue and text_queue [Q, E]
    step: int | None  # of the checkpoint, if a run was read
    folder: Path  # the run or the model folder


def is_run(name: str | os.PathLike) -> bool:
    """Whether `name` is read as a work directory.

    A folder of weights is recognized by its weights file. If nothing exists, only a
    name with one slash may be a hub's: a model of ours there belongs to somebody.
    """
    given = os.fspath(name)
    path = Path(given).expanduser()
    if path.exists() or given.count("/") != 1 or given.startswith((".", "/", "~")):
        return not (path / WEIGHTS).is_file()
    return False


def read_stored(
    name: str | os.PathLike,
    weights: Weights = "online",
    *,
    step: str = "last",
    for_training: bool = False,
) -> Stored:
    """The model that a run has trained, or that a model folder holds.

    Args:
      weights: which of the two become `params`: "online", the trained parameters, or
        "momentum", their moving average.
      step: of a run, "last", its newest checkpoint, or "best", see `restore_fields`.
      for_training: also reads the moving average and the queues, if there are any; the
        best checkpoint has no queues.

    Raises:
      UserError: if `name` is neither a run nor a model folder or is the run of an
        editor, if it has no such weights, or if files are corrupt or have another
        shape.
    """
    if weights not in ("online", "momentum"):
        raise UserError(f"weights must be 'online' or 'momentum', not {weights!r}")
    if is_run(name):
        return _read_run(Path(name).expanduser(), weights, step, for_training)
    if step != "last":
        raise UserError(f"{name} is a model, not a run: leave --step={step} out")
    return _read_folder(os.fspath(name), weights, for_training)


def _read_run(run: Path, weights: Weights, step: str, for_training: bool) -> Stored:
    config = read_config(run)
    if (run / VOCABULARY).is_file():  # a run has it in its tokenizer folder
        raise UserError(
            f"{run} is an exported model without {WEIGHTS}: export or get it again"
        )
    if config.task != "vilem":
        raise UserError(
            f"{run} holds the run of an editor, which edits captions but "
            "cannot search or proofread: give the run of a ViLEM"
        )
    shapes, model = model_tree(config.model), config.model
    has_momentum = for_training or weights == "momentum"
    fields = {}
    # The momentum parameters lack those that are locked.
    if weights == "online" or has_locked(model):
        fields["params"] = shapes
    if has_momentum:
        fields["momentum_params"], _ = split_params(shapes, model)
    if for_training and step == "last":
        queue = (config.loss.queue_length, config.model.embedding_width)
        fields |= dict.fromkeys(QUEUE_NAMES, jax.ShapeDtypeStruct(queue, jnp.float32))
        fields["queue_count"] = jax.ShapeDtypeStruct((), jnp.int32)
    found, number = restore_fields(run, fields, step=step)
    # A queue fills up from its first row; the rows after `queue_count` are zeros.
    count = int(found.get("queue_count", 0))
    if has_momentum and has_locked(model):
        momentum = join_params(found["params"], found["momentum_params"])
        found["momentum_params"] = momentum
    return Stored(
        config,
        found[FIELDS[weights]],
        open_tokenizer(config, run),
        found["momentum_params"] if for_training else None,
        {name: found[name][:count] for name in QUEUE_NAMES} if count else {},
        number,
        run,
    )


def _read_folder(name: str, weights: Weights, for_training: bool) -> Stored:
    stored = read_model_folder(name)
    params = stored.params if weights == "online" else stored.momentum_params
    if params is None:
        raise UserError(
            f"{name} holds no momentum weights: leave --weights=momentum out, or "
            "export the run with --for-training, which keeps both"
        )
    data, folder = stored.config.data, stored.tokenizer_folder
    return Stored(
        stored.config,
        params,
        Tokenizer(folder, cleaning=data.cleaning, keeps_sep=data.keeps_sep),
        stored.momentum_params if for_training else None,
        stored.queues if for_training else {},
        None,
        folder,
    )


def open_tokenizer(config: Config, workdir: Path) -> Tokenizer:
    """The run's tokenizer.

    It is the copy in the work directory, or else that of the config, or else that of
    the model that the run starts from.

    Raises:
      UserError: if there is none, or its vocabulary is not the text tower's.
    """
    origin = None
    if has_tokenizer(workdir):
        name = str(workdir / TOKENIZER_FOLDER)
    elif config.model.start_from:
        origin = origin_tokenizer(config.model.start_from)
        name = config.data.tokenizer or str(origin)
    else:
        name = config.tokenizer_name
    tokenizer = Tokenizer(
        name, cleaning=config.data.cleaning, keeps_sep=config.data.keeps_sep
    )
    check_vocabulary(tokenizer.vocabulary, config, name)
    if origin:
        check_same_vocabulary(origin, tokenizer)
    return tokenizer


def has_tokenizer(workdir: Path) -> bool:
    """Whether the work directory has a complete copy of the tokenizer."""
    # vocab.txt is written last.
    return (workdir / TOKENIZER_FOLDER / VOCABULARY).is_file()
