"""Mean and covariance of features in one pass: float64, constant memory, and shards that merge by plain addition."""

from typing import Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_BLOCK = 4096  # rows held in float64 at once


def checked(features: NDArray[np.floating]) -> Array:
    """[N, D] features as float64.

    Raises:
        ValueError: not a matrix, or a value is not finite; the message names the first such row.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(f"features must be [N, D], got shape {x.shape}")
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        raise ValueError(f"the features of image {row} are not finite")
    return x


def unit_rows(features: NDArray[np.floating]) -> Array:
    """[N, D] rows scaled to length 1.

    Raises:
        ValueError: a row is zero or not finite.
    """
    x = checked(features)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    if not (norms > 0).all():
        raise ValueError(
            f"the features of row {int(np.flatnonzero(norms[:, 0] == 0)[0])} are zero: it has no direction"
        )
    return x / norms


class GaussianStats:
    """Count, sum and sum of outer products of features less a fixed shift.

    The shift is near the mean, so nothing cancels; it is the same in every shard, so statistics add. For many
    processes: the first batch's mean of one process, broadcast; then one all-reduce of `count`, `total` and `outer`.
    """

    def __init__(self, shift: NDArray[np.floating]) -> None:
        """Starts empty; `shift` [D] is subtracted from every row, and near the mean it keeps the most digits."""
        self.shift: Array = np.array(shift, dtype=np.float64)
        self.count = 0
        self.total: Array = np.zeros_like(self.shift)
        self.outer: Array = np.zeros((len(self.shift), len(self.shift)))

    @classmethod
    def of(cls, features: NDArray[np.floating], shift: NDArray[np.floating] | None = None) -> Self:
        """Statistics of [N, D] features; the shift defaults to the mean of the first block."""
        stats = cls(np.asarray(features[:_BLOCK], dtype=np.float64).mean(axis=0) if shift is None else shift)
        for start in range(0, len(features), _BLOCK):
            stats.update(features[start : start + _BLOCK])
        return stats

    def update(self, features: NDArray[np.floating]) -> None:
        """Adds a batch of [B, D] features.

        Raises:
            ValueError: another D, or values that are not finite.
        """
        x = checked(features)
        if x.shape[1] != len(self.shift):
            raise ValueError(f"these statistics are of {len(self.shift)} features, the batch has {x.shape[1]}")
        x = x - self.shift
        self.count += len(x)
        self.total += x.sum(axis=0)
        self.outer += x.T @ x

    def __add__(self, other: Self) -> Self:
        """Statistics of both shards together.

        Raises:
            ValueError: the shards were started with different shifts.
        """
        if not np.array_equal(self.shift, other.shift):
            raise ValueError("statistics add only when every shard was started with the same shift")
        merged = type(self)(self.shift)
        merged.count = self.count + other.count
        merged.total = self.total + other.total
        merged.outer = self.outer + other.outer
        return merged

    @property
    def mean(self) -> Array:
        """[D]."""
        return self.shift + self.total / self.count

    @property
    def covariance(self) -> Array:
        """[D, D], symmetric, divided by N - 1.

        Raises:
            ValueError: fewer than two images.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        centred = (self.outer - np.outer(self.total, self.total) / self.count) / (self.count - 1)
        return (centred + centred.T) / 2
