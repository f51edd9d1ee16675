"""The verbs for weights in and out: weights export."""

import argparse
import shlex


def add_verbs(verbs) -> None:
    ways = verbs.add_parser(
        "weights", help="weights in and out", allow_abbrev=False
    ).add_subparsers(metavar="WAY", required=True)
    _add_export(ways)


# ---- vilem weights export ----

_FORMATS = ("vilem", "huggingface", "stablehlo", "onnx")  # of export/model.py


def _add_export(ways) -> None:
    export = ways.add_parser(
        "export", help="a trained model for elsewhere", allow_abbrev=False
    )
    export.add_argument(
        "model",
        metavar="RUN_OR_MODEL",
        help="work directory of a run, an exported model's folder, or its hub name",
    )
    export.add_argument("--out", required=True, metavar="FOLDER", help="to write")
    export.add_argument(
        "--format",
        required=True,
        choices=_FORMATS,
        help="vilem: for --model and vilem_jax.load; huggingface: ViTModel and "
        "BertModel; stablehlo, onnx: each tower as a program",
    )
    export.add_argument(
        "--weights",
        choices=("online", "momentum"),
        default="online",
        help="those that were trained, or their moving average",
    )
    export.add_argument(
        "--for-training",
        action="store_true",
        help="with --format=vilem: the moving average and the queues too",
    )
    export.set_defaults(verb=_export)


def _export(options: argparse.Namespace) -> None:
    from vilem_jax.export.model import export_model

    command = ["vilem", "weights", "export", options.model, f"--out={options.out}"]
    command += [f"--format={options.format}", f"--weights={options.weights}"]
    command += ["--for-training"] if options.for_training else []
    for sentence in export_model(
        options.model,
        options.out,
        options.format,
        weights=options.weights,
        for_training=options.for_training,
        made_by=shlex.join(command),
    ):
        print(sentence)
    print(f"{options.out}: the {options.weights} weights of {options.model}")
