"""Squared maximum mean discrepancies: the mean kernel within each set minus that across, in blocks and in float64.

KID (Binkowski et al., 2018): k(x, y) = (x.y / D + 1)^3, the unbiased estimate over all pairs, without random subsets.
CMMD (Jayasumana et al., 2024): k(x, y) = exp(-|x - y|^2 / 2 s^2) of unit features, s = 10, times 1000, including the
diagonal; it is above 0 for equal distributions, by a bias that depends on N.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from t2i.metrics import Inputs, Metric
from t2i.metrics.score import Score
from t2i.metrics.statistics import Array, checked, unit_rows

CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0

Kernel = Callable[[NDArray[np.floating], NDArray[np.floating]], Array]


def kernel_distance(fake: NDArray[np.floating], real: NDArray[np.floating], *, block: int = 1024) -> float:
    """Computes the unbiased KID of [N, D] generated and [M, D] real features; about 0, of either sign, if they are alike.

    Args:
        fake: features of the generated images, at least 2.
        real: features of the real images, at least 2.
        block: rows in memory; affects memory and speed, not the value.

    Raises:
        ValueError: there are fewer than 2 images, dimensions differ, or values are not finite.
    """
    kernel = partial(_of_rows, cubic, checked)
    return (
        _within(kernel, fake, block, diagonal=False)
        + _within(kernel, real, block, diagonal=False)
        - _across(kernel, fake, real, block)
    )


def cmmd(fake: NDArray[np.floating], real: NDArray[np.floating], *, block: int = 1024) -> float:
    """Computes the CMMD of [N, D] generated and [M, D] real features, in [0, 2000].

    Raises:
        ValueError: as in `kernel_distance`, or a feature is zero.
    """
    kernel = partial(_of_rows, gaussian, unit_rows)
    inside = _within(kernel, fake, block, diagonal=True) + _within(kernel, real, block, diagonal=True)
    return CMMD_SCALE * (inside - _across(kernel, fake, real, block))


def _of_rows(
    kernel: Callable[[Array, Array], Array],
    rows: Callable[[NDArray[np.floating]], Array],
    x: NDArray[np.floating],
    y: NDArray[np.floating],
) -> Array:
    """Applies a kernel to blocks, which become float64 only here, since features may be mapped from a file."""
    return kernel(rows(x), rows(y))


def cubic(x: Array, y: Array) -> Array:
    """Computes k(x, y) = (x.y / D + 1)^3 for all pairs of rows."""
    base = x @ y.T / x.shape[1] + 1.0
    return base * base * base


def gaussian(x: Array, y: Array) -> Array:
    """Computes k(x, y) = exp(-|x - y|^2 / 2 s^2) for all pairs of unit rows."""
    return np.exp((x @ y.T - 1.0) / CMMD_SIGMA**2)


def _within(kernel: Kernel, x: NDArray[np.floating], block: int, diagonal: bool) -> float:
    """Returns the mean of k over all pairs of rows, or of different rows; blocks below the diagonal follow by symmetry."""
    if len(x) < 2:
        raise ValueError(f"a kernel distance needs at least 2 images on each side, got {len(x)}")
    total = 0.0
    for i in _starts(x, block):
        square = kernel(x[i : i + block], x[i : i + block])
        total += square.sum() - (0.0 if diagonal else np.trace(square))
        total += 2.0 * sum(kernel(x[i : i + block], x[j : j + block]).sum() for j in range(i + block, len(x), block))
    return float(total / (len(x) * (len(x) - (not diagonal))))


def _across(kernel: Kernel, x: NDArray[np.floating], y: NDArray[np.floating], block: int) -> float:
    """Returns twice the mean of k over pairs of a row of x and a row of y."""
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{x.shape[1]} features generated, {y.shape[1]} real")
    total = sum(kernel(x[i : i + block], y[j : j + block]).sum() for i in _starts(x, block) for j in _starts(y, block))
    return float(2.0 * total / (len(x) * len(y)))


def _starts(x: NDArray[np.floating], block: int) -> range:
    return range(0, len(x), block)


def _measure_kid(given: Inputs) -> list[Score]:
    return [given.score("kid", kernel_distance(given.fake, given.real))]


def _measure_cmmd(given: Inputs) -> list[Score]:
    return [given.score("cmmd", cmmd(given.fake, given.real))]


KID = Metric(1, _measure_kid, needs=("real",), usual=True)
CMMD = Metric(1, _measure_cmmd, needs=("real",))
