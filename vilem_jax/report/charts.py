"""Line charts as inline SVG, and bars as HTML: no script, no font, no file beside."""

import math
from collections.abc import Sequence
from html import escape

from vilem_jax.report.content import Bars, Chart, Curve

WIDTH, HEIGHT = 420, 230  # units of the drawing; it scales with the page
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 26  # margins for the numbers at the axes
MAX_POINTS = 160  # of a curve; more are averaged, as no screen shows them


def line_chart(chart: Chart) -> str:
    """A figure with a legend above and a caption below."""
    curves = [_thinned(curve) for curve in chart.curves]
    points = [point for curve in curves for point in curve.points]
    if not points:
        return ""
    x_ticks = _ticks(0, max(x for x, _ in points), 4)
    lowest = min(y for _, y in points)
    y_ticks = _ticks(min(0, lowest) if chart.from_zero else lowest, _highest(points), 4)

    def place(x: float, y: float) -> tuple[float, float]:
        across = _share(x, x_ticks[0], x_ticks[-1])
        up = _share(y, y_ticks[0], y_ticks[-1])
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    parts = []
    for y in y_ticks:
        _, at = place(x_ticks[0], y)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" '
            f'y2="{at:.1f}"/><text x="{LEFT - 6}" y="{at + 4:.1f}" '
            f'text-anchor="end">{_number(y)}{escape(chart.unit)}</text>'
        )
    for order, x in enumerate(x_ticks):
        at, _ = place(x, y_ticks[0])
        anchor = "end" if order == len(x_ticks) - 1 else "middle"
        parts.append(
            f'<text x="{at:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">'
            f"{_number(x)}</text>"
        )
    for number, curve in enumerate(curves):
        if not curve.points:
            continue
        line = " ".join("{:.1f},{:.1f}".format(*place(*p)) for p in curve.points)
        end = place(*curve.points[-1])
        parts.append(
            f'<polyline class="curve c{number}" points="{line}"/>'
            f'<circle class="end c{number}" cx="{end[0]:.1f}" cy="{end[1]:.1f}" r="3"/>'
        )
    legend = "".join(
        f'<span class="key c{number}">{escape(curve.name)}'
        f" <b>{curve.points[-1][1]:#.3g}{escape(chart.unit)}</b></span>"
        for number, curve in enumerate(curves)
        if curve.points
    )
    note = f"<p class=note>{escape(chart.note)}</p>" if chart.note else ""
    return (
        f'<figure class="chart"><figcaption>{escape(chart.title)}</figcaption>'
        f'<div class="keys">{legend}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(_in_words(chart, curves))}">{"".join(parts)}</svg>'
        f"{note}</figure>"
    )


def bar_chart(bars: Bars) -> str:
    """Rows of horizontal bars, a value at each."""
    keys = "".join(
        f'<span class="key c{number}">{escape(name)}</span>'
        for number, name in enumerate(bars.series)
    )
    mark = ""
    if bars.chance is not None:
        mark = f'<i class="chance" style="left:{100 * bars.chance:.1f}%"></i>'
        keys += f'<span class="key dash">chance, {100 * bars.chance:.0f} %</span>'
    rows = []
    for row in bars.rows:
        note = f" <small>{escape(row.note)}</small>" if row.note else ""
        tracks = "".join(
            f'<div class="track">{mark}<i class="fill c{number}" '
            f'style="width:{100 * min(max(value, 0), 1):.1f}%"></i>'
            f"<b>{100 * value:.0f} %</b></div>"
            for number, value in enumerate(row.values)
        )
        rows.append(
            f'<div class="bar"><span>{escape(row.label)}{note}</span>'
            f"<div>{tracks}</div></div>"
        )
    return f'<div class="keys">{keys}</div><div class="bars">{"".join(rows)}</div>'


def _thinned(curve: Curve) -> Curve:
    """At most MAX_POINTS finite points: means of neighbours."""
    points = [p for p in curve.points if all(map(math.isfinite, p))]
    size = math.ceil(len(points) / MAX_POINTS) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    means = [
        tuple(sum(axis) / len(axis) for axis in zip(*g, strict=True)) for g in groups
    ]
    return Curve(curve.name, tuple(means))


def _highest(points: Sequence[tuple[float, float]]) -> float:
    """The top of the axis: a short peak at the start must not flatten the rest."""
    values = sorted(y for _, y in points)
    usual = values[int(0.98 * (len(values) - 1))]
    has_peak = len(values) >= 50 and 0 < 1.5 * usual < values[-1]
    return 1.5 * usual if has_peak else values[-1]


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that cover low..high, some `about` steps apart."""
    if high <= low:
        high = low + 1
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * n for n in range(first, last + 1)]


def _share(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0)


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.3g}"


def _in_words(chart: Chart, curves: Sequence[Curve]) -> str:
    said = [
        f"{c.name} from {_number(c.points[0][1])} to {_number(c.points[-1][1])}"
        f"{chart.unit}"
        for c in curves
        if c.points
    ]
    return f"{chart.title}: {', '.join(said)}"
