"""Chooses the cells of a given image that are sampled anew: those that a mask touches, or all below the rows that stay."""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from t2i import images
from t2i.errors import InputError
from t2i.families import Completes, Sampler
from t2i.images import Fit

Box = tuple[Fraction, Fraction, Fraction, Fraction]  # left, top, width, height in pixels of the image


def keep_parts(
    sampler: Sampler,
    view: tuple[int, Fit],
    init: Image.Image | None,
    mask: Image.Image | None,
    keep_rows: int | None,
) -> Sampler:
    """`sampler`, or one that keeps the cells of `init` that are not sampled anew.

    Args:
        view: the run's pixels a side, and how training images are brought to them.
        init: the image, of any size.
        mask: of the same size; what is lighter than mid-grey, or transparent, is sampled anew.
        keep_rows: rows of cells at the top that stay, instead of a mask.

    Raises:
        InputError: one of them is missing or too many, they do not fit, or this sampler keeps no parts.
    """
    if init is None:
        if mask is not None or keep_rows is not None:
            raise InputError("a mask, or rows to keep, need the image that they are of; give that too (init)")
        return sampler
    if not isinstance(sampler, Completes):
        raise InputError("this family cannot keep parts of an image (init); sample from a run of t2i train prior")
    if (mask is None) == (keep_rows is None):
        raise InputError("to keep parts of an image (init), give either a mask or a number of rows to keep")
    size, how = view
    if keep_rows is not None:
        redraw_hw = below(keep_rows, sampler.cells)
    else:
        assert mask is not None
        redraw_hw = touched(_flags(mask, init), _box(*init.size, size, how), sampler.cells)
    return sampler.keeping(images.fit(init.convert("RGB"), size, how), redraw_hw)


def below(keep_rows: int, cells: tuple[int, int]) -> NDArray[np.bool_]:
    """Flags [rows, columns] of all cells but those of the first rows."""
    if not 1 <= keep_rows < cells[0]:
        raise InputError(
            f"{keep_rows} rows to keep: images of this run have {cells[0]} rows of tokens; keep 1 to {cells[0] - 1}"
        )
    return np.repeat(np.arange(cells[0]) >= keep_rows, cells[1]).reshape(cells)


def touched(mask_HW: NDArray[np.bool_], box: Box, cells: tuple[int, int]) -> NDArray[np.bool_]:
    """Flags [rows, columns] of the cells that cover a masked pixel, if only in part.

    Raises:
        InputError: there is none.
    """
    left, top, width, height = box
    columns = [_span(left, width, j, cells[1], mask_HW.shape[1]) for j in range(cells[1])]
    rows = [_span(top, height, i, cells[0], mask_HW.shape[0]) for i in range(cells[0])]
    found = np.array([[mask_HW[row, column].any() for column in columns] for row in rows])
    if not found.any():
        where = "within the square that is cut from the image" if mask_HW.any() else "at all"
        raise InputError(f"the mask marks nothing {where}; paint white what is to be sampled anew, on black")
    return found


def painted(cells_hw: NDArray[np.bool_], size: tuple[int, int], view: tuple[int, Fit]) -> Image.Image:
    """A mask for an image of this size that marks these cells: a white pixel in the middle of each.

    Args:
        view: as `keep_parts` takes it.
    """
    left, top, width, height = _box(*size, *view)
    mask = np.zeros(size[::-1], np.uint8)
    for i, j in np.argwhere(cells_hw):
        row = top + height * Fraction(2 * int(i) + 1, 2 * cells_hw.shape[0])
        column = left + width * Fraction(2 * int(j) + 1, 2 * cells_hw.shape[1])
        mask[min(max(int(row), 0), size[1] - 1), min(max(int(column), 0), size[0] - 1)] = 255
    return Image.fromarray(mask)


def _span(start: Fraction, length: Fraction, k: int, count: int, end: int) -> slice:
    first, last = start + length * k / count, start + length * (k + 1) / count
    return slice(min(max(math.floor(first), 0), end), min(max(math.ceil(last), 0), end))


def _flags(mask: Image.Image, init: Image.Image) -> NDArray[np.bool_]:
    if mask.size != init.size:
        sizes = "{}x{} pixels and its image {}x{}".format(*mask.size, *init.size)
        raise InputError(f"the mask has {sizes}; resize it, by nearest neighbour, or paint it on the image itself")
    return np.asarray(mask.convert("L")) > 127


def _box(width: int, height: int, size: int, how: Fit) -> Box:
    """The part of the image that `t2i.images.fit` shows, which with `pad` is more than all of it."""
    if how == "squash":
        return Fraction(0), Fraction(0), Fraction(width), Fraction(height)
    if how == "pad":
        scale = size / max(width, height)
        shown = max(1, round(width * scale)), max(1, round(height * scale))
        x, y = Fraction(width, shown[0]), Fraction(height, shown[1])  # pixels of the image for one that is shown
        return -((size - shown[0]) // 2) * x, -((size - shown[1]) // 2) * y, size * x, size * y
    side = min(width, height)
    left, top = round((width - side) * 0.5), round((height - side) * 0.5)
    return Fraction(left), Fraction(top), Fraction(side), Fraction(side)
