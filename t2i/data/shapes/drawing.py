"""Renders scenes, anti-aliased by the signed distances of shapes."""

import numpy as np
from numpy.typing import NDArray

from t2i.data.shapes.scenes import Scenes
from t2i.data.shapes.vocabulary import BACKGROUND_RGB, COLOR_RGB, RADIUS, RADIUS_JITTER, REACH, SHAPES
from t2i.images import ImageArray


def signed_distance(shape: int, u: NDArray, v: NDArray) -> NDArray:
    """Returns the distance to the outline of a shape of radius 1 at the origin, negative inside; v points down.

    It is exact or a close bound, after Inigo Quilez, "2D distance functions".
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
    """Five points, one of them up: folds the plane into one tenth and returns the distance to one edge."""
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
    """Two discs and a wedge below them."""
    a, y = np.abs(u), -v - np.float32(0.22)  # y points up; the discs' centres are at y = 0
    disc = np.sqrt((a - 0.46) ** 2 + y * y) - 0.52
    wedge = np.maximum((a * 0.7771 - y * 0.6293) - 0.7240, y - 0.12)
    return np.minimum(disc, wedge).astype(u.dtype)


def coverage(shape: int, dx: NDArray, dy: NDArray, radius_px: NDArray) -> NDArray:
    """Returns the share of each pixel that a shape covers.

    Args:
        dx, dy: pixel centres minus the shape's centre, in pixels.
    """
    distance = signed_distance(shape, dx / radius_px, dy / radius_px) * radius_px
    return np.clip(np.float32(0.5) - distance, 0, 1)


def render(scenes: Scenes, resolution: int) -> ImageArray:
    """Returns the scenes as anti-aliased images, uint8 [N, resolution, resolution, 3]."""
    window = 2 * int(np.ceil(REACH * RADIUS.max() * (1 + RADIUS_JITTER) * resolution + 1)) + 1
    margin = window // 2 + 1
    side = resolution + 2 * margin
    canvas = np.empty((len(scenes), side, side, 3), np.float32)
    canvas[:] = BACKGROUND_RGB[scenes.background_N][:, None, None]
    for shape in range(len(SHAPES)):
        for slot in range(3):
            rows = np.flatnonzero(scenes.shape_NM[:, slot] == shape)
            if len(rows):
                _paint(canvas, scenes, rows, slot, shape, resolution, window)
    inside = canvas[:, margin : margin + resolution, margin : margin + resolution]
    return np.clip(inside + 0.5, 0, 255).astype(np.uint8)


def _paint(
    canvas: NDArray,
    scenes: Scenes,
    rows: NDArray,
    slot: int,
    shape: int,
    resolution: int,
    window: int,
) -> None:
    """Paints the objects of one shape and slot; `window` is the side of the square that contains any object."""
    margin, offsets = window // 2 + 1, np.arange(window)
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
