"""Options that several verbs of the command line share."""

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilem_jax.config.sources import SOURCE_KINDS, ScenesConfig, SourceConfig
from vilem_jax.distributed.launcher import SWITCHES, Membership, find_membership
from vilem_jax.errors import UserError
from vilem_jax.evaluation.benchmark import count

if TYPE_CHECKING:
    from vilem_jax.api import Model

EMBEDDED = "scenes"  # as --data


class VerbParser(argparse.ArgumentParser):
    """The parser of one verb: takes no abbreviated options.

    Args:
      intermixed: positional arguments may stand between options, see
        `parse_intermixed_args`.
    """

    def __init__(self, *, allow_abbrev: bool = False, intermixed: bool = False, **rest):
        super().__init__(allow_abbrev=allow_abbrev, **rest)
        self.intermixed = intermixed

    def parse_known_args(self, *args: Any, **rest: Any) -> Any:
        if not self.intermixed:
            return super().parse_known_args(*args, **rest)
        # Of a verb's parser argparse calls this method alone, and the intermixed one
        # calls it again: a plain parser with the same arguments ends the recursion.
        plain = argparse.ArgumentParser(
            self.prog, parents=[self], add_help=False, allow_abbrev=False
        )
        return plain.parse_known_intermixed_args(*args, **rest)


def add_config(verb: argparse.ArgumentParser) -> None:
    """--config, which makes --config.a.b=VALUE possible."""
    verb.add_argument(
        "--config",
        required=True,
        metavar="NAME_OR_FILE",
        help="a packaged config or a file of your own; --config.a.b=VALUE overrides",
    )
    verb.set_defaults(overrides=[])


def add_model(verb: argparse.ArgumentParser, *, required: bool = True) -> None:
    """--model, --weights and --step, for `open_model`."""
    verb.add_argument(
        "--model",
        required=required,
        metavar="RUN_OR_MODEL",
        help="work directory of a run, an exported model's folder, or its hub name",
    )
    verb.add_argument(
        "--weights",
        choices=("online", "momentum", "mixed"),
        default="online",
        help="the trained weights, their moving average, or each tower scored against "
        "the moving average of the other",
    )
    add_step(verb)
    verb.add_argument(
        "--batch-size", type=count, help="rows at a time; the run's by default"
    )


def add_step(verb: argparse.ArgumentParser) -> None:
    """--step, which checkpoint of a run."""
    verb.add_argument(
        "--step",
        choices=("last", "best"),
        default="last",
        help="the newest checkpoint, or that of the best validation (checkpoint."
        "keep_best)",
    )


def open_model(options: argparse.Namespace) -> "Model":
    from vilem_jax import api

    return api.load(
        options.model,
        weights=options.weights,
        batch_size=options.batch_size,
        step=options.step,
    )


def add_distributed(verb: argparse.ArgumentParser) -> None:
    """The options of one process among several, for `find_membership`."""
    group = verb.add_argument_group("one of several processes")
    group.add_argument(
        "--distributed",
        choices=SWITCHES,
        default="auto",
        help="auto: if SLURM, Open MPI, Kubernetes or a TPU slice starts several",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    group.add_argument("--num-processes", type=count, metavar="N")
    group.add_argument("--process-id", type=int, metavar="I", help="from 0")


def membership_of(options: argparse.Namespace) -> Membership | None:
    return find_membership(
        options.distributed,
        os.environ,
        coordinator=options.coordinator,
        num_processes=options.num_processes,
        process_id=options.process_id,
    )


def is_process_0(options: argparse.Namespace) -> bool:
    """Whether this process reports and writes."""
    if "distributed" not in options:  # a verb of one process, which may not use JAX
        return True
    from vilem_jax.distributed import processes

    return processes.is_process_0()


def add_data(verb: argparse.ArgumentParser) -> None:
    """--data and what belongs to it, for `source_config`."""
    verb.add_argument(
        "--data",
        help=f"annotations (JSON), tars, a TFDS name, or {EMBEDDED!r}, the embedded "
        "data set; the run's validation data by default",
    )
    verb.add_argument(
        "--images", default="", help="folder or zip of the images, or TFDS's folder"
    )
    verb.add_argument(
        "--kind",
        choices=tuple(SOURCE_KINDS),
        help="of --data, if its name does not show it",
    )
    verb.add_argument("--split", default="", help='of the data; several as "a+b"')
    verb.add_argument("--num-images", type=count, default=0, help="only the first ones")
    verb.add_argument("--seed", type=int, default=0, help="of --data=scenes, of edits")


def source_config(options: argparse.Namespace) -> SourceConfig:
    """The data named by --data, or else the validation data of --model.

    Without --data, --split takes another split of the run's data set.

    Raises:
      UserError: the name does not show its kind, the run has not exactly one
        validation source, or an option is given that belongs to --data.
    """
    if options.data is None:
        refuse_options(options, ("images", "kind"), "belongs to --data: give both")
        source = _validation_of(options)
        if options.split:  # `num_images` of the run belongs to its own split
            source = dataclasses.replace(source, split=options.split, num_images=0)
        return dataclasses.replace(
            source, num_images=options.num_images or source.num_images
        )
    return named_source(
        options.data,
        options.kind,
        split=options.split,
        images=options.images,
        seed=options.seed,
        num_images=options.num_images,
    )


def named_source(
    data: str, kind: str | None, *, embedded_split: str = "test", **settings: Any
) -> SourceConfig:
    """The config of the source that a command line names.

    Args:
      data: a path, a TFDS name, or "scenes".
      kind: of --kind; None: by the name.
      embedded_split: of "scenes", if `settings` name none.
      settings: fields of the kind; those that it does not have are ignored.

    Raises:
      UserError: the name does not show the kind.
    """
    cls = SOURCE_KINDS[kind or kind_of(data)]
    if issubclass(cls, ScenesConfig):
        settings["split"] = settings.get("split") or embedded_split
    settings |= {"name": Path(data).stem, "path": data}
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{key: value for key, value in settings.items() if key in names})


def refuse_options(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raises UserError if one of these options was given."""
    for name in names:
        if value := getattr(options, name):
            raise UserError(f"--{name.replace('_', '-')}={value} {why}")


def kind_of(data: str) -> str:
    """The kind that recognizes the name `data`.

    Raises:
      UserError: none does.
    """
    for kind, cls in SOURCE_KINDS.items():
        if cls.recognizes(data):
            return kind
    raise UserError(
        f"cannot recognise the kind of data of {data}; give --kind="
        f"{' or '.join(SOURCE_KINDS)}"
    )


def _validation_of(options: argparse.Namespace) -> SourceConfig:
    from vilem_jax.runs.trained_model import is_run
    from vilem_jax.runs.workdir import read_config

    if not is_run(options.model):
        raise UserError(
            f"name the data with --data: {options.model} is an exported model, which "
            "includes no data"
        )
    sources = read_config(options.model).data.validation
    if len(sources) != 1:
        names = ", ".join(source.name for source in sources) or "none"
        raise UserError(
            f"name the data with --data: the run in {options.model} does not have one "
            f"validation source, but {names}"
        )
    return sources[0]


def hours(text: str) -> float:
    """An argument's type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value
