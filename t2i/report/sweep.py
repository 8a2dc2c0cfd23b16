"""Makes the chart of a sweep: fidelity against faithfulness, with a line through settings that differ in one knob."""

from collections.abc import Sequence

from t2i.report.chart import Axis, Curve, curve, labels, linear_ticks
from t2i.report.template import render, style
from t2i.scoring.sweep import Knobs, Point, best

WIDTH, HEIGHT = 900.0, 560.0
LEFT, RIGHT, TOP, BOTTOM = 70.0, 220.0, 52.0, 60.0


def value_text(value: float | int | None) -> str:
    """Formats a value as on the command line: `all` for None."""
    return "all" if value is None else f"{value:g}"


def knobs_text(knobs: Knobs) -> str:
    """Returns e.g. `guidance 2, temperature 0.7`."""
    return ", ".join(f"{name.replace('_', '-')} {value_text(value)}" for name, value in knobs.items())


def lines_of(points: Sequence[Point]) -> tuple[str, dict[str, list[int]]]:
    """Returns the knob that varies along a line, and the points of each line by their common settings."""
    names = list(points[0].knobs)
    along = next((name for name in names if len({point.knobs[name] for point in points}) > 1), names[0])
    lines: dict[str, list[int]] = {}
    for k, point in enumerate(points):
        rest = {name: value for name, value in point.knobs.items() if name != along}
        lines.setdefault(knobs_text(rest), []).append(k)
    return along, lines


def sweep_chart(points: Sequence[Point], title: str) -> str:
    """Returns an SVG document. Every point has its value of the knob along its line; the best one has a circle."""
    along, lines = lines_of(points)
    positions = [(point.fidelity.value, point.faithfulness.value) for point in points]
    x_ticks, y_ticks = (linear_ticks(min(values), max(values)) for values in zip(*positions, strict=True))
    x = Axis(x_ticks[0], x_ticks[-1], LEFT, WIDTH - RIGHT)
    y = Axis(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    curves: list[Curve] = []
    marks = []
    for color, (name, members) in enumerate(lines.items()):
        curves.append(curve(name, color, [positions[k] for k in members], x, y))
        marks += [(x(positions[k][0]), y(positions[k][1]), color, value_text(points[k].knobs[along])) for k in members]
    chosen = positions[best(points)]
    return render(
        "sweep.svg",
        heading=title,
        style=style("chart.css"),
        size=(WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM),
        rows=[(y(tick), label) for tick, label in zip(y_ticks, labels(y_ticks), strict=True)],
        columns=[(x(tick), label) for tick, label in zip(x_ticks, labels(x_ticks), strict=True)],
        curves=curves,
        marks=marks,
        best=(x(chosen[0]), y(chosen[1])),
        along=along.replace("_", "-"),
        fidelity=points[0].fidelity.name,
        faithfulness=points[0].faithfulness.name,
    )
