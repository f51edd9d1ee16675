"""`vilem evaluate`: one benchmark, or all whose data lie below a folder.

A benchmark is imported when its verb is chosen, since that imports JAX.
"""

import argparse
import dataclasses
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilem_jax.cli import options as shared
from vilem_jax.errors import UserError
from vilem_jax.evaluation.benchmark import count
from vilem_jax.evaluation.suite import BENCHMARKS, find_suite, load_benchmark, run_suite
from vilem_jax.files import check_writable, write_bytes, write_json
from vilem_jax.progress import doing

if TYPE_CHECKING:
    from vilem_jax.evaluation.encoding import Encoder


class BenchmarkParser(shared.VerbParser):
    """The parser of a benchmark, which adds its options when it is used."""

    def __init__(self, *, benchmark: str = "", **rest: Any):
        super().__init__(**rest)
        self.benchmark = benchmark

    def parse_known_args(self, *args: Any, **rest: Any) -> Any:
        if self.benchmark:
            with doing("loading JAX"):
                benchmark = load_benchmark(self.benchmark)
            for option in benchmark.options:
                if isinstance(option, str):
                    SHARED_OPTIONS[option](self)
                else:
                    self.add_argument(option[0], **option[1])
            self.benchmark = ""
        return super().parse_known_args(*args, **rest)


def add_verbs(verbs) -> None:
    benchmarks = verbs.add_parser("evaluate", help="measure a model").add_subparsers(
        metavar="WHAT", required=True, parser_class=BenchmarkParser
    )
    for name, sentence in BENCHMARKS.items():
        run = functools.partial(_run_benchmark, name)
        benchmarks.add_parser(name, run=run, help=sentence, benchmark=name)
    suite = benchmarks.add_parser(
        "suite",
        run=_run_suite,
        help="all benchmarks that lie under one folder, one report",
    )
    shared.add_model(suite)
    add = suite.add_argument
    add("--data", required=True, metavar="FOLDER")
    add("--out", required=True, metavar="DIR", help="JSON a benchmark, and report.md")
    add(
        "--allow-missing",
        action="store_true",
        help="leave out what retrieval and video miss, and count it",
    )
    _add_text_length(suite)
    shared.add_distributed(suite)


def _add_text_length(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--text-length", type=count, help="tokens of a caption; the run's by default"
    )


def _add_out(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--out", metavar="FILE.json", help="the metrics as JSON")


SHARED_OPTIONS = {
    "model": shared.add_model,
    "data": shared.add_data,
    "distributed": shared.add_distributed,
    "text_length": _add_text_length,
    "out": _add_out,
}


def _run_benchmark(name: str, options: argparse.Namespace) -> None:
    from vilem_jax.report.tables import measured_lines, render

    benchmark = load_benchmark(name)
    # Data and --out are checked before the model, which takes minutes to load.
    opened = benchmark.open(options, functools.partial(shared.source_config, options))
    if options.out and shared.is_process_0(options):
        check_writable(options.out)
    evaluate, protocol = benchmark.evaluate, {}
    if "model" in benchmark.options:
        evaluate = functools.partial(evaluate, _open_encoder(options))
        protocol = _weights_of(options)
    with doing(f"measuring {name}"):
        metrics = evaluate(*opened.data, **opened.settings)
    of_data = {**opened.protocol, **metrics.get("protocol", {})}
    metrics["protocol"] = protocol | of_data
    if not shared.is_process_0(options):
        return
    if options.out:
        write_json(options.out, metrics)
    print(render(benchmark.tabulate(metrics)))
    print(measured_lines(metrics))
    for note in metrics["protocol"].get("notes", ()):
        print(f"vilem: {metrics['protocol']['data']}: {note}", file=sys.stderr)
    for warning in benchmark.warnings(metrics):
        print(f"vilem: {warning}", file=sys.stderr)


def _run_suite(options: argparse.Namespace) -> None:
    from vilem_jax.report.suite_page import suite_page

    suite = find_suite(options.data)
    out = Path(options.out).expanduser()
    check_writable(out / "report.md")
    run_suite(_open_encoder(options), suite, allow_missing=options.allow_missing)
    if not shared.is_process_0(options):
        return
    for name, metrics in suite.metrics.items():
        metrics["protocol"] = _weights_of(options) | metrics["protocol"]
        write_json(out / f"{name}.json", metrics)
    page = suite_page(suite, model=options.model, weights=options.weights)
    write_bytes(out / "report.md", page.encode(errors="backslashreplace"))
    print(page)
    print(f"vilem: wrote {out / 'report.md'}", file=sys.stderr)
    if suite.refused:
        raise UserError(
            f"{len(suite.refused)} of {len(suite.found)} benchmarks could not be "
            f"measured ({', '.join(suite.refused)}): {out / 'report.md'} says why"
        )


def _open_encoder(options: argparse.Namespace) -> "Encoder":
    """The model's encoder, with captions of --text-length or the run's; shows a bar.

    Raises:
      UserError: longer than the text tower's position embeddings.
    """
    encoder = shared.open_model(options).encoder
    limit = encoder.config.model.text.max_positions
    length = getattr(options, "text_length", None) or encoder.text_length
    if not 3 <= length <= limit:
        raise UserError(f"--text-length={length} must lie between 3 and {limit}")
    return dataclasses.replace(encoder, text_length=length, show_progress=True)


def _weights_of(options: argparse.Namespace) -> dict:
    """The part of a protocol that names the weights."""
    return {name: getattr(options, name) for name in ("model", "weights", "step")}
