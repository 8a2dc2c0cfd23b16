"""Distances between all rows of two sets, by blocks: the matrix of all never exists."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from t2i.errors import InputError
from t2i.metrics.statistics import Array

BLOCK = 512  # rows against rows in float64: 2 MB


def squared_distances(x: NDArray[np.floating], y: NDArray[np.floating]) -> Iterator[tuple[int, int, Array]]:
    """Squared Euclidean distances of [N, D] from [M, D] rows, as (first row of x, first row of y, block).

    Exact to about 1e-14 of the squared spread of both sets.

    Raises:
        ValueError: not two matrices of as many columns, or a value is not finite.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ValueError(f"features of {x.shape} and {y.shape}: they must be [N, D] and [M, D]")
    middle = y.mean(axis=0, dtype=np.float64)  # less the mean the squares are small, and little cancels
    for i in range(0, len(x), BLOCK):
        a = x[i : i + BLOCK] - middle
        a2 = np.square(a).sum(axis=1)[:, None]
        for j in range(0, len(y), BLOCK):
            b = y[j : j + BLOCK] - middle
            block = a2 + np.square(b).sum(axis=1) - 2.0 * (a @ b.T)
            if not np.isfinite(block).all():
                raise ValueError("features are not finite")
            yield i, j, np.maximum(block, 0.0)


def nearest(features: NDArray[np.floating], others: NDArray[np.floating]) -> tuple[NDArray[np.int64], Array]:
    """For each of [N, D] rows its nearest among [M, D] others: their rows and their distances, both [N]."""
    index, best = np.zeros(len(features), np.int64), np.full(len(features), np.inf)
    for i, j, block in squared_distances(features, others):
        rows = slice(i, i + len(block))
        column = block.argmin(axis=1)
        value = block[np.arange(len(block)), column]
        better = value < best[rows]
        index[rows] = np.where(better, j + column, index[rows])
        best[rows] = np.where(better, value, best[rows])
    return index, np.sqrt(best)


def radii(x: NDArray[np.floating], ks: tuple[int, ...]) -> list[Array]:
    """For each k the squared distance [N] of each row of x from its k-th nearest other row.

    Raises:
        InputError: no more rows than the largest k.
    """
    if len(x) <= max(ks):
        raise InputError(f"{len(x)} pictures have no {max(ks)} neighbours each; give at least {max(ks) + 1}")
    near = np.full((len(x), max(ks)), np.inf)
    for i, j, block in squared_distances(x, x):
        if i == j:
            np.fill_diagonal(block, np.inf)
        rows = slice(i, i + len(block))
        both = np.concatenate([near[rows], block], axis=1)
        near[rows] = np.partition(both, max(ks) - 1, axis=1)[:, : max(ks)]
    near.sort(axis=1)
    return [near[:, k - 1] for k in ks]
