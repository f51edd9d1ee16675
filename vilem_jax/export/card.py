"""README.md of an export: what the model is, its training data, its metrics."""

import os
import re
import shlex
from pathlib import Path

from vilem_jax.runs.metrics import METRICS_FILE, read_records
from vilem_jax.runs.trained_model import Stored, Weights, is_run
from vilem_jax.runs.workdir import read_commands, read_data
from vilem_jax.templates import render_template
from vilem_jax.typing import JsonObject

CARD = "README.md"
# Those of a run's validation metrics that a reader asks for first.
_METRICS = {
    "t2i/r1": "words to image, R@1",
    "t2i/r5": "words to image, R@5",
    "t2i/r10": "words to image, R@10",
    "i2t/r1": "image to words, R@1",
    "i2t/r5": "image to words, R@5",
    "i2t/r10": "image to words, R@10",
    "rsum": "sum of the six",
    "images": "images",
    "captions": "captions",
    "proofread/local/detect/f1": "wrong words found by their image, F1",
    "proofread/shuffled/local/detect/f1": "the same beside another image, F1",
    "proofread/local/correct/top1": "corrected at once",
}
_PATH = re.compile(r"(?<![\w.:/])[~/][^\s'\"=]*/")  # folders of the machine
_DATA = "\n## Data\n"  # from here on a card is about data, training and metrics


def model_card(
    name: str | os.PathLike[str],
    stored: Stored,
    kind: str,
    title: str,
    *,
    weights: Weights,
    made_by: str,
) -> str:
    """Markdown: of a run, from its records; of a model folder, from its own card.

    Args:
      name: what `stored` was read from.
      kind: the format of the export.
      made_by: the command line of the export.
    """
    own = ""  # a folder's card is of its online weights
    if weights == "online" and stored.step is None and (stored.folder / CARD).is_file():
        own = (stored.folder / CARD).read_text(encoding="utf-8", errors="replace")
    if own and kind == "vilem":
        return own
    metrics = _last_metrics(stored) if is_run(name) else {}
    card = render_template(
        "export/card.md.j2",
        title=title,
        kind=kind,
        config=stored.config,
        tokenizer=stored.tokenizer,
        weights=weights,
        step=stored.step,
        commands=read_commands(stored.folder) if is_run(name) else [],
        data=read_data(stored.folder) if is_run(name) else {},
        made_by=made_by,
        scores=_scores(metrics),
        scored_step=metrics.get("step"),
        harmless=harmless,
        without_folders=_without_folders,
    )
    if _DATA in own:  # the model's own card knows more of data and metrics
        return card.partition(_DATA)[0] + _DATA + own.partition(_DATA)[2]
    return card


def _last_metrics(stored: Stored) -> JsonObject:
    """The validation record of the checkpoint's step, or else the last one, or {}."""
    records = read_records(stored.folder / METRICS_FILE)
    measured = [r for r in records if any(k.startswith("validation/") for k in r)]
    own_step = [r for r in measured if r.get("step") == stored.step]
    return (own_step or measured or [{}])[-1]


def _scores(metrics: JsonObject) -> dict[str, JsonObject]:
    """{source: {label: value}} of keys such as "validation/SOURCE/t2i/r1"."""
    scores = {}
    for source in dict.fromkeys(key.split("/")[1] for key in metrics if "/" in key):
        keys = {f"validation/{source}/{key}": label for key, label in _METRICS.items()}
        rows = {label: metrics[key] for key, label in keys.items() if key in metrics}
        if rows:
            scores[source] = rows
    return scores


def harmless(command: str) -> str:
    """A command line without the folders of absolute paths."""
    try:
        arguments = shlex.split(command)
    except ValueError:  # an open quotation mark
        arguments = command.split()
    return shlex.join(map(_without_folders, arguments))


def _without_folders(argument: str) -> str:
    option, equals, value = "", "", argument
    if argument.startswith("-"):
        option, equals, value = argument.partition("=")
    if value.startswith(("/", "~")):
        return option + equals + Path(value).name
    return option + equals + _PATH.sub("", value)
