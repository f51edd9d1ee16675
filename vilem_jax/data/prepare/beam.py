"""`prepare` on many machines, as an Apache Beam pipeline of TFDS.

The machines need this package, and the sources and the result at the same paths as on
the machine that starts them. A run that is interrupted cannot be resumed.
"""

import functools
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from vilem_jax.data.prepare import local
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
from vilem_jax.files import reason, write_errors
from vilem_jax.typing import JsonObject

CHUNK = 64  # images that a machine processes at a time
_TALLIES = "tallies"
# Errors of the program, not of data or machines.
_BUGS = (
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
)
_BUG_NAMES = {kind.__name__ for kind in _BUGS} | {"IndexError", "KeyError"}


def prepare_with_beam(
    splits: Splits, folder: str | Path, settings: Settings, runner: str, options: str
) -> JsonObject:
    """Like `prepare`, with TFDS's `download_and_prepare` on a Beam runner.

    The records and their order are the same; TFDS decides the number of shards.

    Args:
      splits: the sources as configs, which each machine opens; an opened source would
        be sent with the pipeline.
      runner: of Beam, such as "DirectRunner" (this machine) or "DataflowRunner".
      options: Beam's, as on a command line: "--project=X --region=Y".

    Returns:
      the report of `prepare`.

    Raises:
      UserError: as `prepare`; also if apache-beam is not installed or has no such
        runner, or if the pipeline failed.
    """
    pipeline_options = _options(runner, options)
    folder = Path(folder).expanduser()
    partial = local.claim(folder)
    if partial.exists():
        raise UserError(f"{partial} is incomplete, which Beam cannot resume: delete it")
    records = split_records(splits, settings)
    plan = local.make_plan(records, settings)
    _check_readable(records)
    try:
        with write_errors(folder):
            (partial / _TALLIES).mkdir(parents=True)
            built = _build(partial, folder, records, runner, pipeline_options)
            tallies = {split: _read_tallies(partial, split) for split in records}
            version = partial / tfds_files.VERSION
            built.replace(version)
            for inside in partial.iterdir():
                if inside != version:
                    shutil.rmtree(inside)
            return local.finish(partial, folder, plan, tallies, records)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # on failure; else it is renamed


def _beam() -> ModuleType:
    try:
        import apache_beam  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError:
        raise UserError(
            "--beam-runner needs apache-beam: pip install 'vilem-jax[beam]', or leave "
            "it out to use --workers on this machine"
        ) from None
    return apache_beam


def _options(runner: str, options: str) -> Any:
    """Beam's `PipelineOptions`; checks that the runner exists."""
    beam = _beam()
    try:
        beam.runners.create_runner(runner)
        return beam.options.pipeline_options.PipelineOptions(shlex.split(options))
    except (ValueError, ImportError, AttributeError):
        raise UserError(
            f"Beam has no runner {runner!r} here, or cannot read --beam-options: try "
            "DirectRunner, FlinkRunner, SparkRunner or DataflowRunner"
        ) from None


def _build(
    partial: Path, folder: Path, records: local.Records, runner: str, options: Any
) -> Path:
    """Runs the pipeline; returns the folder of its files."""
    pipelines = {
        split: functools.partial(
            _examples, split, part, str(partial / _TALLIES / split)
        )
        for split, part in records.items()
    }
    try:
        name = local.dataset_name(folder)
        return tfds_files.build_with_beam(partial, name, pipelines, runner, options)
    except UserError:
        raise
    except Exception as error:  # runners raise errors of any type
        # An exception of a worker arrives as text, a traceback with its name in the
        # last line.
        lines = str(error).strip().splitlines() or [""]
        last_line = lines[-1].partition(" [while running")[0][:300]
        if isinstance(error, _BUGS) or last_line.partition(":")[0] in _BUG_NAMES:
            raise
        why = last_line if "Traceback" in str(error) else reason(error)
        raise UserError(
            f"the pipeline of {runner} failed ({why}): nothing was written"
        ) from error


def _examples(name: str, records: SplitRecords, tallies: str, pipeline: Any) -> Any:
    """A collection of (number, example) of one split; its tallies go to files."""
    beam, count = _beam(), len(records)
    spans = [(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    prepare_spans = beam.FlatMap(_prepare_span, records)
    outputs = (
        pipeline
        | f"spans of {name}" >> beam.Create(spans)
        | f"spread {name}" >> beam.Reshuffle()
        | f"prepare {name}" >> prepare_spans.with_outputs("tally", main="examples")
    )
    _ = outputs.tally | f"tallies of {name}" >> beam.io.WriteToText(tallies)
    return outputs.examples


def _prepare_span(span: tuple[int, int], records: SplitRecords) -> Iterator:
    """The examples of some records, and their tally as a line of JSON."""
    prepared: list[JsonObject] = []
    counts = tally(range(*span), records, prepared.append)
    line = json.dumps({"start": span[0], **counts})
    yield _beam().pvalue.TaggedOutput("tally", line)
    for record in prepared:
        number = record["image_id"] - records.first_id
        yield number, tfds_files.as_example(record)


def _read_tallies(partial: Path, split: str) -> list[dict]:
    """The tallies of a split, in the order of the records."""
    lines = [
        json.loads(line)
        for file in (partial / _TALLIES).glob(f"{split}-*")
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    return sorted(lines, key=lambda line: line["start"])


def _check_readable(records: local.Records) -> None:
    """Raises a UserError if a split begins with `CHUNK` unreadable images.

    This finds a wrong folder before the machines start.
    """
    for split, part in records.items():
        left_out = []
        for number in range(min(len(part), CHUNK)):
            try:
                part.record(number)
                break
            except LeftOutError as error:
                left_out.append(error.described)
        else:
            local.refuse_empty(split, left_out)
