"""`vilem evaluate`: measures of a model, one function each."""

import argparse
import json
import sys

from vilem_jax import cli_video
from vilem_jax.cli_arguments import (
    EMBEDDED,
    add_data,
    add_distributed,
    add_model,
    count,
    is_first,
    open_model,
    refuse_options,
    source_config,
)
from vilem_jax.config import UserError


def add_verbs(verbs) -> None:
    measures = verbs.add_parser(
        "evaluate", help="measure a model", allow_abbrev=False
    ).add_subparsers(metavar="WHAT", required=True)
    _add_retrieval(measures)
    _add_winoground(measures)
    _add_pairs(measures)
    _add_proofreading(measures)
    cli_video.add_verb(measures)
    _add_embeddings(measures)
    _add_suite(measures)


def _add_measure(measures, name: str, sentence: str) -> argparse.ArgumentParser:
    measure = measures.add_parser(name, help=sentence, allow_abbrev=False)
    add_model(measure)
    add_data(measure)
    add_distributed(measure)
    _add_out(measure)
    return measure


def _add_text_length(measure: argparse.ArgumentParser) -> None:
    measure.add_argument(
        "--text-length", type=count, help="tokens of a caption; the run's by default"
    )


def _text_length(options: argparse.Namespace, model) -> int:
    """--text-length, or the run's.

    Raises:
      UserError: longer than the text tower's position embeddings.
    """
    longest = model.config.model.text.max_positions
    length = options.text_length or model.config.evaluation.text_length
    if not 3 <= length <= longest:
        raise UserError(f"--text-length={length} must lie between 3 and {longest}")
    return length


def _add_out(measure: argparse.ArgumentParser) -> None:
    measure.add_argument("--out", metavar="FILE.json", help="the figures as JSON")


def _check_out(options: argparse.Namespace) -> None:
    """Before hours of work: can --out be written?"""
    from vilem_jax.files import check_writable

    if options.out and is_first(options):
        check_writable(options.out)


def _tell(options: argparse.Namespace, table: str, figures: dict) -> None:
    """Prints the table and on what it was measured; writes --out. Of several processes
    the first one does."""
    from vilem_jax.files import write_json
    from vilem_jax.report.tables import measured_lines

    if not is_first(options):
        return
    print(table)
    print(measured_lines(figures))
    for note in figures["protocol"].get("notes", ()):
        print(f"vilem: {figures['protocol']['data']}: {note}", file=sys.stderr)
    if options.out:
        write_json(options.out, figures)


def _protocol(options: argparse.Namespace, **settings) -> dict:
    names = ("model", "weights", "step")
    return {name: getattr(options, name) for name in names} | settings


def _add_folds(measure: argparse.ArgumentParser) -> None:
    measure.add_argument(
        "--folds",
        type=count,
        default=1,
        metavar="N",
        help="also the mean over N equal parts: 5 gives COCO's 1K",
    )


# ---- vilem evaluate retrieval ----


def _add_retrieval(measures) -> None:
    measure = _add_measure(measures, "retrieval", "recall at 1, 5, 10, both ways")
    measure.add_argument(
        "--captions-per-image",
        type=lambda text: text if text == "all" else count(text),
        default="all",
        metavar="all|N",
        help="the first N of each picture",
    )
    _add_folds(measure)
    measure.add_argument(
        "--allow-missing",
        action="store_true",
        help="leave out pictures that are not there, with their captions, and count",
    )
    _add_text_length(measure)
    measure.set_defaults(verb=_retrieval)


def _retrieval(options: argparse.Namespace) -> None:
    from vilem_jax.data.sources import open_source
    from vilem_jax.evaluation.retrieval import evaluate_retrieval
    from vilem_jax.report.tables import retrieval_table

    config = source_config(options)
    source = open_source(config)
    _check_out(options)
    model = open_model(options)
    figures = evaluate_retrieval(
        model.encoder,
        model.tokenizer,
        source,
        text_length=_text_length(options, model),
        captions_per_image=options.captions_per_image,
        folds=options.folds,
        allow_missing=options.allow_missing,
        show_progress=sys.stderr.isatty(),
    )
    protocol = _protocol(options, split=config.split) | figures["protocol"]
    figures["protocol"] = protocol
    _tell(options, retrieval_table(figures), figures)
    if not is_first(options):
        return
    if missing := protocol["missing_images"]:
        captions = protocol["missing_captions"]
        print(
            f"vilem: {missing} pictures were missing and left out, with their "
            f"{captions} captions",
            file=sys.stderr,
        )
    if silent := protocol["captions_without_a_word"]:
        print(f"vilem: {silent} captions without a word were scored", file=sys.stderr)


# ---- vilem evaluate winoground ----


def _add_winoground(measures) -> None:
    measure = measures.add_parser(
        "winoground", help="which caption to which picture?", allow_abbrev=False
    )
    add_model(measure)
    measure.add_argument(
        "--data", required=True, metavar="FOLDER", help="examples.jsonl and images/"
    )
    _add_text_length(measure)
    _add_out(measure)
    measure.set_defaults(verb=_winoground)


def _winoground(options: argparse.Namespace) -> None:
    from vilem_jax.evaluation.winoground import evaluate_winoground, read_winoground
    from vilem_jax.report.tables import winoground_table

    read_winoground(options.data)  # before the model is loaded
    _check_out(options)
    model = open_model(options)
    figures = evaluate_winoground(
        model.encoder,
        model.tokenizer,
        options.data,
        text_length=_text_length(options, model),
        show_progress=sys.stderr.isatty(),
    )
    figures["protocol"] = _protocol(options) | figures["protocol"]
    _tell(options, winoground_table(figures), figures)


# ---- vilem evaluate pairs ----


def _add_pairs(measures) -> None:
    measure = _add_measure(
        measures, "pairs", "is a true caption preferred to a wrong one? by type"
    )
    _add_text_length(measure)
    measure.set_defaults(verb=_pairs)


def _pairs(options: argparse.Namespace) -> None:
    from vilem_jax.evaluation.pairs import evaluate_pairs
    from vilem_jax.report.tables import pairs_table

    protocol, pairs, read_image = _open_pairs(options)
    _check_out(options)
    model = open_model(options)
    length = _text_length(options, model)
    figures = evaluate_pairs(
        model.encoder,
        model.tokenizer,
        pairs,
        read_image,
        text_length=length,
        show_progress=sys.stderr.isatty(),
    )
    figures["protocol"] = _protocol(options, text_length=length) | protocol
    _tell(options, pairs_table(figures), figures)


def _open_pairs(options: argparse.Namespace):
    """What to say of the pairs, the pairs, and how to read a picture of theirs."""
    if options.data is None or options.data == EMBEDDED:
        from vilem_jax.data.scene_pairs import hard_pairs
        from vilem_jax.data.sources import open_source

        config = source_config(options)
        if config.kind != EMBEDDED:
            raise UserError(
                "say which pairs with --data: a JSON file of SugarCrepe, ARO or VALSE, "
                f"a folder of them, or {EMBEDDED!r}"
            )
        source = open_source(config)
        ties = "count against the model"
        protocol = {"data": config.name, "split": config.split, "ties": ties}
        return protocol, hard_pairs(source), source.read_image
    from vilem_jax.evaluation.pair_files import open_pairs, read_pairs

    unused = ("split", "num_images", "kind")
    refuse_options(options, unused, "has no meaning for pairs: all of --data are used")
    if not options.images:
        read_pairs(options.data)  # a bad file is told first
        raise UserError("say where the pictures of the pairs are with --images")
    return open_pairs(options.images, options.data)


# ---- vilem evaluate proofread ----


def _add_proofreading(measures) -> None:
    measure = _add_measure(
        measures, "proofread", "are wrong words found and corrected, and seen?"
    )
    measure.add_argument(
        "--edits",
        metavar="FILE.npz",
        help="stored edits, so that models are compared on the same; where there is "
        "no such file, the run's editor makes them and they are stored there",
    )
    measure.set_defaults(verb=_proofreading)


def _proofreading(options: argparse.Namespace) -> None:
    from vilem_jax.data.sources import open_source
    from vilem_jax.evaluation.proofread import evaluate_proofreading
    from vilem_jax.evaluation.timing import Stopwatch, measured
    from vilem_jax.report.tables import proofread_table

    config = source_config(options)
    source = open_source(config)
    _check_out(options)
    model = open_model(options)
    edits = _open_edits(options, model, source)
    clock = Stopwatch()
    encoder = model.encoder.timed(clock)
    figures = evaluate_proofreading(
        encoder,
        edits,
        source,
        is_word=model.tokenizer.vocabulary.is_word,
        show_progress=sys.stderr.isatty(),
    )
    protocol = _protocol(options, data=source.name, split=config.split)
    figures["protocol"] = protocol | {"editing": json.loads(edits.manner)}
    figures["measured"] = measured(encoder, clock)
    _tell(options, proofread_table(figures), figures)


def _open_edits(options: argparse.Namespace, model, source):
    from pathlib import Path

    from vilem_jax import hosts
    from vilem_jax.api import make_run_edits
    from vilem_jax.evaluation.proofread import load_edits, save_edits

    has_edits = options.edits and Path(options.edits).expanduser().exists()
    if hosts.of_first(has_edits):
        return load_edits(options.edits, model.tokenizer)
    model.encoder.check_trained()  # before anything is asked of an editor
    edits = make_run_edits(model, source, seed=options.seed)
    if options.edits:
        hosts.first_does(lambda: save_edits(edits, options.edits))
    return edits


# ---- vilem evaluate embeddings ----


def _add_embeddings(measures) -> None:
    measure = measures.add_parser(
        "embeddings",
        help="recall from someone else's features; needs no model",
        allow_abbrev=False,
    )
    measure.add_argument(
        "--features",
        required=True,
        metavar="FILE.npz",
        help="image_embedding [I, E], text_embedding [T, E], image_of_text [T]",
    )
    _add_folds(measure)
    _add_out(measure)
    measure.set_defaults(verb=_embeddings)


def _embeddings(options: argparse.Namespace) -> None:
    from vilem_jax.evaluation.embeddings import evaluate_embeddings, read_features
    from vilem_jax.report.tables import retrieval_table

    features = read_features(options.features)
    _check_out(options)
    figures = evaluate_embeddings(features, name=options.features, folds=options.folds)
    _tell(options, retrieval_table(figures), figures)


# ---- vilem evaluate suite ----


def _add_suite(measures) -> None:
    measure = measures.add_parser(
        "suite",
        help="all benchmarks that lie under one folder, one report",
        allow_abbrev=False,
    )
    add_model(measure)
    measure.add_argument("--data", required=True, metavar="FOLDER")
    measure.add_argument(
        "--out", required=True, metavar="DIR", help="JSON a benchmark, and report.md"
    )
    measure.add_argument(
        "--allow-missing",
        action="store_true",
        help="leave out pictures of retrieval that are not there, and count them",
    )
    _add_text_length(measure)
    add_distributed(measure)
    measure.set_defaults(verb=_suite)


def _suite(options: argparse.Namespace) -> None:
    from pathlib import Path

    from vilem_jax.evaluation.suite import find_benchmarks, run_suite
    from vilem_jax.files import check_writable, write_bytes, write_json
    from vilem_jax.report.suite_page import suite_page

    found = find_benchmarks(options.data)
    out = Path(options.out).expanduser()
    check_writable(out / "report.md")
    model = open_model(options)
    done = run_suite(
        model.encoder,
        model.tokenizer,
        found,
        text_length=_text_length(options, model),
        allow_missing=options.allow_missing,
        show_progress=sys.stderr.isatty(),
    )
    if not is_first(options):
        return
    for name, figures in done.figures.items():
        figures["protocol"] = _protocol(options) | figures["protocol"]
        write_json(out / f"{name}.json", figures)
    page = suite_page(done, model=options.model, weights=options.weights)
    write_bytes(out / "report.md", page.encode())
    print(page)
    print(f"vilem: wrote {out / 'report.md'}", file=sys.stderr)
    if done.refused:
        raise UserError(
            f"{len(done.refused)} of {len(found.present)} benchmarks could not be "
            f"measured ({', '.join(done.refused)}): {out / 'report.md'} says why"
        )
