"""From a trained model and a data set to metrics, and from those to a `Report`."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vilem_jax.api import Model
from vilem_jax.data.images import decode
from vilem_jax.data.sources.source import Source
from vilem_jax.editing.stored_edits import StoredEdits
from vilem_jax.evaluation.encoding import BRANCHES
from vilem_jax.evaluation.pairs import CaptionPair, evaluate_pairs
from vilem_jax.evaluation.proofread import evaluate_proofreading
from vilem_jax.evaluation.retrieval import (
    EncodedSource,
    chance_metrics,
    encode_source,
)
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

NUM_QUERIES, NUM_SHOWN, NUM_READINGS = 6, 5, 9
RIGHT_AND_OTHER = ("its own image", "another image")

# Title, key of each curve in the run's records, unit. "*" is the validation source.
CHARTS = (
    ("Contrast: loss", {"image to text": "loss_i2t", "text to image": "loss_t2i"}, ""),
    (
        "Finding wrong words: loss",
        {"local": "loss_local_detect", "global": "loss_global_detect"},
        "",
    ),
    (
        "Correcting them: loss",
        {"local": "loss_local_correct", "global": "loss_global_correct"},
        "",
    ),
    (
        "Recall at 1, validation",
        {
            "words to image": "validation/*/t2i/r1",
            "image to words": "validation/*/i2t/r1",
        },
        " %",
    ),
    (
        "F1 of finding wrong words, validation",
        {
            "its own image": "validation/*/proofread/local/detect/f1",
            "another image": "validation/*/proofread/shuffled/local/detect/f1",
        },
        "",
    ),
    (
        "Corrected at once, validation",
        {
            "its own image": "validation/*/proofread/local/correct/top1",
            "another image": "validation/*/proofread/shuffled/local/correct/top1",
        },
        "",
    ),
)


@dataclass(frozen=True)
class Measured:
    """All metrics of a model on a data set, and what was encoded for them."""

    metrics: dict  # {"retrieval", "chance", "proofread", "pairs"}, JSON-ready
    encoded: EncodedSource


def measure(
    model: Model,
    source: Source,
    *,
    edits: StoredEdits | None = None,
    pairs: Sequence[CaptionPair] = (),
) -> Measured:
    """Retrieval on `source`; proofreading and pairs where they are given."""
    encoded = encode_source(model.encoder, source)
    metrics = {
        "retrieval": encoded.metrics(),
        "chance": chance_metrics(encoded.image_of_text),
    }
    if edits is not None:
        metrics["proofread"] = evaluate_proofreading(model.encoder, edits, source)
    if pairs:
        metrics["pairs"] = evaluate_pairs(model.encoder, pairs, source)
        del metrics["pairs"]["measured"]  # equal runs must tell equal metrics
    return Measured(metrics, encoded)


def make_report(
    model: Model,
    source: Source,
    measured: Measured,
    *,
    title: str,
    summary: str,
    run: str | Path,
    edits: StoredEdits | None = None,
    facts: dict[str, str] | None = None,
    seed: int = 0,
) -> Report:
    """The report of a run.

    Args:
      run: the work directory, whose records become the curves.
      edits: those that `measured` is about.
      seed: draws the examples.
    """
    metrics = measured.metrics
    readings = () if edits is None else _readings(model, source, edits, seed)
    return Report(
        title=title,
        summary=summary,
        headlines=_headlines(metrics),
        queries=_queries(source, measured.encoded, seed),
        proofread=_best_first(readings),
        detection=_detection(metrics.get("proofread")),
        retrieval=metrics["retrieval"],
        chance=metrics["chance"],
        pairs=_pairs(metrics.get("pairs")),
        charts=run_charts(read_records(Path(run) / METRICS_FILE)),
        facts=facts or {},
    )


def run_charts(records: Sequence[dict]) -> tuple[Chart, ...]:
    """Curves of a run's records; those without a finite value are left out."""
    keys = list(dict.fromkeys(key for record in records for key in record))
    charts = []
    for title, wanted, unit in CHARTS:
        curves = []
        for name, pattern in wanted.items():
            start, _, end = pattern.partition("*")
            # The first source, where there are several.
            key = next(
                (k for k in keys if k.startswith(start) and k.endswith(end)), None
            )
            points = tuple(
                (record["step"], float(record[key]))
                for record in records
                if key in record
            )
            if any(math.isfinite(value) for _, value in points):
                curves.append(Curve(name, points))
        if curves:
            charts.append(Chart(title, tuple(curves), unit))
    return tuple(charts)


def _headlines(metrics: dict) -> tuple[Headline, ...]:
    recall, chance = metrics["retrieval"], metrics["chance"]
    headlines = [
        Headline(
            f"{recall['t2i']['r1']:.0f} %",
            "of captions find their image first",
            f"among {recall['images']}; chance is {chance['t2i']['r1']:.1f} %",
        )
    ]
    if "proofread" in metrics:
        headlines += _proofread_headlines(metrics["proofread"])
    if "pairs" in metrics:
        accuracy = metrics["pairs"]["accuracy"]
        headlines.append(
            Headline(f"{accuracy:.0f} %", "of hard pairs told apart", "chance is 50 %")
        )
    return tuple(headlines)


def _proofread_headlines(metrics: dict) -> Iterator[Headline]:
    """Of the local branch, or of the one that was trained."""
    branch = next(branch for branch in BRANCHES if branch in metrics)
    own, other = metrics[branch], metrics["shuffled"][branch]
    if "detect" in own:
        yield Headline(
            f"{100 * own['detect']['f1']:.0f} %",
            "F1 of finding wrong words",
            f"{100 * other['detect']['f1']:.0f} % beside another image",
        )
    if "correct" in own:
        yield Headline(
            f"{100 * own['correct']['top1']:.0f} %",
            "of wrong words corrected at once",
            f"{100 * own['correct']['top3']:.0f} % within three guesses",
        )


def _queries(source: Source, encoded: EncodedSource, seed: int) -> tuple[Query, ...]:
    """Captions of different images, drawn by `seed`, with what they retrieve."""
    rng = np.random.default_rng(seed)
    count = min(NUM_QUERIES, len(source))
    queries = []
    for image in rng.permutation(len(source))[:count]:
        text = int(rng.choice(np.flatnonzero(encoded.image_of_text == image)))
        scores = encoded.image_embedding @ encoded.text_embedding[text]
        # As in the metrics, ties count against the model: the right one comes last.
        is_right = np.arange(len(scores)) == image
        order = np.lexsort((is_right, -scores))
        place = int(np.flatnonzero(order == image)[0])
        shown = order[:NUM_SHOWN].tolist()
        queries.append(
            Query(
                encoded.captions[text],
                tuple(decode(source.read_image(index)) for index in shown),
                place if place < NUM_SHOWN else None,
                place + 1,
            )
        )
    return tuple(queries)


def _readings(model, source, edits: StoredEdits, seed: int) -> tuple[Proofread, ...]:
    """Edited captions, drawn by `seed`, as the local branch judges them.

    Or the global one, where that alone learnt to find wrong words; or none.
    """
    trained = model.encoder.trained
    finders = [name for name in BRANCHES if "detect" in trained.get(name, ())]
    if not finders:
        return ()
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(edits.tokens))[:NUM_READINGS]
    images = [decode(source.read_image(int(edits.image[row]))) for row in rows]
    judged = model.proofread_tokens(images, edits.edited[rows], branch=finders[0])
    readings = []
    for row, image, words in zip(rows, images, judged, strict=True):
        clean, edited = edits.tokens[row], edits.edited[row]
        originals = []
        for _, start, stop in model.tokenizer.words(edited):
            before = model.tokenizer.words(clean[start:stop])
            is_same = (clean[start:stop] == edited[start:stop]).all()
            originals.append(
                None if is_same else "".join(word for word, _, _ in before)
            )
        readings.append(Proofread(image, tuple(words), tuple(originals)))
    return tuple(readings)


def _best_first(readings: tuple[Proofread, ...]) -> tuple[Proofread, ...]:
    """The top of the page gets the reading with the fewest faults; others stay."""

    def faults(reading: Proofread) -> tuple[int, int]:
        wrong = 0
        for word, original in zip(reading.words, reading.originals, strict=True):
            best = word.corrections[0][0] if word.corrections else None
            wrong += word.is_wrong != (original is not None)
            wrong += word.is_wrong and original is not None and best != original
        num_edits = sum(original is not None for original in reading.originals)
        return wrong, abs(num_edits - 2)  # the top has room for two corrections

    if not readings:
        return ()
    first = min(range(len(readings)), key=lambda number: faults(readings[number]))
    return (readings[first], *readings[:first], *readings[first + 1 :])


def _detection(metrics: dict | None) -> Bars | None:
    if metrics is None:
        return None
    rows = []
    for branch in (name for name in BRANCHES if name in metrics):
        parts = metrics[branch], metrics["shuffled"][branch]
        note = f"{branch} branch"
        for label, kind, name, sort in (
            ("Wrong words found", "detect", "f1", "F1, "),
            ("Corrected at once", "correct", "top1", ""),
            ("Corrected in three guesses", "correct", "top3", ""),
        ):
            if kind not in metrics[branch]:
                continue
            values = tuple(part[kind][name] for part in parts)
            rows.append(Bar(label, values, sort + note))
    return Bars(RIGHT_AND_OTHER, tuple(rows))


def _pairs(metrics: dict | None) -> Bars | None:
    if metrics is None:
        return None
    rows = tuple(
        Bar(kind, (accuracy / 100,), f"{metrics['pairs_by_type'][kind]} pairs")
        for kind, accuracy in metrics["by_type"].items()
    )
    return Bars(("the true caption scores higher",), rows, chance=0.5)
