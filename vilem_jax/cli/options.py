"""Options that several verbs of the command line share."""

import argparse
import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilem_jax.config.files import load_config
from vilem_jax.config.schema import Config
from vilem_jax.config.sources import SOURCE_KINDS, ScenesConfig, SourceConfig, kind_of
from vilem_jax.config.towers import IMAGE_TOWERS, TEXT_TOWERS
from vilem_jax.distributed.launcher import SWITCHES
from vilem_jax.errors import UserError
from vilem_jax.evaluation.benchmark import count
from vilem_jax.progress import doing

if TYPE_CHECKING:
    from vilem_jax.api import Model

EMBEDDED = "scenes"  # as --data
MODEL_HELP = "work directory of a run, an exported model's folder, or its hub name"


class VerbParser(argparse.ArgumentParser):
    """The parser of one verb: takes no abbreviated options.

    Args:
      run: the verb, a function of its options; None if it has verbs of its own.
      intermixed: positional arguments may stand between options, see
        `parse_intermixed_args`.
    """

    def __init__(
        self, *, run: Callable | None = None, intermixed: bool = False, **rest: Any
    ):
        super().__init__(allow_abbrev=False, **rest)
        self.set_defaults(verb=run)
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


def expand_home(options: argparse.Namespace) -> None:
    """Replaces ~ in every path, as the shell does only at the start of a word."""

    def expanded(value: object) -> object:
        if isinstance(value, list):
            return [expanded(each) for each in value]
        found = re.fullmatch(r"(\w+=)?(~.*)", value) if isinstance(value, str) else None
        if not found:
            return value
        path = os.path.expanduser(found[2])
        # Of a user who does not exist: a name like any other.
        return (found[1] or "") + (f"./{path}" if path.startswith("~") else path)

    for name in vars(options).keys() - {"words", "caption", "overrides"}:
        setattr(options, name, expanded(getattr(options, name)))


def add_config(verb: argparse.ArgumentParser) -> None:
    """--config, which makes --config.a.b=VALUE possible."""
    verb.add_argument(
        "--config",
        required=True,
        metavar="NAME_OR_FILE",
        help="a packaged config or a file of your own; --config.a.b=VALUE overrides",
    )
    verb.set_defaults(overrides=[])
    own = verb.add_argument_group("with --config=own_data")
    own.add_argument(
        "--data", help="captions: JSON, tars, a TFDS name; splits are read"
    )
    own.add_argument("--images", help="folder or zip of the images")
    own.add_argument("--kind", choices=[*SOURCE_KINDS], help="of --data")
    for kind, known in (("image", IMAGE_TOWERS), ("text", TEXT_TOWERS)):
        own.add_argument(
            f"--{kind}-tower", metavar="NAME", help=f"one of {', '.join(known)}"
        )
        own.add_argument(
            f"--{kind}-weights",
            metavar="FOLDER",
            help="a file, a folder or a hub name; or 'hub', the default, or 'scratch'",
        )


def read_config_options(options: argparse.Namespace) -> Config:
    """The config that --config names, with the options and overrides beside it."""
    names = ("data", "images", "kind", "image_tower", "image_weights")
    names += ("text_tower", "text_weights")
    given = {n: value for n in names if (value := getattr(options, n)) is not None}
    return load_config(options.config, options.overrides, given)


def add_model(verb: argparse.ArgumentParser, *, required: bool = True) -> None:
    """--model, --weights and --step, for `open_model`."""
    add = verb.add_argument
    add("--model", required=required, metavar="RUN_OR_MODEL", help=MODEL_HELP)
    add(
        "--weights",
        choices=("online", "momentum", "mixed"),
        default="online",
        help="the trained weights, their moving average, or each tower scored against "
        "the moving average of the other",
    )
    add_step(verb)
    add("--batch-size", type=count, help="rows at a time; the run's by default")


def add_step(verb: argparse.ArgumentParser) -> None:
    """--step, which checkpoint of a run."""
    verb.add_argument(
        "--step",
        choices=("last", "best"),
        default="last",
        help="the newest checkpoint, or the best of validation (checkpoint.keep_best)",
    )


def open_model(options: argparse.Namespace) -> "Model":
    with doing(f"loading {options.model}"):
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
        help="annotations (JSON, CSV), a folder with metadata.jsonl, tars, a TFDS "
        f"name, or {EMBEDDED!r}, the embedded data set; the run's validation data by "
        "default",
    )
    add_source(verb, "--data", SOURCE_KINDS)
    verb.add_argument("--seed", type=int, default=0, help="of --data=scenes, of edits")


def add_source(
    verb: argparse.ArgumentParser, argument: str, kinds: Iterable[str]
) -> None:
    """What belongs to `argument`, the name of a source."""
    add = verb.add_argument
    add("--images", default="", help="folder or zip of the images, or TFDS's folder")
    add("--kind", choices=[*kinds], help=f"of {argument}, if its name does not show it")
    add("--split", default="", help='of the data; several as "a+b"')
    add("--num-images", type=count, default=0, help="only the first ones")
    add_columns(verb)


def add_columns(verb: argparse.ArgumentParser) -> None:
    """The columns of a table, for those kinds of sources that are one."""
    group = verb.add_argument_group("columns of a table, if not by their usual names")
    for name in ("image", "caption", "split", "id"):
        group.add_argument(f"--{name}-column", default="", metavar="NAME")
    group.add_argument(
        "--delimiter", default="", help="of a table; by default by its ending"
    )


def source_config(options: argparse.Namespace) -> SourceConfig:
    """The data named by --data, or else the validation data of --model.

    Without --data, --split takes another split of the run's data set.

    Raises:
      UserError: the name does not show its kind, the run has not exactly one
        validation source, or an option is given that belongs to --data.
    """
    if options.data is None:
        refuse_options(options, ("images", "kind"), "belongs to --data: give both")
        source = _validation_of(options.model)
        if options.split:  # `num_images` of the run belongs to its own split
            source = dataclasses.replace(source, split=options.split, num_images=0)
        number = options.num_images or source.num_images
        return dataclasses.replace(source, num_images=number)
    return named_source(options.data, options)


def named_source(data: str, options: argparse.Namespace, **other: Any) -> SourceConfig:
    """The config of the source that a command line names.

    Args:
      data: a path, a TFDS name, or "scenes".
      options: --kind (None: by the name), and fields of that kind; those that it does
        not have are ignored. Without --split "scenes" is its test split.
      other: fields that do not come from the options.

    Raises:
      UserError: the name does not show the kind.
    """
    cls = SOURCE_KINDS[options.kind or kind_of(data)]
    settings: dict[str, Any] = vars(options) | {"kind": cls.kind}
    if issubclass(cls, ScenesConfig):
        settings["split"] = settings["split"] or "test"
    settings |= {"name": Path(data).stem, "path": data} | other
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{key: value for key, value in settings.items() if key in names})


def refuse_options(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raises UserError if one of these options was given."""
    for name in names:
        if value := getattr(options, name):
            raise UserError(f"--{name.replace('_', '-')}={value} {why}")


def _validation_of(model: str) -> SourceConfig:
    from vilem_jax.runs.trained_model import is_run
    from vilem_jax.runs.workdir import read_config

    if not is_run(model):
        raise UserError(f"name the data with --data: {model} has none, it is exported")
    sources = read_config(model).data.validation
    if len(sources) != 1:
        names = ", ".join(source.name for source in sources) or "none"
        raise UserError(
            f"name the data with --data: the run in {model} does not have one "
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
