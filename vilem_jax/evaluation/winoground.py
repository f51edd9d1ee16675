"""Winoground: two images, two captions of the same words; which belongs to which?

Scores are s(caption, image). All comparisons are strict, so ties count against the
model (Thrush et al., CVPR 2022, Eqs. 1 to 3):

  text   each image prefers its own caption
  image  each caption prefers its own image
  group  both
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vilem_jax.data.sources.annotations import id_of
from vilem_jax.errors import UserError
from vilem_jax.evaluation.benchmark import Benchmark, DataSet, Opened, Table, option
from vilem_jax.evaluation.encoding import Encoder
from vilem_jax.evaluation.named_images import NamedImages
from vilem_jax.evaluation.timing import measure, measured
from vilem_jax.parsing import is_blank, read_json, records_of, whole_number

NUM_EXAMPLES = 400  # of the whole benchmark
KINDS = ("text", "image", "group")
EXAMPLES = "examples.jsonl"


@dataclass(frozen=True)
class WinogroundExample:
    """Two images and two captions; number i belongs to number i."""

    name: str
    images: tuple[str, str]  # file names
    captions: tuple[str, str]
    collapsed_tag: str  # "Object", "Relation" or "Both": what is swapped
    num_predicates: int  # 1 or 2


def winoground_metrics(
    scores: np.ndarray, tags: Sequence[str], predicates: Sequence[int]
) -> dict:
    """Text, image and group scores, in per cent.

    Args:
      scores: [N, 2, 2], of caption i (first axis) with image j (second).
      tags: [N], the collapsed tag of each example.
      predicates: [N], the number of main predicates of each.

    Returns:
      {"text", "image", "group", "examples", "by_tag": {tag: {the same four}},
      "by_predicates": {"1": {the same four}, ...}}.

    Raises:
      UserError: no example, or a score that is not finite.
    """
    scores = np.asarray(scores)
    if scores.ndim != 3 or scores.shape[1:] != (2, 2):
        raise ValueError(f"scores must be [N, 2, 2], not {scores.shape}")
    if not len(scores) == len(tags) == len(predicates):
        raise ValueError(f"{len(scores)} scores, {len(tags)} tags, {len(predicates)}")
    if len(scores) == 0:
        raise UserError("there is no example of Winoground to evaluate")
    if not np.isfinite(scores).all():
        raise UserError("a score is not finite: has the run diverged?")
    own = scores[:, 0, 0], scores[:, 1, 1]
    text = (own[0] > scores[:, 1, 0]) & (own[1] > scores[:, 0, 1])
    image = (own[0] > scores[:, 0, 1]) & (own[1] > scores[:, 1, 0])
    right = {"text": text, "image": image, "group": text & image}

    def shares(here: np.ndarray) -> dict:
        scores = {kind: 100.0 * float(right[kind][here].mean()) for kind in KINDS}
        return scores | {"examples": int(np.sum(here))}

    def parts(labels: Sequence) -> dict:
        groups = np.asarray(labels)
        return {str(label): shares(groups == label) for label in np.unique(groups)}

    return shares(np.ones(len(scores), bool)) | {
        "by_tag": parts(tags),
        "by_predicates": parts(predicates),
    }


def evaluate_winoground(encoder: Encoder, folder: str | Path) -> dict:
    """`winoground_metrics` of a model, the protocol, and the times.

    Args:
      folder: of the data set, see `read_winoground`.

    Raises:
      UserError: as `read_winoground`; images that are missing (counted) or corrupt.
    """
    examples = read_winoground(folder)
    names = list(dict.fromkeys(name for one in examples for name in one.images))
    root = _examples_file(folder).parent
    packed = root / "images.zip"
    path = packed if packed.is_file() and not (root / "images").is_dir() else root
    images = NamedImages(path, names, "Winoground", ": unpack images.zip there")
    encoder = encoder.timed()
    image_embedding = encoder.encode_images(images, names)
    captions = [caption for one in examples for caption in one.captions]
    texts = encoder.encode_captions(captions).reshape(len(examples), 2, -1)
    row_of = {name: row for row, name in enumerate(names)}
    rows = np.array([[row_of[name] for name in one.images] for one in examples])
    with measure(encoder.clock, "similarity"):
        scores = np.einsum("nce,nie->nci", texts, image_embedding[rows], dtype=float)
    tags = [one.collapsed_tag for one in examples]
    predicates = [one.num_predicates for one in examples]
    with measure(encoder.clock, "ranking"):
        metrics = winoground_metrics(scores.astype(np.float32), tags, predicates)
    note = f"{len(examples)} examples, not the benchmark's {NUM_EXAMPLES}"
    protocol = {
        "data": str(folder),
        "split": "test",
        "notes": [] if len(examples) == NUM_EXAMPLES else [note],
        "images": len(names),
        "captions": len(captions),
        "text_length": encoder.text_length,
        "ties": "count against the model",
    }
    return metrics | {"protocol": protocol, "measured": measured(encoder)}


def read_winoground(folder: str | Path) -> list[WinogroundExample]:
    """The examples in `folder`/examples.jsonl, or in data/ below it.

    A line has id, image_0, image_1, caption_0, caption_1, num_main_preds and
    collapsed_tag, as the data set is given out.

    Raises:
      UserError: no such file, or an empty one; a line that is no such record; an id
        that is there twice.
    """
    file = _examples_file(folder)
    records = records_of(read_json(file, "file of examples"))
    if not records:
        raise UserError(f"{file} holds no examples, one JSON object a line")
    examples, seen = [], {}
    for number, record in enumerate(records):
        where = f"{file}, {records.where(number)}"
        example = _read_record(record, where)
        if example.name in seen:
            raise UserError(
                f"{where}: id {example.name} is that of {seen[example.name]} already"
            )
        seen[example.name] = records.where(number)
        examples.append(example)
    return examples


def _examples_file(folder: str | Path) -> Path:
    folder = Path(folder).expanduser()
    for path in (folder / EXAMPLES, folder / "data" / EXAMPLES):
        if path.is_file():
            return path
    raise UserError(
        f"{folder} holds no {EXAMPLES}: give the folder of Winoground as it is given "
        f"out, with {EXAMPLES} and images/"
    )


def _read_record(record: Any, where: str) -> WinogroundExample:
    def text(field: str) -> str:
        value = record.get(field) if isinstance(record, dict) else None
        if not isinstance(value, str) or is_blank(value):
            raise UserError(f"{where} has no text in {field!r}")
        return value

    def image(field: str) -> str:
        name = text(field)
        return f"images/{name}" if Path(name).suffix else f"images/{name}.png"

    captions = (text("caption_0"), text("caption_1"))
    images = (image("image_0"), image("image_1"))
    tag, count = text("collapsed_tag"), whole_number(record.get("num_main_preds"))
    if count is None:
        raise UserError(f"{where} has no whole number in 'num_main_preds'")
    name = id_of(record.get("id")) or where
    return WinogroundExample(name, images, captions, tag, num_predicates=count)


def winoground_tables(metrics: dict) -> list[Table]:
    """Text, image and group scores: of all, by tag, by number of predicates."""
    parts = {"all": metrics, **metrics["by_tag"]}
    for count, part in metrics["by_predicates"].items():
        parts[f"{count} predicate{'s' if count != '1' else ''}"] = part
    rows = [
        [name, *(part[kind] for kind in KINDS), str(part["examples"])]
        for name, part in parts.items()
    ]
    return [Table(("winoground, %", *KINDS, "examples"), rows)]


def _open(options: Namespace, _) -> Opened:
    read_winoground(options.data)  # reports a corrupt file before the model is loaded
    return Opened((options.data,))


BENCHMARK = Benchmark(
    options=(
        "model",
        option(
            "--data", required=True, metavar="FOLDER", help="examples.jsonl and images/"
        ),
        *("text_length", "out"),
    ),
    open=_open,
    evaluate=evaluate_winoground,
    tabulate=winoground_tables,
    data_sets=(
        DataSet(
            "winoground",
            "Winoground",
            (f"winoground/{EXAMPLES}", f"winoground/data/{EXAMPLES}"),
            ("winoground",),
        ),
    ),
    open_data_set=lambda data_set, files, *_: Opened((files[0].parent,)),
)
