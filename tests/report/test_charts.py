"""Curves stay inside their axes and show their values."""

import math
import re

import pytest

from vilem_jax.report.charts import (
    HEIGHT,
    LEFT,
    MAX_POINTS,
    WIDTH,
    _ticks,
    line_chart,
)
from vilem_jax.report.content import Chart, Curve


def points_of(svg):
    return [
        [tuple(map(float, pair.split(","))) for pair in line.split()]
        for line in re.findall(r'points="([^"]*)"', svg)
    ]


def test_a_curve_falls_from_left_to_right():
    curve = Curve("loss", ((0, 10.0), (50, 5.0), (100, 0.0)))
    (points,) = points_of(line_chart(Chart("Loss", (curve,))))
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    ys = [y for _, y in points]
    assert ys == sorted(ys) and ys[1] == pytest.approx((ys[0] + ys[2]) / 2, abs=0.2)
    assert points[0][0] == LEFT
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)


def test_many_points_are_averaged_and_nan_is_left_out():
    values = [(step, math.nan if step % 7 == 0 else 1.0) for step in range(5000)]
    (points,) = points_of(line_chart(Chart("Loss", (Curve("loss", tuple(values)),))))
    assert len(points) <= MAX_POINTS
    assert len({y for _, y in points}) == 1


def test_a_chart_without_finite_values_is_empty():
    nan = Curve("loss", ((1, math.nan), (2, math.inf)))
    assert line_chart(Chart("Loss", (nan,))) == ""
    assert line_chart(Chart("Loss", ())) == ""
    some = Curve("other", ((1, 1.0),))
    assert len(points_of(line_chart(Chart("Loss", (nan, some))))) == 1


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 7.3), (0.2, 0.21), (-3, 4), (0, 123456), (5, 5)]
)
def test_ticks_are_few_round_and_cover(low, high):
    ticks = _ticks(low, high, 4)
    assert 2 <= len(ticks) <= 7
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9
