"""`vilem evaluate`: measures of a model, one function each."""

import argparse
import json
import sys

from vilem_jax.cli import evaluate_video
from vilem_jax.cli.evaluate_options import (
    add_measure,
    add_out,
    add_text_length,
    check_out,
    of_model,
    open_encoder,
    tell,
)
from vilem_jax.cli.options import (
    EMBEDDED,
    add_distributed,
    add_model,
    count,
    describe_split,
    is_process_0,
    open_model,
    refuse_options,
    source_config,
)
from vilem_jax.errors import UserError


def add_verbs(verbs) -> None:
    measures = verbs.add_parser(
        "evaluate", help="measure a model", allow_abbrev=False
    ).add_subparsers(metavar="WHAT", required=True)
    _add_retrieval(measures)
    _add_winoground(measures)
    _add_pairs(measures)
    _add_proofreading(measures)
    evaluate_video.add_verb(measures)
    _add_embeddings(measures)
    _add_suite(measures)


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
    measure = add_measure(measures, "retrieval", "recall at 1, 5, 10, both ways")
    measure.add_argument(
        "--captions-per-image",
        type=lambda text: text if text == "all" else count(text),
        default="all",
        metavar="all|N",
        help="the first N of each image",
    )
    _add_folds(measure)
    measure.add_argument(
        "--allow-missing",
        action="store_true",
        help="leave out images that are not there, with their captions, and count",
    )
    add_text_length(measure)
    measure.set_defaults(verb=_retrieval)


def _retrieval(options: argparse.Namespace) -> None:
    from vilem_jax.data.sources.source import open_source
    from vilem_jax.evaluation.retrieval import evaluate_retrieval
    from vilem_jax.report.tables import retrieval_table

    config = source_config(options)
    source = open_source(config)
    check_out(options)
    metrics = evaluate_retrieval(
        open_encoder(options),
        source,
        captions_per_image=options.captions_per_image,
        folds=options.folds,
        allow_missing=options.allow_missing,
        show_progress=sys.stderr.isatty(),
    )
    protocol = of_model(options, split=describe_split(config)) | metrics["protocol"]
    metrics["protocol"] = protocol
    tell(options, retrieval_table(metrics), metrics)
    if not is_process_0(options):
        return
    if missing := protocol["missing_images"]:
        captions = protocol["missing_captions"]
        print(
            f"vilem: {missing} images were missing and left out, with their "
            f"{captions} captions",
            file=sys.stderr,
        )
    if silent := protocol["captions_without_a_word"]:
        print(f"vilem: {silent} captions without a word were scored", file=sys.stderr)


# ---- vilem evaluate winoground ----


def _add_winoground(measures) -> None:
    measure = measures.add_parser(
        "winoground", help="which caption to which image?", allow_abbrev=False
    )
    add_model(measure)
    measure.add_argument(
        "--data", required=True, metavar="FOLDER", help="examples.jsonl and images/"
    )
    add_text_length(measure)
    add_out(measure)
    measure.set_defaults(verb=_winoground)


def _winoground(options: argparse.Namespace) -> None:
    from vilem_jax.evaluation.winoground import evaluate_winoground, read_winoground
    from vilem_jax.report.tables import winoground_table

    read_winoground(options.data)  # before the model is loaded
    check_out(options)
    metrics = evaluate_winoground(
        open_encoder(options),
        options.data,
        show_progress=sys.stderr.isatty(),
    )
    metrics["protocol"] = of_model(options) | metrics["protocol"]
    tell(options, winoground_table(metrics), metrics)


# ---- vilem evaluate pairs ----


def _add_pairs(measures) -> None:
    measure = add_measure(
        measures, "pairs", "is a true caption preferred to a wrong one? by type"
    )
    add_text_length(measure)
    measure.set_defaults(verb=_pairs)


def _pairs(options: argparse.Namespace) -> None:
    from vilem_jax.evaluation.pairs import evaluate_pairs
    from vilem_jax.report.tables import pairs_table

    protocol, pairs, images = _open_pairs(options)
    check_out(options)
    encoder = open_encoder(options)
    metrics = evaluate_pairs(
        encoder,
        pairs,
        images,
        show_progress=sys.stderr.isatty(),
    )
    metrics["protocol"] = of_model(options, text_length=encoder.text_length) | protocol
    tell(options, pairs_table(metrics), metrics)


def _open_pairs(options: argparse.Namespace):
    """The protocol of the pairs, the pairs, and their images."""
    if options.data is None or options.data == EMBEDDED:
        from vilem_jax.data.scenes.hard_pairs import hard_pairs
        from vilem_jax.data.sources.source import open_source

        config = source_config(options)
        if config.kind != EMBEDDED:
            raise UserError(
                "say which pairs with --data: a JSON file of SugarCrepe, ARO or VALSE, "
                f"a folder of them, or {EMBEDDED!r}"
            )
        source = open_source(config)
        ties = "count against the model"
        protocol = {"data": config.name, "split": describe_split(config), "ties": ties}
        return protocol, hard_pairs(source), source
    from vilem_jax.evaluation.pair_files import open_pairs, read_pairs

    unused = ("split", "num_images", "kind")
    refuse_options(options, unused, "has no meaning for pairs: all of --data are used")
    if not options.images:
        read_pairs(options.data)  # a bad file is told first
        raise UserError("say where the images of the pairs are with --images")
    return open_pairs(options.images, options.data)


# ---- vilem evaluate proofread ----


def _add_proofreading(measures) -> None:
    measure = add_measure(
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
    from vilem_jax.data.sources.source import open_source
    from vilem_jax.evaluation.proofread import evaluate_proofreading
    from vilem_jax.evaluation.timing import Stopwatch, measured
    from vilem_jax.report.tables import proofread_table

    config = source_config(options)
    source = open_source(config)
    check_out(options)
    model = open_model(options)
    edits = _open_edits(options, model, source)
    clock = Stopwatch()
    encoder = model.encoder.timed(clock)
    metrics = evaluate_proofreading(
        encoder,
        edits,
        source,
        show_progress=sys.stderr.isatty(),
    )
    protocol = of_model(options, data=source.name, split=describe_split(config))
    metrics["protocol"] = protocol | {"editing": json.loads(edits.manner)}
    metrics["measured"] = measured(encoder, clock)
    tell(options, proofread_table(metrics), metrics)


def _open_edits(options: argparse.Namespace, model, source):
    from pathlib import Path

    from vilem_jax.api import make_run_edits
    from vilem_jax.distributed import processes
    from vilem_jax.editing.stored_edits import load_edits, save_edits

    has_edits = options.edits and Path(options.edits).expanduser().exists()
    if processes.broadcast(has_edits):
        return load_edits(options.edits, model.tokenizer)
    model.encoder.check_trained()  # before anything is asked of an editor
    edits = make_run_edits(model, source, seed=options.seed)
    if options.edits:
        processes.on_process_0(lambda: save_edits(edits, options.edits))
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
    add_out(measure)
    measure.set_defaults(verb=_embeddings)


def _embeddings(options: argparse.Namespace) -> None:
    from vilem_jax.evaluation.embeddings import evaluate_embeddings, read_features
    from vilem_jax.report.tables import retrieval_table

    features = read_features(options.features)
    check_out(options)
    metrics = evaluate_embeddings(features, name=options.features, folds=options.folds)
    tell(options, retrieval_table(metrics), metrics)


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
        help="leave out what retrieval and video miss, and count it",
    )
    add_text_length(measure)
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
    done = run_suite(
        open_encoder(options),
        found,
        allow_missing=options.allow_missing,
        show_progress=sys.stderr.isatty(),
    )
    if not is_process_0(options):
        return
    for name, metrics in done.metrics.items():
        metrics["protocol"] = of_model(options) | metrics["protocol"]
        write_json(out / f"{name}.json", metrics)
    page = suite_page(done, model=options.model, weights=options.weights)
    write_bytes(out / "report.md", page.encode())
    print(page)
    print(f"vilem: wrote {out / 'report.md'}", file=sys.stderr)
    if done.refused:
        raise UserError(
            f"{len(done.refused)} of {len(found.present)} benchmarks could not be "
            f"measured ({', '.join(done.refused)}): {out / 'report.md'} says why"
        )
