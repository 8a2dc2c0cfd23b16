"""Embedded data: scenes of coloured shapes, each a function of a seed and a row, for images of any resolution.

A scene has 1 to 3 objects (8 shapes x 8 colours x 2 sizes) on one of 3 backgrounds, in one of 15 layouts, with jittered
positions. The number in `shapes-1`, `shapes-2` and `shapes-3` is the maximum number of objects. Splits:

  train     has no held-out combination and no scene of `val`
  val       new scenes (objects and layout) of combinations that `train` has
  heldout   each scene has at least one combination that `train` does not have: a shape-colour pair (`HELDOUT_PAIRS`) or a
            relation between two shapes (`HELDOUT_RELATIONS`)
  all       all combinations, to train a scorer and never a generator

Objects do not touch each other or the border, so that `t2i.data.shapes.oracle` can read images. Lengths are in units of the
image's side; y points down.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from t2i import seeding
from t2i.data.shapes.vocabulary import (
    COLOR_JITTER,
    HELDOUT_PAIRS,
    HELDOUT_RELATIONS,
    JITTER,
    LAYOUT_CENTERS,
    LAYOUT_RELATIONS,
    RADIUS,
    RADIUS_JITTER,
)

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

    def __getitem__(self, rows: Sequence[int] | slice | NDArray) -> "Scenes":
        return Scenes(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def _content_hash(layout: NDArray, shape: NDArray, color: NDArray, size: NDArray) -> NDArray[np.uint64]:
    """Returns a hash of objects and layout, which determines the scenes of `val`."""
    code = layout.astype(np.int64)
    for slot in range(3):
        code = code * 1024 + np.where(
            shape[..., slot] < 0, 0, 1 + shape[..., slot] * 16 + color[..., slot] * 2 + size[..., slot]
        )
    return seeding.hash64(0, "shapes/content", code.reshape(-1), 1).reshape(code.shape)


def has_heldout_pair(shape: NDArray, color: NDArray) -> NDArray[np.bool_]:
    """Returns True [...] for scenes with an object of a held-out shape-colour pair; arguments are [..., M]."""
    table = np.zeros((9, 9), dtype=bool)
    for s, c in HELDOUT_PAIRS:
        table[s, c] = True
    return np.asarray(table[shape, color].any(axis=-1))


def has_heldout_relation(layout: NDArray, shape: NDArray) -> NDArray[np.bool_]:
    """Returns True [...] for scenes with a held-out (shape, relation, shape) triple."""
    table = np.zeros((9, 2, 9), dtype=bool)
    for triple in HELDOUT_RELATIONS:
        table[triple] = True
    heldout = np.zeros(layout.shape, dtype=bool)
    for number, relations in enumerate(LAYOUT_RELATIONS):
        for first, relation, second in relations:
            heldout |= (layout == number) & table[shape[..., first], relation, shape[..., second]]
    return heldout


def _draw_contents(level: int, split: str, u: NDArray) -> tuple[NDArray, ...]:
    """Maps uniform numbers [..., 12] to one candidate each: (layout, shape, color, size, accepted)."""
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
    """Changes half of the scenes with relations to have a held-out relation, and all others a held-out pair, in place."""
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
    """Returns scenes of one split by row; scene i is a function of (seed, level, split, i) alone.

    Scenes that do not belong to the split are rejected and drawn again, in blocks of candidates.
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
    # pairs also move across their axis; no object leaves its region
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
