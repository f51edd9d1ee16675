"""The verbs for weights in and out: weights import, export and verify."""

import argparse
import shlex
import sys

from vilem_jax.cli.options import MODEL_HELP, add_step, count
from vilem_jax.cli.verify import run_verify


def add_verbs(verbs) -> None:
    ways = verbs.add_parser("weights", help="weights in and out").add_subparsers(
        metavar="WAY", required=True
    )
    _add_import(ways)
    _add_export(ways)
    verify = ways.add_parser(
        "verify",
        run=run_verify,
        help="whether a run, a model or embeddings are what was written",
        description="Prints one line per problem; the exit code is 1 if there are any.",
    )
    verify.add_argument(
        "folder", help="a run, an exported model, what `vilem index` or `embed` wrote"
    )


# ---- vilem weights import ----


def _add_import(ways) -> None:
    add = ways.add_parser(
        "import",
        run=_import,
        help="read weights of Hugging Face, timm, AugReg, DINOv2, ALBEF or BLIP",
    ).add_argument
    add("source", help="a file, a folder, or a name on the hub")
    add("--out", required=True, metavar="FOLDER", help="folder to write")
    add("--format", default="", help="the format; by default from the tensors' names")
    add(
        "--tokenizer",
        default="",
        help="folder or hub name with vocab.txt; the source's own by default, and "
        "bert-base-uncased for an ALBEF or a BLIP without one",
    )
    add(
        "--allow-pickle",
        action="store_true",
        help="read .pth, .pt and .bin too, as tensors alone (needs PyTorch)",
    )
    add(
        "--image-size",
        type=count,
        default=0,
        help="resize the position embeddings for images of so many pixels",
    )
    for tower in ("vision", "text"):
        add(
            f"--{tower}-heads",
            type=count,
            default=0,
            help=f"of the {tower} tower, if neither file nor width determines them",
        )


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
    if done.note:
        print(f"vilem: {done.note}", file=sys.stderr)


# ---- vilem weights export ----

_FORMATS = ("vilem", "huggingface", "stablehlo", "onnx")  # of export/model.py


def _add_export(ways) -> None:
    export = ways.add_parser(
        "export", run=_export, help="a trained model for other programs"
    )
    add = export.add_argument
    add("model", metavar="RUN_OR_MODEL", help=MODEL_HELP)
    add("--out", required=True, metavar="FOLDER", help="to write")
    add(
        "--format",
        required=True,
        choices=_FORMATS,
        help="vilem: for --model and vilem_jax.load; huggingface: ViTModel and "
        "BertModel; stablehlo, onnx: each tower as a program",
    )
    add(
        "--weights",
        choices=("online", "momentum"),
        default="online",
        help="the trained weights, or their moving average",
    )
    add_step(export)
    add(
        "--for-training",
        action="store_true",
        help="with --format=vilem: the moving average and the queues too",
    )


def _export(options: argparse.Namespace) -> None:
    from vilem_jax.export.model import export_model

    command = ["vilem", "weights", "export", options.model, f"--out={options.out}"]
    command += [f"--format={options.format}", f"--weights={options.weights}"]
    command += [f"--step={options.step}"] if options.step != "last" else []
    command += ["--for-training"] if options.for_training else []
    for sentence in export_model(
        options.model,
        options.out,
        options.format,
        weights=options.weights,
        step=options.step,
        for_training=options.for_training,
        made_by=shlex.join(command),
    ):
        print(sentence)
    print(f"{options.out}: the {options.weights} weights of {options.model}")
