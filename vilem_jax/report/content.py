"""What a report shows, as plain data: nothing here computes or draws."""

from dataclasses import dataclass, field

import numpy as np

from vilem_jax.api import Word


@dataclass(frozen=True)
class Headline:
    """One number on top of the page."""

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
    from_zero: bool = True
    note: str = ""


@dataclass(frozen=True)
class Query:
    """A caption and the images that fit it best."""

    words: str
    images: tuple[np.ndarray, ...]  # uint8 [H, W, 3], best first
    right: int | None  # which of them is the caption's own; None: none
    rank: int  # of the right one, from 1


@dataclass(frozen=True)
class Proofread:
    """A caption with errors, judged beside its image."""

    image: np.ndarray  # uint8 [H, W, 3]
    words: tuple[Word, ...]
    originals: tuple[str | None, ...]  # what stood in place of each wrong word


@dataclass(frozen=True)
class Bar:
    """A row of bars with one label: shares of 1, or per cent of 100."""

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
    """All of one page; sections without content are left out."""

    title: str
    summary: str  # a sentence or two
    headlines: tuple[Headline, ...] = ()
    queries: tuple[Query, ...] = ()
    proofread: tuple[Proofread, ...] = ()
    detection: Bars | None = None
    retrieval: dict | None = None  # of `evaluate_retrieval`
    chance: dict | None = None  # of `chance_metrics`
    pairs: Bars | None = None
    charts: tuple[Chart, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)  # how it was made
