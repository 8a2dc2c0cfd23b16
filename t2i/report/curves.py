"""Curves of a journal: which series share a chart, and thinning of long ones."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from t2i.report.chart import Points, chart

# Series that are read side by side share a chart; the first pattern that matches decides, others have their own.
ASPECTS = "count|layout|shape|colour|size|relation|background|strict"  # judged by the oracle of the embedded data
GROUPS = (
    (r"(?:.*_)?loss|guidance", "losses"),
    (rf"([a-z]+)_(?:{ASPECTS})", "{0}: share of captions"),
    (r"([a-z]+)_\w+_recall@\d+", "{0}: Recall@K"),
    (r"d_(?:real|fake|mismatched)", "logits of the discriminator"),
    (r"r1|r2|penalty", "gradient penalties"),
    (r".*gradient.*", "gradient norms"),
)
SCORES = r"(?:val|heldout)_.+"  # names of scores of a validation
MOST_POINTS = 100  # of a line; more are averaged


def series_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Every number of the journal: name -> its points. A series that was never finite has no curve."""
    found: dict[str, Points] = {}
    for record in records:
        for name, value in record.items():
            if name in ("step", "time") or isinstance(value, bool) or not isinstance(value, int | float | None):
                continue
            finite = value is not None and math.isfinite(value)
            found.setdefault(name, []).append((record["step"], float(value) if finite and value is not None else None))
    return {name: points for name, points in found.items() if any(value is not None for _, value in points)}


def charts(records: Sequence[Mapping[str, Any]]) -> tuple[list[Markup], list[Markup]]:
    """One `<figure>` for each group of series: first losses and validation scores, then all others."""
    groups: dict[tuple[int, str], dict[str, Points]] = {}
    for name, points in series_of(records).items():
        groups.setdefault(group_of(name), {})[name] = thin(points)
    first: list[Markup] = []
    rest: list[Markup] = []
    for (_, title), lines in sorted(groups.items(), key=lambda item: item[0][0]):
        told = title == "losses" or any(re.fullmatch(SCORES, name) for name in lines)
        (first if told else rest).append(chart(title, lines))
    return first, rest


def shared_charts(runs: Mapping[str, tuple[Sequence[Mapping[str, Any]], float]]) -> list[Markup]:
    """One `<figure>` for each validation score that several runs have, a line a run, over training images.

    Args:
        runs: name -> records, and training images a step.
    """
    found: dict[str, dict[int, Points]] = {}
    for place, (records, images) in enumerate(runs.values()):
        for name, points in series_of(records).items():
            plain = not re.fullmatch(rf"[a-z]+_(?:{ASPECTS})", name) or name.endswith("_strict")
            if plain and re.fullmatch(SCORES, name):
                its = [(step * images, value) for step, value in points]
                found.setdefault(name, {})[place] = thin(its)
    names = list(runs)
    return [
        chart(name, {names[place]: points for place, points in lines.items()}, "images", list(lines))
        for name, lines in found.items()
        if len(lines) > 1
    ]


def group_of(name: str) -> tuple[int, str]:
    """Position of a series among the groups, and the title of its chart."""
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
