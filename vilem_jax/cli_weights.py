"""The verb for weights of others and for others: import."""

import argparse
import sys

from vilem_jax.cli_arguments import count


def add_verbs(verbs) -> None:
    weights = verbs.add_parser(
        "weights", help="weights from elsewhere, and for elsewhere", allow_abbrev=False
    ).add_subparsers(metavar="WHAT", required=True)
    _add_import(weights)


# ---- vilem weights import ----


def _add_import(weights) -> None:
    verb = weights.add_parser(
        "import",
        help="read weights of Hugging Face, timm, AugReg, ALBEF or BLIP",
        allow_abbrev=False,
    )
    verb.add_argument("source", help="a file, a folder, or a name on the hub")
    verb.add_argument("--out", required=True, metavar="FOLDER", help="folder to write")
    verb.add_argument(
        "--format", default="", help="which it must be; told by the tensors' names"
    )
    verb.add_argument(
        "--tokenizer",
        default="",
        help="folder or hub name with vocab.txt; the source's own by default, and "
        "bert-base-uncased for an ALBEF or a BLIP without one",
    )
    verb.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read .pth, .pt and .bin too, as tensors alone (needs PyTorch)",
    )
    verb.add_argument(
        "--image-size", type=count, default=0, help="resize positions to these pixels"
    )
    for tower in ("vision", "text"):
        verb.add_argument(
            f"--{tower}-heads",
            type=count,
            default=0,
            help=f"of the {tower} tower, where neither file nor width tells",
        )
    verb.set_defaults(verb=_import)


def _import(options: argparse.Namespace) -> None:
    from vilem_jax.weights.importing import import_weights

    done = import_weights(
        options.source,
        options.out,
        format=options.format,
        tokenizer=options.tokenizer,
        allow_pickle=options.allow_pickle,
        image_size=options.image_size,
        vision_heads=options.vision_heads,
        text_heads=options.text_heads,
    )
    print(f"{options.out}: {done.what} (from {done.format})")
    for note in done.notes:
        print(f"vilem: {note}", file=sys.stderr)
