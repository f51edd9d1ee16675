"""The page: one valid file without external resources; wrong words in their colours."""

import dataclasses
import re
from html.parser import HTMLParser

import jinja2
import numpy as np
import pytest

from vilem_jax.api import Word
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
from vilem_jax.report.html import image_uri, render, write_report

VOID = {"meta", "img", "line", "polyline", "circle"}


def image(seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)


def proofread(words, originals):
    return Proofread(image(), tuple(zip(words, originals, strict=True)))


@pytest.fixture
def report():
    corrections = (("dog", 0.9), ("cat", 0.08), ("cow", 0.001))
    words = (
        Word("a", 0.01, ()),
        Word("<b>", 0.99, corrections),
        Word("red", 0.8, corrections),
        Word("on", 0.2, corrections),
    )
    recalls = {"r1": 12.5, "r5": 50.0, "r10": 75.0}
    return Report(
        title="Tom & Jerry",
        summary="A summary.",
        headlines=(Headline("12 %", "of captions", "chance is 0.2 %"),),
        queries=(
            Query("a <dog>", tuple(image(n) for n in range(5)), 2, 3),
            Query("a cat", tuple(image(n) for n in range(5)), None, 17),
        ),
        proofread=(
            proofread(words, (None, "dog", None, "under")),
            proofread(words, (None, "cat", None, None)),
        ),
        detection=Bars(("own", "another"), (Bar("found", (0.5, 0.25), "F1"),)),
        retrieval={
            "i2t": recalls | {"median_rank": 3.5},
            "t2i": recalls | {"median_rank": 4.0},
            "rsum": 275.0,
            "images": 8,
            "captions": 16,
        },
        chance={"i2t": recalls, "t2i": recalls, "rsum": 275.0},
        pairs=Bars(("right",), (Bar("swap", (0.7,)),), chance=0.5),
        charts=(Chart("Loss", (Curve("local", ((1, 2.0), (2, 1.0))),)),),
        facts={"Command": "vilem demo"},
    )


class Checker(HTMLParser):
    """Every tag is closed in order; collects tags with their attributes."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_the_page_is_one_file_with_everything_inside(report):
    page = render(report)
    checker = Checker(page)
    assert "<script" not in page and "<link" not in page
    assert not re.search(r"(https?:)?//|url\(|@import", page.split("</style>")[0])
    images = checker.all("img")
    assert len(images) == 12
    for image in images:
        assert image["alt"].strip()
        assert image["src"].startswith("data:image/")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in (
        checker.all("meta")
    )
    assert "prefers-color-scheme: dark" in page and "max-width: 640px" in page
    svgs = checker.all("svg")
    assert len(svgs) == 1 and "local from 2 to 1" in svgs[0]["aria-label"]


def test_text_is_escaped_once(report):
    page = render(report)
    assert "Tom &amp; Jerry" in page and "a &lt;dog&gt;" in page
    assert "&lt;b&gt;" in page
    assert page.count("<b>") == page.count("</b>")


def test_no_value_can_add_a_tag(report):
    """Quotation marks and `<script>` in every text of a report stay text."""
    script = "\">'<script>alert(1)</script>"
    words = ((Word(script, 0.9, ((script, 0.5),)), script), (Word("a", 0, ()), script))
    everywhere = dataclasses.replace(
        report,
        title=script,
        summary=script,
        headlines=(Headline(script, script, script),),
        queries=(Query(script, (image(),), None, 1),),
        proofread=(Proofread(image(), words),) * 2,
        detection=Bars((script,), (Bar(script, (0.5,), script),)),
        charts=(Chart(script, (Curve(script, ((1, 1.0), (2, 2.0))),), script),),
        facts={script: script},
    )
    page = render(everywhere)
    Checker(page)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("missing", ["caption", "images", "rank"])
def test_a_missing_value_is_an_error(report, missing):
    query = {"caption": "a", "images": (), "rank": 1, "right": None}
    del query[missing]
    with pytest.raises(jinja2.UndefinedError, match=missing):
        render(dataclasses.replace(report, queries=(query,)))


def test_each_wrong_word_has_its_colour_and_its_box(report):
    page = render(report)
    first = page.split('<div class="headlines">')[0]
    marks = re.findall(r'<mark class="(h\d)"[^>]*>([^<]*)</mark>', first)
    assert marks == [("h0", "&lt;b&gt;"), ("h1", "red")]
    boxes = re.findall(r'<div class="box (h\d)"><strong>([^<]*)</strong>', first)
    assert boxes == marks
    assert first.count("<li>") == 6
    right = re.findall(r"<span>(\w+) <i ", first)
    assert right == ["dog"]  # the original word, not that of the false alarm
    assert first.count("a false alarm") == 1
    assert '<u title="missed: it was under">on</u>' in first
    assert "&lt;&thinsp;1" in first


def test_the_right_image_is_framed(report):
    page = render(report)
    assert page.count('<div class="right">') == 1
    assert "Image 3, the right one" in page
    assert re.findall(r"right image: (.*?)<", page) == ["rank 3", "rank 17"]


def test_the_page_has_a_section_for_each_kind_of_result(report):
    page = render(report)
    assert page.count("<section>") == page.count("<h2>") == 7


def test_bars_are_as_long_as_their_values(report):
    bars = Bars(
        ("own", "other <b>"),
        (Bar("found", (0.5, 1.2), "F1"), Bar("corrected", (0, 0.333))),
        chance=0.25,
    )
    page = render(dataclasses.replace(report, pairs=bars))
    page = page.split("One word apart")[1]
    widths = re.findall(r"width:([\d.]+)%", page)
    assert widths == ["50.0", "100.0", "0.0", "33.3"]
    assert page.count("left:25.0%") == 4 and "chance, 25 %" in page
    assert "other &lt;b&gt;" in page and "<b>33 %</b>" in page


def test_images_are_small_and_of_the_right_kind():
    flat = np.zeros((900, 600, 3), np.uint8)
    assert image_uri(flat).startswith("data:image/png")
    assert len(image_uri(flat)) < 4000
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    assert image_uri(noise).startswith("data:image/jpeg")


def test_the_file_is_written(report, tmp_path):
    write_report(report, tmp_path / "new" / "report.html")
    text = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert text == render(report)
