"""What the measures of `vilem evaluate` share: options, opening, telling."""

import argparse
import sys

from vilem_jax.cli.options import (
    add_data,
    add_distributed,
    add_model,
    count,
    is_process_0,
    open_model,
    source_config,
)
from vilem_jax.errors import UserError


def add_measure(measures, name: str, sentence: str) -> argparse.ArgumentParser:
    measure = measures.add_parser(name, help=sentence, allow_abbrev=False)
    add_model(measure)
    add_data(measure)
    add_distributed(measure)
    add_out(measure)
    return measure


def add_text_length(measure: argparse.ArgumentParser) -> None:
    measure.add_argument(
        "--text-length", type=count, help="tokens of a caption; the run's by default"
    )


def captions_length(options: argparse.Namespace, model) -> int:
    """--text-length, or the run's.

    Raises:
      UserError: longer than the text tower's position embeddings.
    """
    longest = model.config.model.text.max_positions
    length = options.text_length or model.config.evaluation.text_length
    if not 3 <= length <= longest:
        raise UserError(f"--text-length={length} must lie between 3 and {longest}")
    return length


def add_out(measure: argparse.ArgumentParser) -> None:
    measure.add_argument("--out", metavar="FILE.json", help="the metrics as JSON")


def check_out(options: argparse.Namespace) -> None:
    """Before hours of work: can --out be written?"""
    from vilem_jax.files import check_writable

    if options.out and is_process_0(options):
        check_writable(options.out)


def tell(options: argparse.Namespace, table: str, metrics: dict) -> None:
    """Prints the table and on what it was measured; writes --out. Of several processes
    the first one does."""
    from vilem_jax.files import write_json
    from vilem_jax.report.tables import measured_lines

    if not is_process_0(options):
        return
    print(table)
    print(measured_lines(metrics))
    for note in metrics["protocol"].get("notes", ()):
        print(f"vilem: {metrics['protocol']['data']}: {note}", file=sys.stderr)
    if options.out:
        write_json(options.out, metrics)


def of_model(options: argparse.Namespace, **settings) -> dict:
    """The part of a protocol that says which weights were measured."""
    names = ("model", "weights", "step")
    return {name: getattr(options, name) for name in names} | settings


def open_both(options: argparse.Namespace):
    """Config and source of the data, and the model; --out is tried before it."""
    from vilem_jax.data.sources.source import open_source

    config = source_config(options)
    source = open_source(config)
    check_out(options)
    return config, source, open_model(options)
