"""One self-contained HTML page from a `Report`: images inside, no script."""

import base64
import io
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from vilem_jax.api import Word
from vilem_jax.files import write_bytes
from vilem_jax.report.charts import bar_chart, line_chart
from vilem_jax.report.content import Proofread, Query, Report

NUM_HUES = 6  # of wrong words, see page.css
_CHECK = ' <i title="the word that stood there">&#10003;</i>'
MAX_SIDE = 320  # pixels of an embedded image; the page shows them smaller


def write_report(report: Report, path: str | Path) -> None:
    """Writes the page, whole or not at all."""
    write_bytes(path, render(report).encode())


def render(report: Report) -> str:
    """The page as text."""
    css = resources.files("vilem_jax.report").joinpath("page.css").read_text("utf-8")
    sections = [
        _queries(report.queries),
        _readings(report.proofread[1:]),
        _detection(report),
        _recalls(report),
        _pairs(report),
        _charts(report),
        _facts(report.facts),
    ]
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{css}</style></head>\n"
        "<body><main><header><div>"
        '<p class="eyebrow">ViLEM &middot; a report</p>'
        f"<h1>{escape(report.title)}</h1><p>{escape(report.summary)}</p></div>"
        f"{_reading(report.proofread[0]) if report.proofread else ''}</header>\n"
        + _headlines(report)
        + "\n".join(section for section in sections if section)
        + "</main></body></html>\n"
    )


def image_uri(pixels: np.ndarray) -> str:
    """uint8 [H, W, 3] as a data URI: PNG for drawings, JPEG where that is smaller."""
    image = Image.fromarray(pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    candidates = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 88})):
        content = io.BytesIO()
        image.save(content, kind, **options)
        candidates.append((len(content.getvalue()), kind, content.getvalue()))
    _, kind, content = min(candidates)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _section(heading: str, lead: str, body: str) -> str:
    return f"<section><h2>{escape(heading)}</h2><p>{escape(lead)}</p>{body}</section>"


def _headlines(report: Report) -> str:
    cards = "".join(
        f'<div class="card"><b>{_text(one.value)}</b><span>{_text(one.label)}</span>'
        f"<small>{_text(one.note)}</small></div>"
        for one in report.headlines
    )
    return f'<div class="headlines">{cards}</div>' if cards else ""


def _queries(queries: Sequence[Query]) -> str:
    if not queries:
        return ""
    return _section(
        "Words find images",
        "Captions drawn by chance, each asking the whole test split. Its five best "
        "images, from the left; the one it was written for is framed.",
        "".join(_query(query) for query in queries),
    )


def _query(query: Query) -> str:
    is_hit = query.right is not None
    place = "first" if query.rank == 1 else f"place {query.rank}"
    images = []
    for number, pixels in enumerate(query.images):
        is_right = number == query.right
        alt = f"Image {number + 1}{', the right one' if is_right else ''}"
        images.append(
            f'<div class="{"right" if is_right else ""}"><img alt="{alt}" '
            f'src="{image_uri(pixels)}"></div>'
        )
    return (
        f'<div class="card query"><p><q>{escape(query.words)}</q>'
        f'<small class="{"hit" if is_hit else ""}">right image: {place}</small></p>'
        f'<div class="row">{"".join(images)}</div></div>'
    )


def _readings(readings: Sequence[Proofread]) -> str:
    if not readings:
        return ""
    return _section(
        "Captions, proofread",
        "A language model put plausible wrong words into test captions, drawn by "
        "chance; the best of the draw is at the top of the page. Coloured words are "
        "those that ViLEM, looking at the image, calls wrong; the box of the same "
        "colour holds its three best corrections. A check marks the word that stood "
        "there, dots under a word an error it missed.",
        f'<div class="readings">{"".join(_reading(one) for one in readings)}</div>',
    )


def _reading(reading: Proofread) -> str:
    said, boxes, right = [], [], []
    for word, original in zip(reading.words, reading.originals, strict=True):
        shown = escape(word.word)
        right.append(shown if original is None else f"<b>{escape(original)}</b>")
        if word.is_wrong:
            hue = f"h{len(boxes) % NUM_HUES}"
            title = f"wrong with probability {word.p_wrong:.2f}"
            shown = f'<mark class="{hue}" title="{title}">{shown}</mark>'
            boxes.append(_box(word, original, hue))
        elif original is not None:
            shown = f'<u title="missed: it was {escape(original)}">{shown}</u>'
        said.append(shown)
    words = zip(reading.words, reading.originals, strict=True)
    caption = " ".join(original or word.word for word, original in words)
    return (
        f'<div class="card reading"><img alt="An image: {escape(caption)}" '
        f'src="{image_uri(reading.image)}"><div><p class="said">{" ".join(said)}'
        f'</p><div class="boxes">{"".join(boxes)}</div>'
        f'<p class="clean">Was: {" ".join(right)}</p></div></div>'
    )


def _box(word: Word, original: str | None, hue: str) -> str:
    corrections = "".join(
        f"<li><span>{escape(other)}{_CHECK if other == original else ''}</span>"
        f"<small>{_per_cent(p)}</small></li>"
        for other, p in word.corrections
    )
    alarm = "<p>a false alarm</p>" if original is None else ""
    return (
        f'<div class="box {hue}"><strong>{escape(word.word)}</strong>'
        f"<ol>{corrections}</ol>{alarm}</div>"
    )


def _text(text: str) -> str:
    """Escaped, and no number is parted from its per cent."""
    return escape(text).replace(" %", "&nbsp;%")


def _per_cent(p: float) -> str:
    return "&lt;&thinsp;1&nbsp;%" if p < 0.005 else f"{100 * p:.0f}&nbsp;%"


def _detection(report: Report) -> str:
    if report.detection is None:
        return ""
    return _section(
        "Seen, or guessed?",
        "The same captions judged beside their own image, and beside another one. "
        "What is left with another image is what language alone gives away; the "
        "difference is what the model sees.",
        f'<div class="card panel">{bar_chart(report.detection)}</div>',
    )


def _recalls(report: Report) -> str:
    metrics, chance = report.retrieval, report.chance
    if metrics is None:
        return ""
    rows = []
    for way, name in (("t2i", "Words to image"), ("i2t", "Image to words")):
        cells = []
        for top in ("r1", "r5", "r10"):
            compare = f"<small>chance {chance[way][top]:.1f}</small>" if chance else ""
            cells.append(f"<td>{metrics[way][top]:.1f}{compare}</td>")
        cells.append(f"<td>{metrics[way]['median_rank']:g}</td>")
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>')
    heads = "".join(
        f'<th scope="col">{head}</th>'
        for head in ("", "R@1 %", "R@5 %", "R@10 %", "median")
    )
    return _section(
        "Recall",
        f"{metrics['images']} images and {metrics['captions']} captions of the "
        "test split: how often the right one is the first, among the first five, among "
        "the first ten. Ties count against the model. The six sum to "
        f"{metrics['rsum']:.1f}.",
        f'<div class="card scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>",
    )


def _pairs(report: Report) -> str:
    if report.pairs is None:
        return ""
    return _section(
        "One word apart",
        "A true caption against one that differs in a word, or in two words that "
        "changed places. How often the true one scores higher:",
        f'<div class="card panel">{bar_chart(report.pairs)}</div>',
    )


def _charts(report: Report) -> str:
    charts = "".join(line_chart(chart) for chart in report.charts)
    if not charts:
        return ""
    lead = "Step by step: losses on the training split, metrics on validation."
    return _section("How it learned", lead, f'<div class="charts">{charts}</div>')


def _facts(facts: dict[str, str]) -> str:
    if not facts:
        return ""
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        for name, value in facts.items()
    )
    return _section(
        "How it was made",
        "Enough to make it again.",
        f'<div class="card panel"><dl>{items}</dl></div>',
    )
