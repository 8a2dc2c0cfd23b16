"""Mean and covariance of features in one pass, in float64 and constant memory; statistics of shards can be added."""

from typing import Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_BLOCK = 4096  # rows in float64


def checked(features: NDArray[np.floating]) -> Array:
    """Returns [N, D] features as float64.

    Raises:
        ValueError: the features are no matrix, or a value is not finite; the message has the first such row.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(f"features must be [N, D], got shape {x.shape}")
    if not np.isfinite(x).all():
        row = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        raise ValueError(f"the features of image {row} are not finite")
    return x


def unit_rows(features: NDArray[np.floating]) -> Array:
    """Scales [N, D] rows to length 1.

    Raises:
        ValueError: a row is zero or not finite.
    """
    x = checked(features)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    if not (norms > 0).all():
        raise ValueError(
            f"the features of row {int(np.flatnonzero(norms[:, 0] == 0)[0])} are zero and have no direction"
        )
    return x / norms


class GaussianStats:
    """Count, sum and sum of outer products of features minus a fixed shift.

    A shift near the mean avoids cancellation. Statistics with the same shift can be added. With many processes, one of them
    broadcasts the mean of its first batch as shift; at the end `count`, `total` and `outer` are summed over processes.
    """

    def __init__(self, shift: NDArray[np.floating]) -> None:
        """Starts empty; `shift` [D] is subtracted from every row."""
        self.shift: Array = np.array(shift, dtype=np.float64)
        self.count = 0
        self.total: Array = np.zeros_like(self.shift)
        self.outer: Array = np.zeros((len(self.shift), len(self.shift)))

    @classmethod
    def of(cls, features: NDArray[np.floating], shift: NDArray[np.floating] | None = None) -> Self:
        """Returns statistics of [N, D] features; the default shift is the mean of the first block."""
        stats = cls(np.asarray(features[:_BLOCK], dtype=np.float64).mean(axis=0) if shift is None else shift)
        for start in range(0, len(features), _BLOCK):
            stats.update(features[start : start + _BLOCK])
        return stats

    def update(self, features: NDArray[np.floating]) -> None:
        """Adds a batch of [B, D] features.

        Raises:
            ValueError: D differs, or values are not finite.
        """
        x = checked(features)
        if x.shape[1] != len(self.shift):
            raise ValueError(f"these statistics have {len(self.shift)} features, the batch has {x.shape[1]}")
        x = x - self.shift
        self.count += len(x)
        self.total += x.sum(axis=0)
        self.outer += x.T @ x

    def __add__(self, other: Self) -> Self:
        """Returns the statistics of both shards.

        Raises:
            ValueError: the shifts differ.
        """
        if not np.array_equal(self.shift, other.shift):
            raise ValueError("statistics with different shifts cannot be added")
        merged = type(self)(self.shift)
        merged.count = self.count + other.count
        merged.total = self.total + other.total
        merged.outer = self.outer + other.outer
        return merged

    @property
    def mean(self) -> Array:
        """Returns the mean [D]."""
        return self.shift + self.total / self.count

    @property
    def covariance(self) -> Array:
        """Returns the covariance [D, D], symmetric, divided by N - 1.

        Raises:
            ValueError: there are fewer than two images.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        centred = (self.outer - np.outer(self.total, self.total) / self.count) / (self.count - 1)
        return (centred + centred.T) / 2
