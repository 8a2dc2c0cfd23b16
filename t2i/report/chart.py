"""Makes line charts as SVG without scripts, for the curves of a page and for the chart of a sweep.

This module computes the positions; `chart.html` has the markup and `chart.css` the colors of both.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from t2i.names import number
from t2i.report.template import render

DOTTED = 12  # a line with at most this many points has dots
LOG_FROM = 100.0  # ratio of largest to smallest value from which the scale is logarithmic
COLORS = 8  # colors in chart.css; lines beyond are dashed
WIDTH, HEIGHT = 420.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 8.0, 8.0, 24.0

Points = list[tuple[float, float | None]]  # (x, y); None: the value was not finite


class Axis(NamedTuple):
    """Maps values to coordinates."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(x) for x in (self.low, self.high, value)) if self.log else (*self[:2], value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


class Curve(NamedTuple):
    """A line with coordinates.

    Attributes:
        color: number of the color; from `COLORS` on the line is dashed.
        path: data of an SVG path, interrupted at values that are not finite.
        dots: (x, y) of the points, or none if there are many.
        last: the last value, for the legend.
    """

    name: str
    color: int
    path: str
    dots: list[tuple[float, float]]
    last: str

    @property
    def style(self) -> str:
        return f"line c{self.color % COLORS}" + (" dashed" if self.color >= COLORS else "")


def chart(title: str, lines: Mapping[str, Points], unit: str = "steps", colors: Sequence[int] = ()) -> Markup:
    """Returns a `<figure>` of lines over steps, with the values of a step in a tooltip.

    The scale is logarithmic, and labelled so, if all values are positive and span two orders of magnitude.

    Args:
        unit: unit of the horizontal axis.
        colors: color number of each line; default: in order.
    """
    values = [value for points in lines.values() for _, value in points if value is not None]
    steps = sorted({step for points in lines.values() for step, _ in points})
    log = min(values) > 0 and max(values) / min(values) >= LOG_FROM
    ticks = log_ticks(min(values), max(values)) if log else linear_ticks(min(values), max(values))
    y = Axis(min(ticks[0], *values), max(ticks[-1], *values), HEIGHT - BOTTOM, TOP, log)
    x = Axis(min(0.0, steps[0]), max(steps[-1], steps[0] + 1), LEFT, WIDTH - RIGHT)
    numbers = colors or range(len(lines))
    curves = [curve(name, color, points, x, y) for color, (name, points) in zip(numbers, lines.items(), strict=True)]
    marks = [tick for tick in linear_ticks(x.low, x.high) if tick <= x.high and tick == int(tick)]
    return render(
        "chart.html",
        title=title,
        curves=curves,
        alone=[one.name for one in curves] == [title],
        log=log,
        size=(WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM),
        rows=[(y(tick), label) for tick, label in zip(ticks, labels(ticks), strict=True)],
        columns=[(x(tick), f"{tick:,.0f}{f' {unit}' if tick == marks[-1] else ''}") for tick in marks],
        spoken=f"{title} over {unit}; last values: " + ", ".join(f"{one.name} {one.last}" for one in curves),
        tips=_tips(lines, steps, x, unit),
    )


def curve(name: str, color: int, points: Points, x: Axis, y: Axis) -> Curve:
    """Places a line on two axes."""
    path, pen = [], "M"
    for step, value in points:
        if value is not None:
            path.append(f"{pen}{x(step):.1f} {y(value):.1f}")
        pen = "M" if value is None else "L"
    known = [(step, value) for step, value in points if value is not None]
    dots = [(x(step), y(value)) for step, value in known] if len(known) <= DOTTED else []
    return Curve(name, color, "".join(path), dots, number(known[-1][1]))


def _tips(lines: Mapping[str, Points], steps: Sequence[float], x: Axis, unit: str) -> list[tuple[float, float, str]]:
    """Returns (left, width, text) of an invisible column around each step; its tooltip has all values of the step."""
    values_at = {name: dict(points) for name, points in lines.items()}
    edges = [LEFT, *((x(a) + x(b)) / 2 for a, b in zip(steps, steps[1:], strict=False)), WIDTH - RIGHT]
    tips = []
    for k, step in enumerate(steps):
        values = [f"{name}: {number(points[step])}" for name, points in values_at.items() if step in points]
        heading = f"step {step:,.0f}" if unit == "steps" else f"{step:,.0f} {unit}"
        tips.append((edges[k], max(edges[k + 1] - edges[k], 0.0), "\n".join([heading, *values])))
    return tips


def linear_ticks(low: float, high: float) -> list[float]:
    """Returns about four round numbers; the first is at most `low` and the last at least `high`."""
    span = high - low or abs(high) or 1.0
    size = 10.0 ** math.floor(math.log10(span / 4))
    size *= next(factor for factor in (1, 2, 5, 10) if span / (factor * size) <= 4)
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [k * size for k in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns about five or fewer powers of ten around the values."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = -(-(last - first) // 5)
    return [10.0**k for k in range(first, last + every, every)]


def labels(ticks: Sequence[float]) -> list[str]:
    """Formats the ticks with enough digits to differ."""
    texts = [number(tick) for tick in ticks]
    for digits in range(4, 16):
        if len(set(texts)) == len(texts):
            break
        texts = [f"{tick:.{digits}g}" for tick in ticks]
    return texts
