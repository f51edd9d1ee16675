"""The verbs that use a trained model: evaluate, proofread, index, search."""

import argparse
import json
import sys

from vilem_jax.cli_arguments import (
    EMBEDDED,
    add_data,
    add_model,
    count,
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
    _add_pairs(measures)
    _add_proofreading(measures)
    _add_proofread(verbs)
    _add_index(verbs)
    _add_search(verbs)


def _add_measure(measures, name: str, sentence: str) -> argparse.ArgumentParser:
    measure = measures.add_parser(name, help=sentence, allow_abbrev=False)
    add_model(measure)
    add_data(measure)
    measure.add_argument("--out", metavar="FILE.json", help="the figures as JSON")
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


def _write(options: argparse.Namespace, figures: dict) -> None:
    from vilem_jax.files import write_json

    if options.out:
        write_json(options.out, figures)


def _protocol(options: argparse.Namespace, **settings) -> dict:
    names = ("model", "weights", "step")
    return {name: getattr(options, name) for name in names} | settings


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
    _add_text_length(measure)
    measure.set_defaults(verb=_retrieval)


def _retrieval(options: argparse.Namespace) -> None:
    from vilem_jax.data.sources import open_source
    from vilem_jax.evaluation.retrieval import evaluate_retrieval
    from vilem_jax.report.tables import retrieval_table

    config = source_config(options)
    source = open_source(config)
    model = open_model(options)
    figures = evaluate_retrieval(
        model.encoder,
        model.tokenizer,
        source,
        text_length=_text_length(options, model),
        captions_per_image=options.captions_per_image,
        show_progress=sys.stderr.isatty(),
    )
    protocol = _protocol(options, split=config.split) | figures["protocol"]
    figures["protocol"] = protocol
    print(retrieval_table(figures))
    for note in protocol["notes"]:
        print(f"vilem: {source.name}: {note}", file=sys.stderr)
    if count := protocol["captions_without_a_word"]:
        print(f"vilem: {count} captions without a word were scored", file=sys.stderr)
    _write(options, figures)


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

    name, pairs, read_image = _open_pairs(options)
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
    figures["protocol"] = _protocol(options, data=name, text_length=length)
    print(pairs_table(figures))
    _write(options, figures)


def _open_pairs(options: argparse.Namespace):
    """What the pairs are called, the pairs, and how to read a picture of theirs."""
    if options.data is None or options.data == EMBEDDED:
        from vilem_jax.data.scene_pairs import hard_pairs
        from vilem_jax.data.sources import open_source

        config = source_config(options)
        if config.kind != EMBEDDED:
            raise UserError(
                "say which pairs with --data: a JSON file in SugarCrepe's layout, a "
                f"folder of them, or {EMBEDDED!r}"
            )
        source = open_source(config)
        return f"{config.name} {config.split}", hard_pairs(source), source.read_image
    from vilem_jax.data.pictures import open_pictures
    from vilem_jax.evaluation.pairs import read_pairs

    unused = ("split", "num_images", "kind")
    refuse_options(options, unused, "has no meaning for pairs: all of --data are used")
    pairs = read_pairs(options.data)
    if not options.images:
        raise UserError("say where the pictures of the pairs are with --images")
    names = list(dict.fromkeys(pair.image for pair in pairs))
    return options.data, pairs, open_pictures(options.images, names).read


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
    from vilem_jax.report.tables import proofread_table

    config = source_config(options)
    source = open_source(config)
    model = open_model(options)
    edits = _open_edits(options, model, source)
    figures = evaluate_proofreading(
        model.encoder,
        edits,
        source,
        is_word=model.tokenizer.vocabulary.is_word,
        show_progress=sys.stderr.isatty(),
    )
    protocol = _protocol(options, data=source.name, split=config.split)
    figures["protocol"] = protocol | {"editing": json.loads(edits.manner)}
    print(proofread_table(figures))
    _write(options, figures)


def _open_edits(options: argparse.Namespace, model, source):
    from pathlib import Path

    from vilem_jax.api import make_run_edits
    from vilem_jax.evaluation.proofread import load_edits, save_edits

    if options.edits and Path(options.edits).expanduser().exists():
        return load_edits(options.edits, model.tokenizer)
    model.encoder.check_trained()  # before anything is asked of an editor
    edits = make_run_edits(model, source, seed=options.seed)
    if options.edits:
        save_edits(edits, options.edits)
    return edits


# ---- vilem proofread ----


def _add_proofread(verbs) -> None:
    proofread = verbs.add_parser(
        "proofread",
        help="which words of a caption are wrong, and what is right",
        allow_abbrev=False,
    )
    add_model(proofread)
    proofread.add_argument("photo")
    proofread.add_argument("caption")
    proofread.add_argument("--branch", choices=("local", "global"), default="local")
    proofread.add_argument("--out", metavar="FILE.json", help="the same as JSON")
    proofread.set_defaults(verb=_proofread)


def _proofread(options: argparse.Namespace) -> None:
    import dataclasses

    from vilem_jax.report.tables import words_table

    model = open_model(options)
    words = model.proofread(options.photo, options.caption, branch=options.branch)
    print(words_table(words))
    _write(options, {"words": [dataclasses.asdict(word) for word in words]})


# ---- vilem index, vilem search ----


def _add_index(verbs) -> None:
    index = verbs.add_parser(
        "index", help="encode a folder of pictures, to search in", allow_abbrev=False
    )
    add_model(index)
    index.add_argument("folder")
    index.add_argument("--out", required=True, metavar="INDEX", help="file to write")
    index.set_defaults(verb=_index)


def _index(options: argparse.Namespace) -> None:
    from vilem_jax.search.index import index

    done = index(
        options.folder,
        open_model(options),
        options.out,
        show_progress=sys.stderr.isatty(),
    )
    for path, reason in done.broken:
        print(f"vilem: left out {path}: {reason}", file=sys.stderr)
    print(
        f"{options.out}: {done.pictures} pictures, {done.encoded} of them encoded now; "
        f"{done.removed} removed, {len(done.broken)} could not be read"
    )


def _add_search(verbs) -> None:
    search = verbs.add_parser(
        "search", help="pictures by words, or by a picture", allow_abbrev=False
    )
    add_model(search)
    search.add_argument("index", help="what `vilem index` wrote")
    search.add_argument("words", nargs="?")
    search.add_argument("--picture", metavar="FILE", help="instead of words")
    search.add_argument("--top", type=count, default=10, help="how many")
    search.set_defaults(verb=_search)


def _search(options: argparse.Namespace) -> None:
    from vilem_jax.search.query import search

    hits = search(
        options.index,
        open_model(options),
        words=options.words,
        picture=options.picture,
        top_k=options.top,
    )
    for hit in hits:
        print(f"{hit.score:.3f}  {hit.path}")
