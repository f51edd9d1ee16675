"""Line charts as inline SVG: no script, no font, no file beside."""

import math
from collections.abc import Sequence
from html import escape
from statistics import fmean

from vilem_jax.report.content import Chart, Curve

WIDTH, HEIGHT = 420, 230  # units of the drawing; it scales with the page
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 26  # margins for the numbers at the axes
MAX_POINTS = 160  # of a curve; more are averaged, as no screen shows them


def line_chart(chart: Chart) -> str:
    """A chart with a title and a legend above; empty if no value is finite."""
    thinned = [_thinned(curve) for curve in chart.curves]
    # A curve keeps its colour when another one has no points.
    curves = [(n, curve) for n, curve in enumerate(thinned) if curve.points]
    points = [point for _, curve in curves for point in curve.points]
    if not points:
        return ""
    x_ticks = _ticks(0, max(x for x, _ in points), 4)
    y_ticks = _ticks(min(0, *(y for _, y in points)), _highest(points), 4)

    def to_x(step: float) -> float:
        return LEFT + _share(step, x_ticks) * (WIDTH - LEFT - RIGHT)

    def to_y(value: float) -> float:
        return HEIGHT - BOTTOM - _share(value, y_ticks) * (HEIGHT - TOP - BOTTOM)

    unit = escape(chart.unit)
    parts, legend, summary = [], [], []
    for value in y_ticks:
        y = to_y(value)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" '
            f'y2="{y:.1f}"/><text x="{LEFT - 6}" y="{y + 4:.1f}" '
            f'text-anchor="end">{_number(value)}{unit}</text>'
        )
    for step in x_ticks:
        anchor = "end" if step == x_ticks[-1] else "middle"
        parts.append(
            f'<text x="{to_x(step):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">'
            f"{_number(step)}</text>"
        )
    for number, curve in curves:
        name = escape(curve.name)
        (_, first), (_, last) = curve.points[0], curve.points[-1]
        line = [f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in curve.points]
        end_x, end_y = line[-1].split(",")
        parts.append(
            f'<polyline class="curve c{number}" points="{" ".join(line)}"/>'
            f'<circle class="end c{number}" cx="{end_x}" cy="{end_y}" r="3"/>'
        )
        legend.append(
            f'<span class="key c{number}">{name} <b>{last:#.3g}{unit}</b></span>'
        )
        summary.append(f"{name} from {_number(first)} to {_number(last)}{unit}")
    title = escape(chart.title)
    return (
        f'<figure class="chart"><figcaption>{title}</figcaption>'
        f'<div class="keys">{"".join(legend)}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{title}: {", ".join(summary)}">{"".join(parts)}</svg></figure>\n'
    )


def _thinned(curve: Curve) -> Curve:
    """At most MAX_POINTS finite points: means of neighbours."""
    points = [p for p in curve.points if all(map(math.isfinite, p))]
    size = math.ceil(len(points) / MAX_POINTS) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    means = ((fmean(x for x, _ in g), fmean(y for _, y in g)) for g in groups)
    return Curve(curve.name, tuple(means))


def _highest(points: Sequence[tuple[float, float]]) -> float:
    """The top of the axis: a short peak at the start must not flatten the rest."""
    values = sorted(y for _, y in points)
    usual = values[int(0.98 * (len(values) - 1))]
    has_peak = len(values) >= 50 and 0 < 1.5 * usual < values[-1]
    return 1.5 * usual if has_peak else values[-1]


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that cover low..high, `about` steps or a few more apart."""
    if high <= low:
        high = low + 1
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * n for n in range(first, last + 1)]


def _share(value: float, ticks: Sequence[float]) -> float:
    """The position between the first and the last tick, 0..1; a peak is cut off."""
    return min(max((value - ticks[0]) / (ticks[-1] - ticks[0]), 0.0), 1.0)


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.3g}"
