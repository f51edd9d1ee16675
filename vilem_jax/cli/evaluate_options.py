"""What the measures of `vilem evaluate` share: options, opening, telling."""

import argparse
import dataclasses
import sys

from vilem_jax.cli.options import (
    add_data,
    add_distributed,
    add_model,
    count,
    is_process_0,
    open_model,
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


def open_encoder(options: argparse.Namespace):
    """The model's encoder, with captions of --text-length or the run's.

    Raises:
      UserError: longer than the text tower's position embeddings.
    """
    encoder = open_model(options).encoder
    length = options.text_length or encoder.text_length
    if not 3 <= length <= encoder.max_text_length:
        raise UserError(
            f"--text-length={length} must lie between 3 and {encoder.max_text_length}"
        )
    return dataclasses.replace(encoder, text_length=length)


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
