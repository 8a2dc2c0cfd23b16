"""The words of the embedded data: shapes, colours, sizes, backgrounds, layouts and relations."""

import numpy as np

SHAPES = ("circle", "square", "triangle", "diamond", "star", "ring", "cross", "heart")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
BACKGROUNDS = ("white", "black", "grey")

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

RADIUS = np.array([0.125, 0.190])  # small, large
RADIUS_JITTER = 0.04  # largest relative change of a radius
COLOR_JITTER = 8.0  # grey levels per channel
REACH = 1.2  # no shape extends further from its centre than this many radii (a square's corner: 1.16)

# Shape-colour pairs and (shape, relation, shape) triples that only `heldout` shows: one in eight of each. Each shape, colour and
# relation occurs equally often, so that no single word identifies a held-out scene.
HELDOUT_PAIRS = frozenset((s, (3 * s + 2) % 8) for s in range(8))
HELDOUT_RELATIONS = frozenset((s, r, (s + 3 + 2 * r) % 8) for s in range(8) for r in range(2))

# Layouts 0-8: one object in cell (row, column) of a 3 x 3 grid. 9, 10: two objects side by side, one above the other.
# 11-14: a pair and a third object: pair in the top row, bottom row, left column, right column.
LAYOUTS = (
    *(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right")),
    "side by side",
    "one above the other",
    "pair above",
    "pair below",
    "pair to the left",
    "pair to the right",
)

LAYOUT_CENTERS = np.full((15, 3, 2), np.nan)  # [layout, slot, (x, y)]
LAYOUT_CENTERS[:9, 0] = [(x, y) for y in (0.25, 0.5, 0.75) for x in (0.25, 0.5, 0.75)]
LAYOUT_CENTERS[9, :2] = [(0.25, 0.5), (0.75, 0.5)]
LAYOUT_CENTERS[10, :2] = [(0.5, 0.25), (0.5, 0.75)]
LAYOUT_CENTERS[11] = [(0.25, 0.25), (0.75, 0.25), (0.5, 0.75)]
LAYOUT_CENTERS[12] = [(0.25, 0.75), (0.75, 0.75), (0.5, 0.25)]
LAYOUT_CENTERS[13] = [(0.25, 0.25), (0.25, 0.75), (0.75, 0.5)]
LAYOUT_CENTERS[14] = [(0.75, 0.25), (0.75, 0.75), (0.25, 0.5)]
JITTER = 0.02  # largest shift of an object along each axis, in sides of the image

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
