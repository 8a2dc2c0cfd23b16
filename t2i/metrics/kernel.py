"""Kernel Inception distance (Binkowski et al., 2018): squared maximum mean discrepancy, k(x, y) = (x.y / D + 1)^3.

The exact unbiased estimate over all pairs: no random subsets, so no seed. By blocks: the kernel matrix never exists.
"""

import numpy as np
from numpy.typing import NDArray

from t2i.metrics.statistics import Array, checked

VERSION = 1


def kernel_distance(fake: NDArray[np.floating], real: NDArray[np.floating], *, block: int = 1024) -> float:
    """Unbiased KID of [N, D] generated from [M, D] real features. About zero, of either sign, for equal distributions.

    Args:
        fake: features of the generated pictures, at least 2.
        real: features of the real pictures, at least 2, as many dimensions.
        block: rows held at once; decides memory and speed, not the value.

    Raises:
        ValueError: fewer than 2 pictures, other dimensions, or values that are not finite.
    """
    x, y = checked(fake), checked(real)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{x.shape[1]} features generated, {y.shape[1]} real")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"KID needs at least 2 pictures on each side, got {len(x)} and {len(y)}")
    across = sum(cubic(x[i : i + block], y[j : j + block]).sum() for i in _starts(x, block) for j in _starts(y, block))
    return float(_mean_of_pairs(x, block) + _mean_of_pairs(y, block) - 2.0 * across / (len(x) * len(y)))


def cubic(x: Array, y: Array) -> Array:
    """k(x, y) = (x.y / D + 1)^3 of all rows of x with all rows of y."""
    base = x @ y.T / x.shape[1] + 1.0
    return base * base * base


def _mean_of_pairs(x: Array, block: int) -> float:
    """Mean of k over pairs of different rows: the diagonal left out, blocks below it counted by symmetry."""
    total = 0.0
    for i in _starts(x, block):
        square = cubic(x[i : i + block], x[i : i + block])
        total += square.sum() - np.trace(square)
        total += 2.0 * sum(cubic(x[i : i + block], x[j : j + block]).sum() for j in range(i + block, len(x), block))
    return total / (len(x) * (len(x) - 1))


def _starts(x: Array, block: int) -> range:
    return range(0, len(x), block)
