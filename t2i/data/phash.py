"""Perceptual signatures of images, by which re-encoded and resized copies are found as near duplicates.

The DCT hash (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010) has one bit for each of the
64 lowest frequencies of the grey image, which is 1 if the coefficient is above their median. In flat images, re-encoding flips
the bits of weak frequencies, so many bits may differ, and the mean colours of 4 x 4 cells are compared too.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.images import ImageArray

MOST_BITS, MOST_LEVELS = 16, 4.0  # largest differences of near duplicates, chosen by benchmarks/leaks.py
_FREQUENCIES, _CELLS = 8, 4  # per side
_BYTES = 8 + 3 * _CELLS**2  # of a signature
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of R, G, B (ITU-R BT.601)
_BATCH, _AT_ONCE = 32, 2**19  # number of images, and of pairs of hashes, that are processed at one time


class Signatures(NamedTuple):
    """Signatures of N images."""

    hashes_N: NDArray[np.uint64]
    colors_ND: NDArray[np.uint8]  # grey levels, D = 3 channels x 4 x 4 cells


def pack(signatures: Signatures) -> list[bytes]:
    """Returns each signature as 56 bytes."""
    return [number.tobytes() + colors.tobytes() for number, colors in zip(*signatures, strict=True)]


def unpack(packed: Iterable[bytes]) -> Signatures:
    """Returns the signatures that `pack` has packed."""
    bytes_NL = np.frombuffer(b"".join(packed), np.uint8).reshape(-1, _BYTES)
    return Signatures(np.ascontiguousarray(bytes_NL[:, :8]).view(np.uint64)[:, 0], bytes_NL[:, 8:])


def signatures(images_BHWC: ImageArray) -> Signatures:
    """Returns the signatures of uint8 images of any size.

    Frequencies are in cycles per image, so nothing is resized, and the hash hardly depends on the resolution.
    """
    rows, columns = (_basis(side) for side in images_BHWC.shape[1:3])
    hashes, colors = [np.empty(0, np.uint64)], [np.empty((0, 3 * _CELLS**2), np.uint8)]
    for start in range(0, len(images_BHWC), _BATCH):
        levels_BCHW = images_BHWC[start : start + _BATCH].transpose(0, 3, 1, 2).astype(np.float32)
        projected_BCKK = rows @ levels_BCHW @ columns.T
        cosines_BCKK = projected_BCKK[..., :_FREQUENCIES, :_FREQUENCIES]
        # rounded, so that rounding errors of values near zero do not decide a bit
        grey_BK = np.tensordot(_LUMA, cosines_BCKK, (0, 1)).reshape(len(levels_BCHW), -1).round(2)
        bits_BK = grey_BK > np.median(grey_BK, axis=1, keepdims=True)
        hashes.append(np.packbits(bits_BK, axis=1).view(">u8")[:, 0].astype(np.uint64))
        cells_BD = projected_BCKK[..., _FREQUENCIES:, _FREQUENCIES:].reshape(len(levels_BCHW), -1)
        colors.append(cells_BD.round().clip(0, 255).astype(np.uint8))
    return Signatures(np.concatenate(hashes), np.concatenate(colors))


def _basis(side: int) -> NDArray[np.float32]:
    """Returns [8 + 4, side]: the lowest rows of the DCT-II, then the means over the cells."""
    pixels = np.arange(side)
    cosines = np.cos(np.pi / side * (pixels + 0.5) * np.arange(_FREQUENCIES)[:, None]) / side
    cells = (pixels * _CELLS // side == np.arange(_CELLS)[:, None]).astype(np.float64)
    return np.concatenate([cosines, cells / cells.sum(axis=1, keepdims=True).clip(1)]).astype(np.float32)


def near_duplicates(
    a: Signatures, b: Signatures | None = None, most_bits: int = MOST_BITS, most_levels: float = MOST_LEVELS
) -> NDArray[np.int64]:
    """Returns [P, 2]: each row of `a` that has a near duplicate in `b`, and the row of the nearest one.

    Args:
        b: None: each image is compared with earlier images of `a`, so the first of several copies is not reported.
        most_bits: maximum number of different bits of the hashes.
        most_levels: maximum mean difference of the colours of the cells, in grey levels of 255.
    """
    others = a if b is None else b
    pairs = [np.empty((0, 2), np.int64)]
    step = max(1, _AT_ONCE // max(1, len(others.hashes_N)))
    for start in range(0, len(a.hashes_N), step):
        part = a.hashes_N[start : start + step]
        rows, matches = np.nonzero(np.bitwise_count(part[:, None] ^ others.hashes_N) <= most_bits)
        rows += start
        if b is None:
            rows, matches = rows[matches < rows], matches[matches < rows]
        apart = np.abs(a.colors_ND[rows].astype(np.int16) - others.colors_ND[matches]).mean(axis=1)
        nearest_first = np.lexsort((apart, rows))
        near = nearest_first[apart[nearest_first] <= most_levels]
        _, first = np.unique(rows[near], return_index=True)
        pairs.append(np.stack([rows[near[first]], matches[near[first]]], axis=1))
    return np.concatenate(pairs)
