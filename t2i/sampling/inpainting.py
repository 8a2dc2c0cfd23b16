"""Chooses the cells of an image to resample: those that a mask touches, or all below the rows to keep."""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from t2i import images
from t2i.errors import InputError
from t2i.families import Completes, Sampler
from t2i.images import Fit
from t2i.names import counted

Box = tuple[Fraction, Fraction, Fraction, Fraction]  # left, top, width, height in pixels of the image


def keep_parts(
    sampler: Sampler,
    view: tuple[int, Fit],
    init: Image.Image | None,
    mask: Image.Image | None,
    keep_rows: int | None,
) -> Sampler:
    """Returns a sampler that keeps the cells of `init` which are not resampled; `sampler` itself without `init`.

    Args:
        view: the resolution of the run, and the way that training images are fitted to it.
        init: an image of any size.
        mask: of the size of `init`; pixels lighter than mid-grey are resampled.
        keep_rows: number of rows of cells to keep at the top, instead of a mask.

    Raises:
        InputError: `init` is missing, not exactly one of `mask` and `keep_rows` is set, their sizes do not fit, or this
            sampler cannot keep parts of an image.
    """
    if init is None:
        if mask is not None or keep_rows is not None:
            raise InputError("a mask, or rows to keep, need an image; pass that too (init)")
        return sampler
    if not isinstance(sampler, Completes):
        raise InputError("this family cannot keep parts of an image (init); sample from a run of t2i train prior")
    if (mask is None) == (keep_rows is None):
        raise InputError("to keep parts of an image (init), pass either a mask or a number of rows to keep")
    size, how = view
    if keep_rows is not None:
        redraw_hw = below(keep_rows, sampler.cells)
    else:
        assert mask is not None
        redraw_hw = touched(_flags(mask, init), _box(*init.size, size, how), sampler.cells)
    return sampler.keeping(images.fit(init.convert("RGB"), size, how), redraw_hw)


def below(keep_rows: int, cells: tuple[int, int]) -> NDArray[np.bool_]:
    """Returns flags [rows, columns], True for all cells below the first `keep_rows` rows."""
    if not 1 <= keep_rows < cells[0]:
        raise InputError(
            f"cannot keep {counted(keep_rows, 'row')}: images of this run have {counted(cells[0], 'row')} of tokens; "
            f"keep 1 to {cells[0] - 1}"
        )
    return np.repeat(np.arange(cells[0]) >= keep_rows, cells[1]).reshape(cells)


def touched(mask_HW: NDArray[np.bool_], box: Box, cells: tuple[int, int]) -> NDArray[np.bool_]:
    """Returns flags [rows, columns], True for cells that overlap a masked pixel.

    Args:
        box: the part of the image that the model sees.

    Raises:
        InputError: no cell does.
    """
    left, top, width, height = box
    columns = [_span(left, width, j, cells[1], mask_HW.shape[1]) for j in range(cells[1])]
    rows = [_span(top, height, i, cells[0], mask_HW.shape[0]) for i in range(cells[0])]
    flags_hw = np.array([[mask_HW[row, column].any() for column in columns] for row in rows])
    if not flags_hw.any():
        why = "has no white pixel in the square that is cropped from the image" if mask_HW.any() else "is all black"
        raise InputError(f"the mask {why}; paint the part to resample white, on black")
    return flags_hw


def painted(cells_hw: NDArray[np.bool_], size: tuple[int, int], view: tuple[int, Fit]) -> Image.Image:
    """Returns a mask of `size` (width, height) that marks these cells: a white pixel in the middle of each.

    Args:
        view: as in `keep_parts`.
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
        raise InputError(f"the mask has {sizes}; resize the mask with nearest-neighbour sampling")
    return np.asarray(mask.convert("L")) > 127


def _box(width: int, height: int, size: int, how: Fit) -> Box:
    """Returns the part of the image that `t2i.images.fit` keeps; with `pad` it is larger than the image."""
    if how == "squash":
        return Fraction(0), Fraction(0), Fraction(width), Fraction(height)
    if how == "pad":
        scale = size / max(width, height)
        shown = max(1, round(width * scale)), max(1, round(height * scale))
        x, y = Fraction(width, shown[0]), Fraction(height, shown[1])  # image pixels per resized pixel
        return -((size - shown[0]) // 2) * x, -((size - shown[1]) // 2) * y, size * x, size * y
    side = min(width, height)
    left, top = round((width - side) * 0.5), round((height - side) * 0.5)
    return Fraction(left), Fraction(top), Fraction(side), Fraction(side)
