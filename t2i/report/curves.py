"""Makes the curves of a journal: groups series into charts, and thins long ones."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from t2i.report.chart import Points, chart

# Series of a group share a chart; the first matching pattern decides, and other series have a chart each.
ASPECTS = "count|layout|shape|colour|size|relation|background|strict"  # judged by the oracle of the embedded data
GROUPS = (
    (r"(?:.*_)?loss|guidance", "losses"),
    (rf"([a-z]+)_(?:{ASPECTS})", "{0}: share of captions"),
    (r"([a-z]+)_\w+_recall@\d+", "{0}: Recall@K"),
    (r"d_(?:real|fake|mismatched)", "logits of the discriminator"),
    (r"r1|r2|penalty", "gradient penalties"),
    (r".*gradient.*", "gradient norms"),
)
SCORES = r"(?:val|heldout)_.+"  # names of validation scores
MOST_POINTS = 100  # points of a line; more are averaged


def series_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Returns the points of every number of the journal, by name, without series that were never finite."""
    series: dict[str, Points] = {}
    for record in records:
        for name, value in record.items():
            if name in ("step", "time") or isinstance(value, bool) or not isinstance(value, int | float | None):
                continue
            finite = value is not None and math.isfinite(value)
            series.setdefault(name, []).append((record["step"], float(value) if finite and value is not None else None))
    return {name: points for name, points in series.items() if any(value is not None for _, value in points)}


def charts(records: Sequence[Mapping[str, Any]]) -> tuple[list[Markup], list[Markup]]:
    """Returns a `<figure>` for each group of series: those of losses and validation scores, and all others."""
    groups: dict[tuple[int, str], dict[str, Points]] = {}
    for name, points in series_of(records).items():
        groups.setdefault(group_of(name), {})[name] = thin(points)
    first: list[Markup] = []
    rest: list[Markup] = []
    for (_, title), lines in sorted(groups.items(), key=lambda item: item[0][0]):
        important = title == "losses" or any(re.fullmatch(SCORES, name) for name in lines)
        (first if important else rest).append(chart(title, lines))
    return first, rest


def shared_charts(runs: Mapping[str, tuple[Sequence[Mapping[str, Any]], float]]) -> list[Markup]:
    """Returns a `<figure>` for each validation score that several runs have, a line for each run, over training images.

    Args:
        runs: name -> records, and training images per step.
    """
    lines_of: dict[str, dict[int, Points]] = {}
    for place, (records, images) in enumerate(runs.values()):
        for name, points in series_of(records).items():
            plain = not re.fullmatch(rf"[a-z]+_(?:{ASPECTS})", name) or name.endswith("_strict")
            if plain and re.fullmatch(SCORES, name):
                lines_of.setdefault(name, {})[place] = thin([(step * images, value) for step, value in points])
    names = list(runs)
    return [
        chart(name, {names[place]: points for place, points in lines.items()}, "images", list(lines))
        for name, lines in lines_of.items()
        if len(lines) > 1
    ]


def group_of(name: str) -> tuple[int, str]:
    """Returns the position of a series among the groups, and the title of its chart."""
    for place, (pattern, title) in enumerate(GROUPS):
        if match := re.fullmatch(pattern, name):
            return place, title.format(*match.groups())
    return len(GROUPS), name


def thin(points: Points, most: int = MOST_POINTS) -> Points:
    """Averages stretches of points to at most `most` points, each at its last step."""
    size = -(-len(points) // most)
    out: Points = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        values = [value for _, value in part if value is not None]
        out.append((part[-1][0], sum(values) / len(values) if values else None))
    return out
