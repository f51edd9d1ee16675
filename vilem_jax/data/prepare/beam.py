"""Prepare once, on many machines: `prepare` as an Apache Beam pipeline of TFDS.

The machines must have this package, and see the sources and the result under the paths
of the machine that starts them. Nothing is gone on with: a run is whole or nothing.
"""

import contextlib
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vilem_jax.data.prepare.local import (
    claim,
    dataset_name,
    finish,
    make_plan,
    refuse_empty,
    told,
)
from vilem_jax.data.prepare.records import (
    LeftOutError,
    Settings,
    SplitRecords,
    Splits,
    split_records,
    tally,
)
from vilem_jax.data.sources import tfds_files
from vilem_jax.errors import UserError
from vilem_jax.files import reason

CHUNK = 64  # images that a machine takes at a time
_TALLIES = "tallies"
# What no data and no machine raises.
_MISTAKES = (
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
)
_MISTAKE_NAMES = {kind.__name__ for kind in _MISTAKES} | {"IndexError", "KeyError"}


def prepare_with_beam(
    splits: Splits,
    folder: str | Path,
    settings: Settings,
    *,
    runner: str,
    options: str = "",
) -> dict[str, Any]:
    """Writes what `prepare` writes, by TFDS's `download_and_prepare` on a Beam runner.

    The records and their order are those of `prepare`; how many shards there are is
    TFDS's choice.

    Args:
      splits: give sources by their configs, which machines open for themselves: an
        opened source would travel inside the pipeline.
      runner: of Beam, such as "DirectRunner" (this machine) or "DataflowRunner".
      options: Beam's, as on a command line: "--project=X --region=Y".

    Returns:
      the report of `prepare`.

    Raises:
      UserError: as `prepare`; apache-beam is not installed, it knows no such runner,
        or the pipeline failed.
    """
    settings.check()
    pipeline_options = _options(runner, options)
    folder = Path(folder).expanduser()
    partial = claim(folder)
    if partial.exists():
        raise UserError(
            f"{partial} is half a preparation, which Beam cannot go on with: delete it"
        )
    records = split_records(splits, settings)
    plan = make_plan(records, settings)
    _check_readable(records)
    with told(folder), _removed_on_failure(partial):
        (partial / _TALLIES).mkdir(parents=True)
        made = _build(partial, folder, records, runner, pipeline_options)
        tallies = {split: _read_tallies(partial, split) for split in records}
        place = partial / tfds_files.VERSION
        made.replace(place)
        for inside in partial.iterdir():
            if inside != place:
                shutil.rmtree(inside)
        files = {split: len(list(place.glob(f"*-{split}.*"))) for split in records}
        return finish(partial, folder, plan, tallies, records, files)


def _options(runner: str, options: str):
    """Beam's `PipelineOptions`, after a look at what it would not forgive."""
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners import create_runner
    except ImportError:
        raise UserError(
            "--beam-runner needs apache-beam: pip install 'vilem-jax[beam]', or leave "
            "it out to work with --workers on this machine"
        ) from None
    try:
        create_runner(runner)
        return PipelineOptions(shlex.split(options))
    except (ValueError, ImportError, AttributeError):
        raise UserError(
            f"Beam has no runner {runner!r} here, or cannot read --beam-options: try "
            "DirectRunner, FlinkRunner, SparkRunner or DataflowRunner"
        ) from None


def _build(partial: Path, folder: Path, records, runner: str, options) -> Path:
    """Runs the pipeline; the folder of the files it made."""
    begins = {
        split: _Begin(split, part, str(partial / _TALLIES / split))
        for split, part in records.items()
    }
    try:
        return tfds_files.build_with_beam(
            partial, dataset_name(folder), begins, runner=runner, options=options
        )
    except UserError:
        raise
    except Exception as error:  # a runner raises what it likes
        if _is_mistake(error):
            raise
        raise UserError(
            f"the pipeline of {runner} failed ({_reason(error)}): nothing was written"
        ) from error


def _is_mistake(error: Exception) -> bool:
    """Whether the program is wrong, ours or a library's, and not data or machines.

    A worker's exception comes back as text: a traceback, its name in the last line.
    """
    name = _last_line(error).partition(":")[0]
    return isinstance(error, _MISTAKES) or name in _MISTAKE_NAMES


def _reason(error: Exception) -> str:
    """One line, and of a worker's traceback the last."""
    return _last_line(error) if "Traceback" in str(error) else reason(error)


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].partition(" [while running")[0][:300] if lines else ""


class _Begin:
    """A pipeline -> (number, example) of one split; its tallies go to files."""

    def __init__(self, split: str, records: SplitRecords, tallies: str):
        self.split, self.records, self.tallies = split, records, tallies

    def __call__(self, pipeline):
        import apache_beam as beam

        name, count = self.split, len(self.records)
        spans = [(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
        made = (
            pipeline
            | f"spans of {name}" >> beam.Create(spans)
            | f"spread {name}" >> beam.Reshuffle()
            | f"prepare {name}"
            >> beam.FlatMap(_prepare_span, self.records).with_outputs(
                "tally", main="examples"
            )
        )
        made.tally | f"tallies of {name}" >> beam.io.WriteToText(self.tallies)
        return made.examples


def _prepare_span(span: tuple[int, int], records: SplitRecords) -> Iterator:
    """The examples of some images, and what became of them as a line of JSON."""
    from apache_beam import pvalue

    made = []
    counts = tally(range(*span), records, made.append)
    yield pvalue.TaggedOutput("tally", json.dumps({"start": span[0], **counts}))
    for record in made:
        number = record["image_id"] - records.first_id
        yield number, tfds_files.as_example(record)


def _read_tallies(partial: Path, split: str) -> list[dict]:
    """What became of the images of a split, in order."""
    lines = [
        json.loads(line)
        for file in (partial / _TALLIES).glob(f"{split}-*")
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    return sorted(lines, key=lambda line: line["start"])


def _check_readable(records: Mapping[str, SplitRecords]) -> None:
    """Refuses a split of which no image can be read, before machines start."""
    for split, part in records.items():
        left_out = []
        for number in range(min(len(part), CHUNK)):
            try:
                part.record(number)
                break
            except LeftOutError as error:
                left_out.append(error.described)
        else:
            refuse_empty(split, left_out)


@contextlib.contextmanager
def _removed_on_failure(partial: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
