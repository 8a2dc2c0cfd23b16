"""Embedded data: captioned scenes of coloured shapes, drawn exactly from a seed, at any resolution.

A scene holds 1 to 3 objects (8 shapes x 8 colours x 2 sizes) on one of 3 backgrounds, in one of 15 layouts, with jittered
positions. `shapes-1`, `shapes-2` and `shapes-3` name the most objects a scene may hold. Splits:

  train     never shows a held-out combination, nor a scene content of `val`
  val       new scenes: contents (objects and layout) kept out of `train`, made of combinations that `train` shows
  heldout   each scene holds at least one combination `train` never shows: a shape-colour pair (`HELDOUT_PAIRS`) or a relation
            between two shapes (`HELDOUT_RELATIONS`)
  all       every combination: for fitting a scorer, never a generator

Geometry: radii and centres are such that objects never touch each other or the frame, which is what lets the oracle
(`t2i.data.shapes_oracle`) read a picture back. Lengths are in units of the picture's side, y points down.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from t2i import seeding
from t2i.data import View
from t2i.errors import InputError
from t2i.images import ImageArray

SHAPES = ("circle", "square", "triangle", "diamond", "star", "ring", "cross", "heart")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
BACKGROUNDS = ("white", "black", "grey")
RELATIONS = ("left of", "above")  # stored with the left or upper object first; captions also say "right of" and "below"

COLOR_RGB = np.array(
    [
        (225, 25, 25),
        (255, 140, 0),
        (250, 225, 20),
        (25, 150, 45),
        (0, 205, 225),
        (30, 60, 225),
        (130, 35, 175),
        (255, 115, 190),
    ],
    dtype=np.float32,
)
BACKGROUND_RGB = np.array([(255, 255, 255), (0, 0, 0), (128, 128, 128)], dtype=np.float32)
RADIUS = np.array([0.125, 0.190])  # small, large; jittered by +-4 %
RADIUS_JITTER = 0.04
COLOR_JITTER = 8.0  # grey levels a channel
REACH = 1.2  # no shape reaches further from its centre than this many radii (a square's corner: 1.16)

# Shape-colour pairs and (shape, relation, shape) triples that only `heldout` shows: one in eight of each, every shape,
# colour and relation in it equally often, so that no word alone gives a held-out scene away.
HELDOUT_PAIRS = frozenset((s, (3 * s + 2) % 8) for s in range(8))
HELDOUT_RELATIONS = frozenset((s, r, (s + 3 + 2 * r) % 8) for s in range(8) for r in range(2))

# Layouts 0-8: one object in cell (row, column) of a 3 x 3 grid. 9, 10: two objects side by side, one above the other.
# 11-14: a pair and a third object: pair in the top row, bottom row, left column, right column.
LAYOUT_CENTERS = np.full((15, 3, 2), np.nan)  # [layout, slot, (x, y)]
LAYOUT_CENTERS[:9, 0] = [(x, y) for y in (0.25, 0.5, 0.75) for x in (0.25, 0.5, 0.75)]
LAYOUT_CENTERS[9, :2] = [(0.25, 0.5), (0.75, 0.5)]
LAYOUT_CENTERS[10, :2] = [(0.5, 0.25), (0.5, 0.75)]
LAYOUT_CENTERS[11] = [(0.25, 0.25), (0.75, 0.25), (0.5, 0.75)]
LAYOUT_CENTERS[12] = [(0.25, 0.75), (0.75, 0.75), (0.5, 0.25)]
LAYOUT_CENTERS[13] = [(0.25, 0.25), (0.25, 0.75), (0.75, 0.5)]
LAYOUT_CENTERS[14] = [(0.75, 0.25), (0.75, 0.75), (0.25, 0.5)]
JITTER = 0.02
# (first slot, relation, second slot) that hold in each layout
LAYOUT_RELATIONS: tuple[tuple[tuple[int, int, int], ...], ...] = (
    *[()] * 9,
    ((0, 0, 1),),
    ((0, 1, 1),),
    ((0, 0, 1), (0, 1, 2), (1, 1, 2)),
    ((0, 0, 1), (2, 1, 0), (2, 1, 1)),
    ((0, 1, 1), (0, 0, 2), (1, 0, 2)),
    ((0, 1, 1), (2, 0, 0), (2, 0, 1)),
)
LAYOUTS_OF_COUNT = {1: range(9), 2: range(9, 11), 3: range(11, 15)}
DRAWING = 1  # raise it when the same scene is drawn otherwise than before: features and codes kept of it are made anew
DEFAULT_SIZE = {"train": 50_000, "val": 5_000, "heldout": 5_000, "all": 50_000}
_CANDIDATES = 8


@dataclass(frozen=True)
class Scenes:
    """N scenes as arrays. M = 3 object slots; an empty slot holds -1 (NaN for lengths)."""

    layout_N: NDArray[np.int64]
    background_N: NDArray[np.int64]
    shape_NM: NDArray[np.int64]
    color_NM: NDArray[np.int64]
    size_NM: NDArray[np.int64]
    x_NM: NDArray[np.float64]
    y_NM: NDArray[np.float64]
    radius_NM: NDArray[np.float64]
    tint_NM3: NDArray[np.float64]  # colour noise in grey levels

    def __len__(self) -> int:
        return len(self.layout_N)

    @property
    def count_N(self) -> NDArray[np.int64]:
        return (self.shape_NM >= 0).sum(axis=1)

    def __getitem__(self, rows: Sequence[int] | slice | NDArray) -> "Scenes":
        return Scenes(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def _content_hash(layout: NDArray, shape: NDArray, color: NDArray, size: NDArray) -> NDArray[np.uint64]:
    """A hash of objects and layout, whatever the background: decides which contents belong to `val`."""
    code = layout.astype(np.int64)
    for slot in range(3):
        code = code * 1024 + np.where(
            shape[..., slot] < 0, 0, 1 + shape[..., slot] * 16 + color[..., slot] * 2 + size[..., slot]
        )
    return seeding.hash64(0, "shapes/content", code.reshape(-1), 1).reshape(code.shape)


def has_heldout_pair(shape: NDArray, color: NDArray) -> NDArray[np.bool_]:
    """[...]: whether any object of the scene is of a held-out shape-colour pair. Arguments [..., M]."""
    table = np.zeros((9, 9), dtype=bool)
    for s, c in HELDOUT_PAIRS:
        table[s, c] = True
    return np.asarray(table[shape, color].any(axis=-1))


def has_heldout_relation(layout: NDArray, shape: NDArray) -> NDArray[np.bool_]:
    """[...]: whether any relation of the scene is a held-out (shape, relation, shape) triple."""
    table = np.zeros((9, 2, 9), dtype=bool)
    for triple in HELDOUT_RELATIONS:
        table[triple] = True
    found = np.zeros(layout.shape, dtype=bool)
    for number, relations in enumerate(LAYOUT_RELATIONS):
        for first, relation, second in relations:
            found |= (layout == number) & table[shape[..., first], relation, shape[..., second]]
    return found


def _draw_contents(level: int, split: str, u: NDArray) -> tuple[NDArray, ...]:
    """Maps uniforms [..., 12] to (layout, shape, color, size, accepted): one candidate content each."""
    count = 1 + (u[..., 0] * level).astype(np.int64)
    first = np.select([count == 1, count == 2], [0, 9], 11)
    layout = first + (u[..., 1] * np.select([count == 1, count == 2], [9, 2], 4)).astype(np.int64)
    shape = (u[..., 2:5] * 8).astype(np.int64)
    color = (u[..., 5:8] * 8).astype(np.int64)
    size = (u[..., 8:11] * 2).astype(np.int64)
    if split == "heldout":
        _force_heldout(layout, shape, color, u[..., 11])
    absent = np.arange(3) >= count[..., None]
    shape[absent], color[absent], size[absent] = -1, -1, -1
    looks = shape * 8 + color + np.where(absent, -np.arange(1, 4) * 100, 0)  # no two objects of one shape and colour
    accepted = (looks[..., 0] != looks[..., 1]) & (looks[..., 0] != looks[..., 2]) & (looks[..., 1] != looks[..., 2])
    unseen = has_heldout_pair(shape, color) | has_heldout_relation(layout, shape)
    is_val = _content_hash(layout, shape, color, size) % np.uint64(16) == 0
    if split == "train":
        accepted &= ~unseen & ~is_val
    elif split == "val":
        accepted &= ~unseen & is_val
    elif split == "heldout":
        accepted &= unseen
    return layout, shape, color, size, accepted


def _force_heldout(layout: NDArray, shape: NDArray, color: NDArray, u: NDArray) -> None:
    """Makes half the scenes hold an unseen pair, half (of those with relations) an unseen relation. In place."""
    by_relation = (u < 0.5) & (layout >= 9)
    pairs = dict(HELDOUT_PAIRS)
    partner = {(s, r): t for s, r, t in HELDOUT_RELATIONS}
    pair_color = np.array([pairs[s] for s in range(8)])
    color[..., 0] = np.where(by_relation, color[..., 0], pair_color[shape[..., 0]])
    for number, relations in enumerate(LAYOUT_RELATIONS):
        for first, relation, second in relations[:1]:
            target = np.array([partner[s, relation] for s in range(8)])
            chosen = by_relation & (layout == number)
            shape[..., second] = np.where(chosen, target[shape[..., first]], shape[..., second])


def draw_scenes(level: int, split: str, rows: Sequence[int] | NDArray, seed: int = 0) -> Scenes:
    """Scenes `rows` of one split: scene i is a function of (seed, level, split, i) alone.

    Contents that the split may not show are drawn again (rejection on blocks of candidates).
    """
    rows = np.asarray(rows, dtype=np.int64)
    purpose = f"shapes-{level}/{split}"
    contents = [np.zeros(len(rows), np.int64), *(np.zeros((len(rows), 3), np.int64) for _ in range(3))]
    pending, block = np.arange(len(rows)), 0
    while len(pending):
        u = seeding.uniform(seed, f"{purpose}/content/{block}", rows[pending], 12 * _CANDIDATES)
        *drawn, accepted = _draw_contents(level, split, u.reshape(-1, _CANDIDATES, 12))
        pick = accepted.argmax(axis=1)
        done = accepted[np.arange(len(pending)), pick]
        for target, values in zip(contents, drawn, strict=True):
            target[pending[done]] = values[np.arange(len(pending)), pick][done]
        pending, block = pending[~done], block + 1
    layout, shape, color, size = contents
    return _place(layout, shape, color, size, seeding.uniform(seed, f"{purpose}/place", rows, 20))


def _place(layout: NDArray, shape: NDArray, color: NDArray, size: NDArray, u: NDArray) -> Scenes:
    signed = 2 * u - 1
    # Pairs may drift across their axis and single objects stay near their cell; no object leaves its own region.
    wobble = np.where(
        (layout == 9)[:, None, None], [0.0, 0.04], np.where((layout == 10)[:, None, None], [0.04, 0.0], 0.0)
    )
    centers = LAYOUT_CENTERS[layout] + (JITTER + wobble) * signed[:, :6].reshape(-1, 3, 2)
    radius = np.where(shape < 0, np.nan, RADIUS[size.clip(0)] * (1 + RADIUS_JITTER * signed[:, 6:9]))
    return Scenes(
        layout_N=layout,
        background_N=(u[:, 9] * 3).astype(np.int64),
        shape_NM=shape,
        color_NM=color,
        size_NM=size,
        x_NM=centers[..., 0],
        y_NM=centers[..., 1],
        radius_NM=radius,
        tint_NM3=COLOR_JITTER * signed[:, 10:19].reshape(-1, 3, 3),
    )


def signed_distance(shape: int, u: NDArray, v: NDArray) -> NDArray:
    """Distance to the outline of a shape of radius 1 at the origin, negative inside; v points down.

    Exact or a close bound, after Inigo Quilez, "2D distance functions".
    """
    name = SHAPES[shape]
    if name == "circle":
        return np.sqrt(u * u + v * v) - np.float32(0.95)
    if name == "square":
        return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.82)
    if name == "diamond":
        return (np.abs(u) + np.abs(v) - np.float32(1.04)) * np.float32(0.7071)
    if name == "ring":
        return np.abs(np.sqrt(u * u + v * v) - np.float32(0.72)) - np.float32(0.26)
    if name == "cross":
        a, b = np.abs(u), np.abs(v)
        return np.minimum(np.maximum(a - 0.98, b - 0.34), np.maximum(b - 0.98, a - 0.34)).astype(u.dtype)
    if name == "triangle":
        return np.maximum(
            v - np.float32(0.62), np.float32(0.8575) * np.abs(u) - np.float32(0.5145) * (v + np.float32(1.02))
        )
    if name == "heart":
        return _heart(u, v)
    return _star(u, v)


def _star(u: NDArray, v: NDArray, outer: float = 1.06, inner: float = 0.44) -> NDArray:
    """Five points, one up: fold the plane into one tenth, then the distance to one edge."""
    angle = np.arctan2(u, -v)
    sector = np.float32(2 * np.pi / 5)
    angle = np.abs(angle - sector * np.round(angle / sector))
    length = np.sqrt(u * u + v * v)
    x, y = length * np.cos(angle), length * np.sin(angle)
    # the edge runs from the tip (outer, 0) to the notch at angle pi/5
    nx, ny = inner * np.cos(np.pi / 5) - outer, inner * np.sin(np.pi / 5)
    norm = np.hypot(nx, ny)
    return ((-ny * (x - outer) + nx * (y - 0.0)) / norm * -1).astype(u.dtype)


def _heart(u: NDArray, v: NDArray) -> NDArray:
    """Two discs and the wedge below them."""
    a, y = np.abs(u), -v - np.float32(0.22)  # y up, discs' centres at y = 0
    disc = np.sqrt((a - 0.46) ** 2 + y * y) - 0.52
    wedge = np.maximum((a * 0.7771 - y * 0.6293) - 0.7240, y - 0.12)
    return np.minimum(disc, wedge).astype(u.dtype)


def coverage(shape: int, dx: NDArray, dy: NDArray, radius_px: NDArray) -> NDArray:
    """Share of each pixel that a shape covers. dx, dy: pixel centres minus the shape's centre, in pixels."""
    distance = signed_distance(shape, dx / radius_px, dy / radius_px) * radius_px
    return np.clip(np.float32(0.5) - distance, 0, 1)


def render(scenes: Scenes, resolution: int) -> ImageArray:
    """Draws the scenes, anti-aliased: uint8 [N, resolution, resolution, 3]."""
    window = 2 * int(np.ceil(REACH * RADIUS.max() * (1 + RADIUS_JITTER) * resolution + 1)) + 1
    margin = window // 2 + 1
    side = resolution + 2 * margin
    canvas = np.empty((len(scenes), side, side, 3), np.float32)
    canvas[:] = BACKGROUND_RGB[scenes.background_N][:, None, None]
    offsets = np.arange(window)
    for shape in range(len(SHAPES)):
        for slot in range(3):
            rows = np.flatnonzero(scenes.shape_NM[:, slot] == shape)
            if len(rows):
                _paint(canvas, scenes, rows, slot, shape, resolution, margin, offsets)
    inside = canvas[:, margin : margin + resolution, margin : margin + resolution]
    return np.clip(inside + 0.5, 0, 255).astype(np.uint8)


def _paint(
    canvas: NDArray,
    scenes: Scenes,
    rows: NDArray,
    slot: int,
    shape: int,
    resolution: int,
    margin: int,
    offsets: NDArray,
) -> None:
    x = scenes.x_NM[rows, slot] * resolution + margin
    y = scenes.y_NM[rows, slot] * resolution + margin
    left = np.floor(x).astype(np.int64) - len(offsets) // 2
    top = np.floor(y).astype(np.int64) - len(offsets) // 2
    columns, lines = left[:, None] + offsets, top[:, None] + offsets
    dx = (columns + 0.5 - x[:, None]).astype(np.float32)[:, None, :]
    dy = (lines + 0.5 - y[:, None]).astype(np.float32)[:, :, None]
    dx, dy = np.broadcast_arrays(dx, dy)
    radius = (scenes.radius_NM[rows, slot] * resolution).astype(np.float32)[:, None, None]
    alpha = coverage(shape, dx, dy, radius)[..., None]
    color = np.clip(COLOR_RGB[scenes.color_NM[rows, slot]] + scenes.tint_NM3[rows, slot], 0, 255).astype(np.float32)
    where = (rows[:, None, None], lines[:, :, None], columns[:, None, :])
    patch = canvas[where]
    canvas[where] = patch + alpha * (color[:, None, None] - patch)


class ShapesDataset:
    """One split of `shapes-<level>`; pictures are drawn when asked for, so its length costs no memory."""

    def __init__(self, level: int, split: str, view: View) -> None:
        from t2i.data.shapes_captions import describe

        self.address, self.split, self.resolution = f"shapes-{level}", split, view.resolution
        size = view.limit or DEFAULT_SIZE[split]
        self.scenes = draw_scenes(level, split, np.arange(size))
        self.captions = [[caption] for caption in describe(self.scenes, np.arange(size), self.address, split)]
        self.ids = [f"{self.address}/{split}/{i:06d}" for i in range(size)]
        self.broken: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.ids)

    def images(self, indices: Sequence[int]) -> ImageArray:
        return render(self.scenes[np.asarray(indices, dtype=np.int64)], self.resolution)

    def fingerprint(self) -> str:
        parts = (
            f"drawing {DRAWING}",
            self.address,
            self.split,
            str(len(self)),
            str(self.resolution),
            *(c[0] for c in self.captions),
        )
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def open_shapes(level: str, split: str, view: View) -> ShapesDataset:
    """Opens `shapes-<level>`; `test` is another name for `heldout`."""
    if level not in ("1", "2", "3"):
        raise InputError(f"data 'shapes-{level}' does not exist: choose shapes-1, shapes-2 or shapes-3")
    split = "heldout" if split == "test" else split
    if split not in DEFAULT_SIZE:
        raise InputError(f"shapes-{level} has no split {split!r}: choose one of {', '.join(DEFAULT_SIZE)}")
    if not 16 <= view.resolution <= 1024:
        raise InputError(
            f"shapes are drawn at 16 to 1024 pixels, not {view.resolution}; set data.resolution within that"
        )
    return ShapesDataset(int(level), split, view)
