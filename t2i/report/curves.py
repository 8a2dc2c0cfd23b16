"""Curves of a journal as inline SVG: no script, no asset; hovering tells the values of a step."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

# Series that are read beside each other share a chart, the first pattern that matches decides; others stand alone.
ASPECTS = "count|layout|shape|colour|size|relation|background|strict"  # what the oracle of the embedded data judges
GROUPS = (
    (r"(?:.*_)?loss|guidance", "losses"),
    (rf"([a-z]+)_(?:{ASPECTS})", "{0}: share of captions"),
    (r"([a-z]+)_\w+_recall@\d+", "{0}: Recall@K"),
    (r"d_(?:real|fake|mismatched)", "logits of the discriminator"),
    (r"r1|r2|penalty", "gradient penalties"),
    (r".*gradient.*", "gradient norms"),
)
SCORES = r"(?:val|heldout)_.+"  # names of scores of a validation
MOST_POINTS = 100  # of a line: more are averaged
DOTTED = 12  # a line of so few points shows them
LOG_FROM = 100.0  # ratio of largest to smallest value
WIDTH, HEIGHT = 420.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 8.0, 8.0, 24.0
COLORS = 8  # of the style sheet; then dashed

Points = list[tuple[float, float | None]]  # (step, value); None: was not finite


class Axis(NamedTuple):
    """From values to a stretch of the picture."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(x) for x in (self.low, self.high, value)) if self.log else (*self[:2], value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def series_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """name -> its points, of everything in the journal that is a number; what was never finite has no curve."""
    found: dict[str, Points] = {}
    for record in records:
        for name, value in record.items():
            if name in ("step", "time") or isinstance(value, bool) or not isinstance(value, int | float | None):
                continue
            finite = value is not None and math.isfinite(value)
            found.setdefault(name, []).append((record["step"], float(value) if finite and value is not None else None))
    return {name: points for name, points in found.items() if any(value is not None for _, value in points)}


def charts(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """One `<figure>` a group of series: losses and validation scores, and all others."""
    groups: dict[tuple[int, str], dict[str, Points]] = {}
    for name, points in series_of(records).items():
        groups.setdefault(group_of(name), {})[name] = thin(points)
    first: list[str] = []
    rest: list[str] = []
    for (_, title), lines in sorted(groups.items(), key=lambda item: item[0][0]):
        told = title == "losses" or any(re.fullmatch(SCORES, name) for name in lines)
        (first if told else rest).append(chart(title, lines))
    return first, rest


def shared_charts(runs: Mapping[str, tuple[Sequence[Mapping[str, Any]], float]]) -> list[str]:
    """Scores of validations that several runs have, one `<figure>` a score with a line a run, over training pictures.

    Args:
        runs: name -> records, and training pictures a step.
    """
    found: dict[str, dict[int, Points]] = {}
    for place, (records, pictures) in enumerate(runs.values()):
        for name, points in series_of(records).items():
            plain = not re.fullmatch(rf"[a-z]+_(?:{ASPECTS})", name) or name.endswith("_strict")
            if plain and re.fullmatch(SCORES, name):
                its = [(step * pictures, value) for step, value in points]
                found.setdefault(name, {})[place] = thin(its)
    names = list(runs)
    return [
        chart(name, {names[place]: points for place, points in lines.items()}, "pictures", list(lines))
        for name, lines in found.items()
        if len(lines) > 1
    ]


def group_of(name: str) -> tuple[int, str]:
    """Place among the groups, and title."""
    for place, (pattern, title) in enumerate(GROUPS):
        if match := re.fullmatch(pattern, name):
            return place, title.format(*match.groups())
    return len(GROUPS), name


def thin(points: Points, most: int = MOST_POINTS) -> Points:
    """At most `most` points: the mean of each stretch, at its last step."""
    size = -(-len(points) // most)
    out: Points = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        values = [value for _, value in part if value is not None]
        out.append((part[-1][0], sum(values) / len(values) if values else None))
    return out


def chart(title: str, lines: Mapping[str, Points], unit: str = "steps", colors: Sequence[int] = ()) -> str:
    """Lines over steps. A logarithmic scale where positive values span two orders of magnitude, and it says so.

    Args:
        unit: of the horizontal axis.
        colors: of the lines, as numbers of the style sheet; none: from the first on.
    """
    colors = colors or range(len(lines))
    values = [value for points in lines.values() for _, value in points if value is not None]
    steps = sorted({step for points in lines.values() for step, _ in points})
    log = min(values) > 0 and max(values) / min(values) >= LOG_FROM
    ticks = log_ticks(min(values), max(values)) if log else linear_ticks(min(values), max(values))
    y = Axis(min(ticks[0], *values), max(ticks[-1], *values), HEIGHT - BOTTOM, TOP, log)
    x = Axis(min(0.0, steps[0]), max(steps[-1], steps[0] + 1), LEFT, WIDTH - RIGHT)
    drawn = "".join(_line(i, points, x, y) for i, points in zip(colors, lines.values(), strict=True))
    last = {name: next(value for _, value in reversed(points) if value is not None) for name, points in lines.items()}
    spoken = escape(f"{title} over {unit}; last values: " + ", ".join(f"{k} {number(v)}" for k, v in last.items()))
    legend = "".join(
        f'<li><svg viewBox="0 0 18 8" aria-hidden="true"><path class="{_style(i)}" d="M0 4H18"/></svg>'
        f"{escape(name)} <b>{number(value)}</b></li>"
        for i, (name, value) in zip(colors, last.items(), strict=True)
    )
    note = '<span class="muted">log scale</span>' if log else ""
    alone = list(last) == [title]  # the title is the legend
    return (
        f'<figure class="chart"><h4>{escape(title)} {number(last[title]) if alone else ""} {note}</h4>'
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{spoken}">'
        f"{_frame(x, y, ticks, unit)}{drawn}{''.join(_hovered(lines, steps, x, unit))}</svg>"
        f"{'' if alone else f'<ul>{legend}</ul>'}</figure>"
    )


def _style(i: int) -> str:
    return f"line c{i % COLORS}" + (" dashed" if i >= COLORS else "")


def _line(i: int, points: Points, x: Axis, y: Axis) -> str:
    """A path that breaks where a value was not finite, with dots where there are few."""
    path, pen = [], "M"
    for step, value in points:
        if value is None:
            pen = "M"
            continue
        path.append(f"{pen}{x(step):.1f} {y(value):.1f}")
        pen = "L"
    known = [(step, value) for step, value in points if value is not None]
    dots = [f'<circle class="dot c{i % COLORS}" cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.5"/>' for s, v in known]
    return f'<path class="{_style(i)}" d="{"".join(path)}"/>' + ("".join(dots) if len(dots) <= DOTTED else "")


def _frame(x: Axis, y: Axis, ticks: Sequence[float], unit: str) -> str:
    rows = "".join(
        f'<path class="rule" d="M{LEFT:g} {y(tick):.1f}H{WIDTH - RIGHT:g}"/>'
        f'<text x="{LEFT - 6:g}" y="{y(tick) + 4:.1f}" text-anchor="end">{label}</text>'
        for tick, label in zip(ticks, labels(ticks), strict=True)
    )
    marks = [tick for tick in linear_ticks(x.low, x.high) if tick <= x.high and tick == int(tick)]
    columns = "".join(
        f'<text x="{x(tick):.1f}" y="{HEIGHT - 6:g}" text-anchor="{"end" if x(tick) > WIDTH - 60 else "middle"}">'
        f"{tick:,.0f}{f' {unit}' if tick == marks[-1] else ''}</text>"
        for tick in marks
    )
    return rows + columns


def _hovered(lines: Mapping[str, Points], steps: Sequence[float], x: Axis, unit: str) -> Iterator[str]:
    """An invisible column around each step, whose tooltip has all values there."""
    at = {name: dict(points) for name, points in lines.items()}
    edges = [LEFT, *((x(a) + x(b)) / 2 for a, b in zip(steps, steps[1:], strict=False)), WIDTH - RIGHT]
    for k, step in enumerate(steps):
        values = [f"{name}: {number(points[step])}" for name, points in at.items() if step in points]
        at_step = f"step {step:,.0f}" if unit == "steps" else f"{step:,.0f} {unit}"
        tip = escape("\n".join([at_step, *values]))
        place = f'x="{edges[k]:.1f}" width="{max(edges[k + 1] - edges[k], 0):.1f}"'
        yield f'<rect class="hover" {place} y="{TOP:g}" height="{HEIGHT - TOP - BOTTOM:g}"><title>{tip}</title></rect>'


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
    """The ticks with as many digits as it takes to tell them apart."""
    found = [number(tick) for tick in ticks]
    for digits in range(4, 16):
        if len(set(found)) == len(found):
            break
        found = [f"{tick:.{digits}g}" for tick in ticks]
    return found


def number(value: float | None) -> str:
    """Three significant digits; None was not finite."""
    if value is None:
        return "not finite"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
