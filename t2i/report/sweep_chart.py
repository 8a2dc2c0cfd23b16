"""The picture of a sweep: fidelity against faithfulness, a line through the settings that differ in one knob."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from t2i.report.curves import Axis, labels, linear_ticks
from t2i.scoring.sweep import Knobs, Point, best

WIDTH, HEIGHT, FINE = 900, 560, 2  # drawn FINE times as large, then scaled down: smooth lines
LEFT, RIGHT, TOP, BOTTOM = 70, 220, 46, 56
COLORS = ("#0064b0", "#c44e00", "#00805e", "#a3357a", "#8a6a00", "#2b8cbe", "#6b6b6b", "#7b4fc9")
TEXT, RULE = "#1b1d20", "#d9dce0"


def value_text(value: float | int | None) -> str:
    """`all` for None, as in the command."""
    return "all" if value is None else f"{value:g}"


def knobs_text(knobs: Knobs) -> str:
    """E.g. `guidance 2, temperature 0.7`."""
    return ", ".join(f"{name.replace('_', '-')} {value_text(value)}" for name, value in knobs.items())


def lines_of(points: Sequence[Point]) -> tuple[str, dict[str, list[int]]]:
    """The knob that changes along a line, and the points of each line under what they have in common."""
    names = list(points[0].knobs)
    along = next((name for name in names if len({point.knobs[name] for point in points}) > 1), names[0])
    lines: dict[str, list[int]] = {}
    for k, point in enumerate(points):
        rest = {name: value for name, value in point.knobs.items() if name != along}
        lines.setdefault(knobs_text(rest), []).append(k)
    return along, lines


def chart(points: Sequence[Point], title: str) -> Image.Image:
    """A scatter with the best setting circled; every point bears its value of the knob along its line."""
    along, lines = lines_of(points)
    at = [(point.fidelity.value, point.faithfulness.value) for point in points]
    x, y = (_axis([one[k] for one in at], k == 1) for k in (0, 1))
    image = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), "white")
    draw = ImageDraw.Draw(image)
    _frame(draw, x, y, title, points[0])
    chosen = best(points)
    for row, (name, members) in enumerate(lines.items()):
        color = COLORS[row % len(COLORS)]
        spots = [(x[0](at[k][0]), y[0](at[k][1])) for k in members]
        draw.line([(FINE * a, FINE * b) for a, b in spots], fill=color, width=2 * FINE)
        for k, (a, b) in zip(members, spots, strict=True):
            _disc(draw, a, b, 4, fill=color)
            if k == chosen:
                _disc(draw, a, b, 9, outline=TEXT, width=2 * FINE)
            _text(draw, a + 8, b - 8, value_text(points[k].knobs[along]), 12, color, "ls")
        if name:
            _text(draw, WIDTH - RIGHT + 16, TOP + 66 + 20 * row, name, 12, color, "ls")
    key = f"numbers: {along.replace('_', '-')}"
    _text(draw, WIDTH - RIGHT + 16, TOP + 12, key, 12, TEXT, "ls")
    _text(draw, WIDTH - RIGHT + 16, TOP + 32, "circle: best", 12, TEXT, "ls")
    return image.resize((WIDTH, HEIGHT), Image.Resampling.BOX)


def _axis(values: Sequence[float], upward: bool) -> tuple[Axis, list[float]]:
    ticks = linear_ticks(min(values), max(values))
    place = (HEIGHT - BOTTOM, TOP) if upward else (LEFT, WIDTH - RIGHT)
    return Axis(ticks[0], ticks[-1], *place), ticks


def _frame(
    draw: ImageDraw.ImageDraw,
    x: tuple[Axis, list[float]],
    y: tuple[Axis, list[float]],
    title: str,
    point: Point,
) -> None:
    for tick, label in zip(x[1], labels(x[1]), strict=True):
        at = x[0](tick)
        draw.line([FINE * at, FINE * TOP, FINE * at, FINE * (HEIGHT - BOTTOM)], fill=RULE, width=FINE)
        _text(draw, at, HEIGHT - BOTTOM + 18, label, 12, TEXT, "ms")
    for tick, label in zip(y[1], labels(y[1]), strict=True):
        at = y[0](tick)
        draw.line([FINE * LEFT, FINE * at, FINE * (WIDTH - RIGHT), FINE * at], fill=RULE, width=FINE)
        _text(draw, LEFT - 8, at + 4, label, 12, TEXT, "rs")
    _text(draw, LEFT, 18, title, 13, TEXT, "ls")
    _text(draw, LEFT, TOP - 8, f"{point.faithfulness.name}: up is better", 12, TEXT, "ls")
    below = f"{point.fidelity.name}: left is better"
    _text(draw, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, below, 12, TEXT, "ms")


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, **style: object) -> None:
    box = [FINE * (x - radius), FINE * (y - radius), FINE * (x + radius), FINE * (y + radius)]
    draw.ellipse(box, **style)  # pyright: ignore[reportArgumentType]


def _text(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int, color: str, anchor: str) -> None:
    draw.text((FINE * x, FINE * y), text, fill=color, font=ImageFont.load_default(FINE * size), anchor=anchor)
