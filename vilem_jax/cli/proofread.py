"""`vilem proofread`: which words of a caption are wrong."""

import argparse
import sys

from vilem_jax.cli.options import add_model, open_model
from vilem_jax.progress import doing


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
    proofread.add_argument(
        "--all-corrections",
        action="store_true",
        help="corrections of all words, not only of those that it calls wrong",
    )
    proofread.add_argument("--out", metavar="FILE.json", help="the same as JSON")


def _proofread(options: argparse.Namespace) -> None:
    import dataclasses

    from vilem_jax import files

    files.check_image_file(options.photo)  # before the model is loaded
    if options.out:
        files.check_writable(options.out)
    with doing("loading JAX"):
        from vilem_jax.api import corrected_caption
        from vilem_jax.report.tables import words_table

    model = open_model(options)
    with doing("proofreading"):
        words = model.proofread(
            options.photo,
            options.caption,
            branch=options.branch,
            all_corrections=options.all_corrections,
        )
    corrected = corrected_caption(words)
    length = model.config.evaluation.text_length
    cut = max(int(model.tokenizer.lengths([options.caption])[0]) - length, 0)
    if options.out:
        judged = [dataclasses.asdict(word) for word in words]
        found = {"words": judged, "tokens_not_judged": cut, "corrected": corrected}
        files.write_json(options.out, found)
    print(words_table(words))
    is_wrong = any(word.is_wrong for word in words)
    print(f"\ncorrected: {corrected}" if is_wrong else "\nno word is called wrong")
    if cut:  # a caption that is too long loses its end
        print(
            f"vilem: the last {cut} tokens of the caption were not judged: this model "
            f"reads {length}",
            file=sys.stderr,
        )
