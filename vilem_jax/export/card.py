"""README.md of an export: what the model is, what it saw, what it scored."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vilem_jax.config.schema import Config
from vilem_jax.config.sources import FileSourceConfig, SourceConfig

# Of a run's validation metrics, those that a reader asks for first.
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


def model_card(
    title: str,
    use: str,
    config: Config,
    *,
    weights: str,
    step: int | None,
    commands: Sequence[str],
    metrics: Mapping[str, Any],
    made_by: str,
) -> str:
    """Markdown.

    Args:
      use: the section that says what the files are and how they are used.
      step: of the run's checkpoint; None where the model comes from no run of ours.
      commands: the command lines that trained it, [] where nobody kept them.
      metrics: of the run's evaluation at that step, or else of its last one,
        "validation/NAME/t2i/r1" and so on.
      made_by: the command line of the export.
    """
    parts = [
        _HEAD.format(title=title, shape=_shape(config)),
        use.strip(),
        _data(config),
        _training(config, weights, step, commands, made_by),
        _scores(metrics, step),
        _LICENCE,
    ]
    return "\n\n".join(parts) + "\n"


_HEAD = """---
library_name: vilem-jax
pipeline_tag: feature-extraction
tags:
- image-text-retrieval
- vilem
# license: say here under which licence you give the weights away
---

# {title}

A dual encoder for image-text retrieval, trained by *ViLEM: Visual-Language Error
Modeling for Image-Text Retrieval* (CVPR 2023).
{shape}"""

_LICENCE = """## Licence

Not chosen yet: that is for who gives the weights away. Data and the weights that
training started from have licences of their own."""


def _shape(config: Config) -> str:
    vision, text = config.model.vision, config.model.text
    return (
        f"Image tower: ViT, {vision.num_layers} layers of width {vision.width},\n"
        f"patches of {vision.patch_size}, images of {vision.image_size} pixels. Text "
        f"tower: BERT, {text.num_layers} layers of\nwidth {text.width}, "
        f"{text.vocab_size:,} words. Embeddings: {config.model.embedding_width} "
        "numbers, length 1."
    )


def _data(config: Config) -> str:
    lines = ["## Data", ""]
    for name, sources in (
        ("trained on", config.data.train),
        ("validated on", config.data.validation),
    ):
        lines += [f"- {name} {_source(source)}" for source in sources]
    if not (config.data.train or config.data.validation):
        lines.append("The settings name none: the weights were imported.")
    origins = {"Image": config.model.vision, "Text": config.model.text}
    lines += [
        f"- {tower} tower started from `{_without_folders(part.start_from)}`"
        for tower, part in origins.items()
        if part.start_from
    ]
    return "\n".join(lines)


def _source(source: SourceConfig) -> str:
    origin = "drawn by the program"
    if isinstance(source, FileSourceConfig):
        origin = f"{source.kind}: `{source.without_folders().path}`"
    split = f", split {source.split}" if source.split else ""
    return f"**{source.name}** ({origin}){split}"


def _training(config, weights, step, commands, made_by) -> str:
    lines = ["## Training", ""]
    if commands:
        lines += ["```", *map(harmless, commands), "```", ""]
    if step is not None:
        rate = config.optimizer.learning_rate
        branches = ", ".join(
            f"{branch} ({' and '.join(tasks)})"
            for branch, tasks in config.loss.trained.items()
        )
        lines += [
            f"{step:,} steps of {config.train.batch_size:,} pairs, learning rate "
            f"{rate:g}, seed {config.seed}.\nProofreading: {branches or 'none'}.\n"
            f"These are the {weights} weights.",
            "",
        ]
    return "\n".join([*lines, "Exported by", "", "```", harmless(made_by), "```"])


def _scores(metrics: Mapping[str, Any], step: int | None) -> str:
    lines = ["## Metrics", ""]
    names = dict.fromkeys(key.split("/")[1] for key in metrics if "/" in key)
    for name in names:
        found = [
            (label, metrics[f"validation/{name}/{key}"])
            for key, label in _METRICS.items()
            if f"validation/{name}/{key}" in metrics
        ]
        if not found:
            continue
        lines += [f"Validation on **{name}**, step {metrics.get('step')}:", ""]
        lines += ["| | |", "| --- | --- |"]
        lines += [f"| {label} | {_number(value)} |" for label, value in found]
        lines.append("")
    if len(lines) == 2:
        lines.append("None are known: measure with `vilem evaluate`.")
    elif step != metrics.get("step"):
        lines.append(f"The weights are those of step {step}.")
    return "\n".join(lines).rstrip()


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def harmless(command: str) -> str:
    """A command line with the folders left out of absolute paths."""
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
