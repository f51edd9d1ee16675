"""What a report shows, as plain data: nothing here computes or draws."""

from dataclasses import dataclass

import numpy as np

from vilem_jax.api import Word


@dataclass(frozen=True)
class Headline:
    """One number at the top of the page."""

    value: str  # "47 %"
    label: str
    note: str = ""  # what to compare it with


@dataclass(frozen=True)
class Curve:
    name: str
    points: tuple[tuple[float, float], ...]  # (step, value); values may be NaN


@dataclass(frozen=True)
class Chart:
    """Curves over the same axes."""

    title: str
    curves: tuple[Curve, ...]
    unit: str = ""  # of the values, as " %"


@dataclass(frozen=True)
class Query:
    """A caption and the images that fit it best."""

    caption: str
    images: tuple[np.ndarray, ...]  # uint8 [H, W, 3], best first
    right: int | None  # index of the caption's own image in `images`; None: not there
    rank: int  # of the caption's own image, from 1


@dataclass(frozen=True)
class Proofread:
    """An edited caption, judged beside its image."""

    image: np.ndarray  # uint8 [H, W, 3]
    # Each word of the edited caption, and the original word if the editor replaced it.
    words: tuple[tuple[Word, str | None], ...]


@dataclass(frozen=True)
class Bar:
    """A row of bars with one label."""

    label: str
    values: tuple[float, ...]  # 0..1, one a series
    note: str = ""


@dataclass(frozen=True)
class Bars:
    series: tuple[str, ...]
    rows: tuple[Bar, ...]
    chance: float | None = None  # 0..1, marked by a line


@dataclass(frozen=True)
class Report:
    """The content of one page."""

    title: str
    summary: str  # a sentence or two
    headlines: tuple[Headline, ...]
    queries: tuple[Query, ...]
    proofread: tuple[Proofread, ...]  # the first is at the top of the page
    detection: Bars
    retrieval: dict  # of `evaluate_retrieval`
    chance: dict  # of `chance_metrics`
    pairs: Bars
    charts: tuple[Chart, ...]
    facts: dict[str, str]  # how the model was trained
