"""Line charts as SVG without a script: the curves of a journal on a page, and the points of a sweep in a file.

`chart.html` draws what is placed here; `chart.css` has the colors, so that a chart looks the same in both.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from t2i.report.template import render

DOTTED = 12  # a line of at most so many points shows them
LOG_FROM = 100.0  # ratio of largest to smallest value from which the scale is logarithmic
COLORS = 8  # in chart.css; further lines are dashed
WIDTH, HEIGHT = 420.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 8.0, 8.0, 24.0

Points = list[tuple[float, float | None]]  # (x, y); None: the value was not finite


class Axis(NamedTuple):
    """Maps values to a stretch of the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(x) for x in (self.low, self.high, value)) if self.log else (*self[:2], value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


class Curve(NamedTuple):
    """A line as it is drawn.

    Attributes:
        color: number of a color, and of a dash beyond `COLORS`.
        path: of an SVG path; it breaks where a value was not finite.
        dots: (x, y) of its points, where they are few.
        last: the newest value, for the legend.
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
    """A `<figure>` of lines over steps, with the values of a step in a tooltip.

    The scale is logarithmic, and labelled so, where positive values span two orders of magnitude.

    Args:
        unit: of the horizontal axis.
        colors: one number a line; none: from the first color on.
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
    """(left, width, text) of an invisible column around each step, whose tooltip has all values there."""
    at = {name: dict(points) for name, points in lines.items()}
    edges = [LEFT, *((x(a) + x(b)) / 2 for a, b in zip(steps, steps[1:], strict=False)), WIDTH - RIGHT]
    found = []
    for k, step in enumerate(steps):
        values = [f"{name}: {number(points[step])}" for name, points in at.items() if step in points]
        at_step = f"step {step:,.0f}" if unit == "steps" else f"{step:,.0f} {unit}"
        found.append((edges[k], max(edges[k + 1] - edges[k], 0.0), "\n".join([at_step, *values])))
    return found


def linear_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that reach from `low` or below to `high` or above."""
    span = high - low or abs(high) or 1.0
    size = 10.0 ** math.floor(math.log10(span / about))
    size *= next(factor for factor in (1, 2, 5, 10) if span / (factor * size) <= about)
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [k * size for k in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten around the values, at most about five."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = -(-(last - first) // 5)
    return [10.0**k for k in range(first, last + every, every)]


def labels(ticks: Sequence[float]) -> list[str]:
    """The ticks with as many digits as tell them apart."""
    found = [number(tick) for tick in ticks]
    for digits in range(4, 16):
        if len(set(found)) == len(found):
            break
        found = [f"{tick:.{digits}g}" for tick in ticks]
    return found


def number(value: float | None) -> str:
    """Three significant digits; `not finite` for None."""
    if value is None:
        return "not finite"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
