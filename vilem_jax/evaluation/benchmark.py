"""The declaration of a benchmark, for the command line, the suite and its page.

A benchmark is one file in this room that ends with `BENCHMARK`, and one line of
`suite.BENCHMARKS`. This file imports neither NumPy nor JAX: the command line needs it
for `vilem --help`.
"""

import argparse
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vilem_jax.config.sources import ScenesConfig, SourceConfig
from vilem_jax.typing import JsonObject

Cell = str | float | None  # a float is printed with one digit, None as a dash
Option = tuple[str, JsonObject]  # of `add_argument`: flag and keyword arguments
# The config of --data, or of the run's validation data.
ReadConfig = Callable[[], SourceConfig]


@dataclass(frozen=True)
class Table:
    """A table as plain data; the first column is text."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    foot: str = ""  # a line below it
    title: str = ""


@dataclass(frozen=True)
class Opened:
    """The data of a benchmark, opened before the model is loaded."""

    data: tuple  # what `Benchmark.evaluate` takes after the encoder
    # Its keyword arguments.
    settings: Mapping[str, object] = field(default_factory=dict)
    # Added to the protocol of the metrics.
    protocol: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSet:
    """A data set that the suite looks for.

    Paths are relative to the suite's folder. A pattern means all files that match.
    """

    name: str  # of its JSON file
    title: str
    files: tuple[str, ...]  # the first one that exists
    images: tuple[str, ...]  # the first folder that exists
    all_files: bool = False  # takes all of `files` that exist

    def find(self, folder: Path) -> tuple[tuple[Path, ...], Path] | None:
        """Its files and the folder of its images; None if there are no files."""
        found = [sorted(folder.glob(pattern)) for pattern in self.files]
        found = [files for files in found if files]
        if not found:
            return None
        taken = itertools.chain(*(found if self.all_files else found[:1]))
        folders = [folder / name for name in self.images]
        images = next((path for path in folders if path.is_dir()), folders[-1])
        return tuple(taken), images


OpenDataSet = Callable[[DataSet, tuple[Path, ...], Path, bool], Opened]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark.

    Attributes:
      options: of `vilem evaluate NAME`, in the order of its help: a flag with the
        arguments of `add_argument`, or the name of options that verbs share ("model",
        "data", "distributed", "text_length", "out").
      open: (options, `ReadConfig`) -> the data.
      evaluate: (encoder, *data, **settings) -> metrics with "measured" and, possibly,
        "protocol". Without "model" among the options: no encoder. The protocol, with
        that of `Opened`, has at least "data", the name that is printed.
      tabulate: metrics -> what the terminal shows.
      warnings: metrics -> sentences for stderr.
      data_sets: what the suite looks for; `open_data_set` takes one of them, its files,
        the folder of its images, and --allow-missing.
      summarize: (title of a data set, metrics) -> rows of the suite's page; tables of
        one title are joined.
    """

    options: tuple[str | Option, ...]
    open: Callable[[argparse.Namespace, ReadConfig], Opened]
    evaluate: Callable[..., dict]
    tabulate: Callable[[dict], Sequence[Table]]
    warnings: Callable[[dict], Iterable[str]] = lambda metrics: ()
    data_sets: tuple[DataSet, ...] = ()
    open_data_set: OpenDataSet | None = None
    summarize: Callable[[str, dict], Table] | None = None


def option(flag: str, **arguments: object) -> Option:
    """An option of one benchmark."""
    return flag, arguments


def count(text: str) -> int:
    """A whole number of 1 or more, as the type of an option."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return value


def describe_split(source: SourceConfig) -> str:
    """The split for a protocol; of `scenes` also the seed."""
    if isinstance(source, ScenesConfig):
        return f"{source.split}, seed {source.seed}"
    return source.split
