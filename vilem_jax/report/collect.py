"""From a trained model and a data set to metrics, and from those to a `Report`."""

import math
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from vilem_jax.api import Model
from vilem_jax.data.images import decode
from vilem_jax.data.sources.source import Source
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.editing.stored_edits import StoredEdits
from vilem_jax.evaluation.encoding import BRANCHES
from vilem_jax.evaluation.pairs import Pair, evaluate_pairs
from vilem_jax.evaluation.proofread import evaluate_proofreading
from vilem_jax.evaluation.recall import chance_metrics
from vilem_jax.evaluation.retrieval import EncodedSource, encode_source
from vilem_jax.report.content import (
    Bar,
    Bars,
    Chart,
    Curve,
    Headline,
    Proofread,
    Query,
    Report,
)
from vilem_jax.runs.metrics import METRICS_FILE, read_records

NUM_QUERIES, NUM_SHOWN, NUM_PROOFREAD = 6, 5, 9
OWN_AND_OTHER = ("its own image", "another image")

_CONTRAST = {"image to text": "i2t", "text to image": "t2i"}
_RECALL = {"words to image": "t2i", "image to words": "i2t"}
_BRANCH = {branch: branch for branch in BRANCHES}
_JUDGED = "validation/*/proofread/{}/"
_IMAGE = dict(zip(OWN_AND_OTHER, ("local", "shuffled/local"), strict=True))
# Title; key of a curve in the run's records, * being the first validation source;
# what stands for {} in the key of each curve; unit.
CHARTS = (
    ("Contrast: loss", "loss_{}", _CONTRAST, ""),
    ("Finding wrong words: loss", "loss_{}_detect", _BRANCH, ""),
    ("Correcting them: loss", "loss_{}_correct", _BRANCH, ""),
    ("Recall at 1, validation", "validation/*/{}/r1", _RECALL, " %"),
    ("F1 of finding wrong words, validation", _JUDGED + "detect/f1", _IMAGE, ""),
    ("Corrected at once, validation", _JUDGED + "correct/top1", _IMAGE, ""),
)


def evaluate(
    model: Model, source: Source, *, edits: StoredEdits, pairs: Sequence[Pair]
) -> tuple[dict, EncodedSource]:
    """Retrieval on `source`, proofreading of `edits`, and `pairs`.

    Returns:
      metrics, JSON-ready: "retrieval", "chance", "proofread", "pairs"; and what was
      encoded for them.
    """
    encoded = encode_source(model.encoder, source)
    metrics = {
        "retrieval": encoded.metrics(),
        "chance": chance_metrics(encoded.image_of_text),
        "proofread": evaluate_proofreading(model.encoder, edits, source),
        "pairs": evaluate_pairs(model.encoder, pairs, source),
    }
    del metrics["pairs"]["measured"]  # its times differ between equal runs
    return metrics, encoded


def make_report(
    model: Model,
    source: Source,
    metrics: dict,
    encoded: EncodedSource,
    *,
    title: str,
    summary: str,
    run: str | Path,
    edits: StoredEdits,
    facts: dict[str, str],
    seed: int,
) -> Report:
    """The report of a run that trained all losses of ViLEM.

    Args:
      metrics, encoded: of `evaluate`, with the same `edits`.
      run: the work directory, whose records become the curves.
      seed: of the choice of examples.
    """
    return Report(
        title=title,
        summary=summary,
        headlines=tuple(_headlines(metrics)),
        queries=_queries(source, encoded, seed),
        proofread=_proofread(model, source, edits, seed),
        detection=_detection(metrics["proofread"]),
        retrieval=metrics["retrieval"],
        chance=metrics["chance"],
        pairs=_pairs(metrics["pairs"]),
        charts=run_charts(read_records(Path(run) / METRICS_FILE)),
        facts=facts,
    )


def run_charts(records: Sequence[dict]) -> tuple[Chart, ...]:
    """Curves of a run's records; those without a finite value are left out."""
    keys = list(dict.fromkeys(key for record in records for key in record))
    charts = []
    for title, pattern, names, unit in CHARTS:
        curves = []
        for label, name in names.items():
            wanted = pattern.format(name)
            key = next((k for k in keys if fnmatchcase(k, wanted)), None)
            points = tuple((r["step"], float(r[key])) for r in records if key in r)
            if any(math.isfinite(value) for _, value in points):
                curves.append(Curve(label, points))
        if curves:
            charts.append(Chart(title, tuple(curves), unit))
    return tuple(charts)


def edited_words(
    tokenizer: Tokenizer, original: np.ndarray, edited: np.ndarray
) -> list[tuple[str, str | None]]:
    """Each word of a row of `edited` tokens [L], and the word that it replaced.

    That is None if its tokens are those of `original` [L]. Edits keep word boundaries.
    """
    before, after = original.tolist(), edited.tolist()
    words = []
    for word, start, stop in tokenizer.words(after):
        is_same = before[start:stop] == after[start:stop]
        parts = tokenizer.words(before[start:stop])
        words.append((word, None if is_same else "".join(part for part, *_ in parts)))
    return words


def _headlines(metrics: dict) -> Iterator[Headline]:
    recall, chance = metrics["retrieval"], metrics["chance"]
    own = metrics["proofread"]["local"]
    other = metrics["proofread"]["shuffled"]["local"]
    yield Headline(
        f"{recall['t2i']['r1']:.0f} %",
        "of captions find their image first",
        f"among {recall['images']}; chance is {chance['t2i']['r1']:.1f} %",
    )
    yield Headline(
        f"{100 * own['detect']['f1']:.0f} %",
        "F1 of finding wrong words",
        f"{100 * other['detect']['f1']:.0f} % beside another image",
    )
    yield Headline(
        f"{100 * own['correct']['top1']:.0f} %",
        "of wrong words corrected at once",
        f"{100 * own['correct']['top3']:.0f} % within three guesses",
    )
    accuracy = f"{metrics['pairs']['accuracy']:.0f} %"
    yield Headline(accuracy, "of hard pairs distinguished", "chance is 50 %")


def _queries(source: Source, encoded: EncodedSource, seed: int) -> tuple[Query, ...]:
    """Random captions of different images, with the images that they retrieve."""
    rng = np.random.default_rng(seed)
    queries = []
    for image in rng.permutation(len(source))[:NUM_QUERIES]:
        text = int(rng.choice(np.flatnonzero(encoded.image_of_text == image)))
        scores = encoded.image_embedding @ encoded.text_embedding[text]
        # As in the metrics, ties count against the model: the right one comes last.
        is_right = np.arange(len(scores)) == image
        order = np.lexsort((is_right, -scores))
        index = int(np.flatnonzero(order == image)[0])
        images = tuple(decode(source.read_image(int(i))) for i in order[:NUM_SHOWN])
        right = index if index < NUM_SHOWN else None
        queries.append(Query(encoded.captions[text], images, right, rank=index + 1))
    return tuple(queries)


def _proofread(
    model: Model, source: Source, edits: StoredEdits, seed: int
) -> tuple[Proofread, ...]:
    """Random edited captions as the local branch judges them, the best result first."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(edits.tokens))[:NUM_PROOFREAD]
    images = [decode(source.read_image(int(edits.image[row]))) for row in rows]
    judged = model.proofread_tokens(images, edits.edited[rows])
    examples = []
    for row, image, words in zip(rows, images, judged, strict=True):
        edited = edited_words(model.tokenizer, edits.tokens[row], edits.edited[row])
        originals = (original for _, original in edited)
        examples.append(Proofread(image, tuple(zip(words, originals, strict=True))))
    best = min(examples, key=_faults)
    # The sort is stable: the others stay in their random order.
    return tuple(sorted(examples, key=lambda example: example is not best))


def _faults(example: Proofread) -> tuple[int, int]:
    wrong = 0
    for word, original in example.words:
        best = word.corrections[0][0] if word.corrections else None
        wrong += word.is_wrong != (original is not None)
        wrong += word.is_wrong and original is not None and best != original
    num_edits = sum(original is not None for _, original in example.words)
    return wrong, abs(num_edits - 2)  # the top has room for two corrections


def _detection(metrics: dict) -> Bars:
    rows = []
    for branch in BRANCHES:
        own, other = metrics[branch], metrics["shuffled"][branch]
        for label, task, name, note in (
            ("Wrong words found", "detect", "f1", "F1, "),
            ("Corrected at once", "correct", "top1", ""),
            ("Corrected in three guesses", "correct", "top3", ""),
        ):
            values = (own[task][name], other[task][name])
            rows.append(Bar(label, values, f"{note}{branch} branch"))
    return Bars(OWN_AND_OTHER, tuple(rows))


def _pairs(metrics: dict) -> Bars:
    rows = tuple(
        Bar(kind, (accuracy / 100,), f"{metrics['pairs_by_type'][kind]} pairs")
        for kind, accuracy in metrics["by_type"].items()
    )
    return Bars(("the true caption scores higher",), rows, chance=0.5)
