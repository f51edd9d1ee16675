"""`vilem proofread`: which words of a caption are wrong."""

import argparse
import sys

from vilem_jax.cli.options import add_model, open_model


def add_verbs(verbs) -> None:
    proofread = verbs.add_parser(
        "proofread",
        run=_proofread,
        help="which words of a caption are wrong, and what is right",
    )
    add_model(proofread)
    proofread.add_argument("photo")
    proofread.add_argument("caption")
    proofread.add_argument("--branch", choices=("local", "global"), default="local")
    proofread.add_argument("--out", metavar="FILE.json", help="the same as JSON")


def _proofread(options: argparse.Namespace) -> None:
    import dataclasses

    from vilem_jax import files

    files.check_image_file(options.photo)  # before the model is loaded
    if options.out:
        files.check_writable(options.out)
    from vilem_jax.report.tables import words_table

    model = open_model(options)
    words = model.proofread(options.photo, options.caption, branch=options.branch)
    length = model.config.evaluation.text_length
    cut = max(int(model.tokenizer.lengths([options.caption])[0]) - length, 0)
    if options.out:
        judged = [dataclasses.asdict(word) for word in words]
        files.write_json(options.out, {"words": judged, "tokens_not_judged": cut})
    print(words_table(words))
    if cut:  # a caption that is too long loses its end
        print(
            f"vilem: the last {cut} tokens of the caption were not judged: this model "
            f"reads {length}",
            file=sys.stderr,
        )
