"""The verbs that use a trained model: proofread, index, search."""

import argparse
import sys

from vilem_jax.cli_arguments import add_model, count, open_model


def add_verbs(verbs) -> None:
    _add_proofread(verbs)
    _add_index(verbs)
    _add_search(verbs)


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

    from vilem_jax.files import write_json
    from vilem_jax.report.tables import words_table

    model = open_model(options)
    words = model.proofread(options.photo, options.caption, branch=options.branch)
    print(words_table(words))
    length = model.config.evaluation.text_length
    cut = max(int(model.tokenizer.lengths([options.caption])[0]) - length, 0)
    if cut:
        print(
            f"vilem: the last {cut} tokens of the caption were not judged: this model "
            f"reads {length}",
            file=sys.stderr,
        )
    if options.out:
        judged = [dataclasses.asdict(word) for word in words]
        write_json(options.out, {"words": judged, "tokens_not_judged": cut})


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
    search.add_argument("index", help="what `vilem index` or `embed` wrote")
    search.add_argument("words", nargs="*", help="what to look for")
    search.add_argument("--picture", metavar="FILE", help="instead of words")
    search.add_argument("--top", type=count, default=10, help="how many")
    search.set_defaults(verb=_search)


def _search(options: argparse.Namespace) -> None:
    from vilem_jax.search.query import search

    hits = search(
        options.index,
        open_model(options),
        words=" ".join(options.words) if options.words else None,
        picture=options.picture,
        top_k=options.top,
    )
    for hit in hits:
        print(f"{hit.score:.3f}  {hit.path}")
