"""A chart over time as inline SVG; colours come from the page's style sheet.

Drawn by hand: two charts of lines need no library (docs/decisions/0005-charts.md).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 960, 320
LEFT, RIGHT, TOP, BOTTOM = 84, 16, 44, 46
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
LETTER_WIDTH = 6.6
"""Of the 12 px labels, on average: whether a label fits is decided with it."""
TIME_UNITS = (("s", 1e9), ("ms", 1e6), ("µs", 1e3), ("ns", 1.0))


@dataclass(frozen=True, slots=True)
class Band:
    """A phase: a shaded stretch of time with its name above. `style` is its CSS class."""

    begin_ns: float
    end_ns: float
    label: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """Values joined by lines, filled to zero if `area`; `dots` marks points, joined by nothing."""

    label: str
    style: str
    points: tuple[tuple[float, float], ...]
    area: bool = False
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Limit:
    """A dashed level across the chart, such as what theory allows."""

    label: str
    value: float


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart over time. `readings` are (time, text) for the read-out under the pointer.

    Values are divided by `divisor` before they are drawn, `unit` names what they then are.
    `axis` says of what the times are.
    """

    name: str
    title: str
    description: str
    unit: str
    divisor: float
    end_ns: float
    lines: tuple[Line, ...]
    bands: tuple[Band, ...] = ()
    limit: Limit | None = None
    readings: tuple[tuple[float, str], ...] = ()
    axis: str = "Time since the migration began"


def ticks(limit: float, most: int = 6) -> list[float]:
    """Round numbers from 0 to the first at or above `limit`, in steps of 1, 2 or 5 x 10^n."""
    if not (math.isfinite(limit) and limit > 0):
        limit = 1.0
    power = 10.0 ** math.floor(math.log10(limit / most))
    step = next(power * f for f in (1, 2, 5, 10, 20) if limit / (power * f) <= most)
    count = math.ceil(limit / step - 1e-9)
    return [step * number for number in range(max(1, count) + 1)]


def tick_label(value: float, step: float) -> str:
    """A tick's number, with as many decimals as its step needs."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{decimals}f}"


def time_unit(span_ns: float) -> tuple[str, float]:
    """The unit in which a span has a readable number, and its nanoseconds."""
    return next(((u, f) for u, f in TIME_UNITS if span_ns >= 2 * f), TIME_UNITS[-1])


def render(chart: Chart) -> str:
    """The chart as an `<svg>` element, to be set into an HTML page."""
    highest = max((value for line in chart.lines for _, value in line.points), default=0.0)
    if chart.limit is not None:
        highest = max(highest, chart.limit.value * 1.06)  # room for its label
    y_ticks = ticks(highest * 1.02 / chart.divisor)
    draw = _Drawing(chart, y_ticks[-1] * chart.divisor, max(chart.end_ns, 1.0))
    readings = [[round(draw.x(at), 1), text] for at, text in chart.readings]
    parts = [
        (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-labelledby="{chart.name}-title {chart.name}-desc" '
            f'data-readings="{escape(json.dumps(readings))}">'
        ),
        f'<title id="{chart.name}-title">{escape(chart.title)}</title>',
        f'<desc id="{chart.name}-desc">{escape(chart.description)}</desc>',
        *draw.bands(),
        *draw.y_axis(y_ticks),
        *draw.x_axis(),
        *(part for line in chart.lines for part in draw.line(line)),
        *draw.limit(),
        f'<line class="cursor" x1="0" x2="0" y1="{TOP}" y2="{TOP + PLOT_HEIGHT}"/>',
        "</svg>",
    ]
    return "\n".join(parts)


@dataclass(frozen=True, slots=True)
class _Drawing:
    chart: Chart
    highest: float
    end_ns: float

    def x(self, at_ns: float) -> float:
        return LEFT + PLOT_WIDTH * min(max(at_ns / self.end_ns, 0.0), 1.0)

    def y(self, value: float) -> float:
        return TOP + PLOT_HEIGHT * (1 - value / self.highest)

    def bands(self) -> list[str]:
        parts, free_from = [], float(LEFT)
        for number, band in enumerate(self.chart.bands):
            begin, end = self.x(band.begin_ns), self.x(band.end_ns)
            style = band.style or ("even" if number % 2 else "odd")
            parts.append(
                f'<rect class="band {style}" x="{begin:.1f}" y="{TOP}" '
                f'width="{max(end - begin, 1.5):.1f}" height="{PLOT_HEIGHT}">'
                f"<title>{escape(band.label)}</title></rect>"
            )
            if band.style == "stun":  # the shortest and the most wanted: a line of its own
                parts.append(_text(min(end, WIDTH - RIGHT), 14, band.label, "stun-label", "end"))
                continue
            for label in (band.label, band.label.removeprefix("phase ")):
                half = len(label) * LETTER_WIDTH / 2
                middle = (begin + end) / 2
                if end - begin >= 2 * half + 4 and middle - half >= free_from:
                    parts.append(_text(middle, TOP - 10, label, "band-label", "middle"))
                    free_from = middle + half + 4
                    break
        return parts

    def y_axis(self, values: list[float]) -> list[str]:
        parts = [_text(0, 14, self.chart.unit, "axis-title", "start")]
        for value in values:
            y = self.y(value * self.chart.divisor)
            style = "axis" if value == 0 else "grid"
            parts.append(
                f'<line class="{style}" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
                f'y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            label = tick_label(value, values[1])
            parts.append(_text(LEFT - 8, y + 4, label, "tick", "end"))
        return parts

    def x_axis(self) -> list[str]:
        unit, factor = time_unit(self.end_ns)
        values = ticks(self.end_ns / factor, 10)
        parts, bottom = [], TOP + PLOT_HEIGHT
        for value in values:
            if value * factor > self.end_ns * 1.0001:
                continue
            x = self.x(value * factor)
            parts.append(
                f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>'
            )
            parts.append(_text(x, bottom + 18, tick_label(value, values[1]), "tick", "middle"))
        middle = LEFT + PLOT_WIDTH / 2
        title = f"{self.chart.axis}, {unit}"
        parts.append(_text(middle, HEIGHT - 6, title, "axis-title", "middle"))
        return parts

    def line(self, line: Line) -> list[str]:
        points = [(self.x(at), self.y(value)) for at, value in line.points]
        if not points:
            return []
        if line.dots:
            return [
                f'<circle class="dot {line.style}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
                for x, y in points
            ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts = []
        if line.area:
            floor = self.y(0)
            closed = f"{points[0][0]:.1f},{floor:.1f} {path} {points[-1][0]:.1f},{floor:.1f}"
            parts.append(f'<polygon class="area {line.style}" points="{closed}"/>')
        parts.append(f'<polyline class="line {line.style}" points="{path}"/>')
        return parts

    def limit(self) -> list[str]:
        limit = self.chart.limit
        if limit is None:
            return []
        y = self.y(limit.value)
        return [
            f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>',
            _text(WIDTH - RIGHT - 6, y - 6, limit.label, "limit-label", "end"),
        ]


def _text(x: float, y: float, text: str, style: str, anchor: str) -> str:
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )
