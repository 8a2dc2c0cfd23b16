"""Confidence intervals: Wilson for rates, normal for means (clustered by prompt), bootstrap for other statistics."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from t2i.metrics.statistics import Array

Labels = Sequence[Hashable] | NDArray  # a hashable label for each row


class Interval(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A mean over images with its standard error."""

    value: float
    standard_error: float
    count: int
    samples: Array | None = field(default=None, compare=False, repr=False)  # [count], whose mean is `value`

    def interval(self, confidence: float = 0.95) -> Interval:
        """Returns value -+ z standard errors."""
        return around(self.value, self.standard_error, confidence)

    def described(self) -> dict[str, Any]:
        """Returns fields of a `Score`: samples, and the interval unless there is only one prompt."""
        return {**self.described_interval("normal, clustered by prompt"), "samples": self.samples}

    def described_interval(self, method: str) -> dict[str, Any]:
        """Returns fields of a `Score`: the interval, if there is one."""
        return {"interval": self.interval(), "interval_method": method} if math.isfinite(self.standard_error) else {}


def around(value: float, deviation: float, confidence: float) -> Interval:
    reach = float(ndtri((1 + confidence) / 2)) * deviation
    return Interval(value - reach, value + reach)


def wilson(successes: float, count: float, confidence: float = 0.95) -> Interval:
    """Computes the score interval of a rate (Wilson, 1927), which is valid near 0 and 1, unlike the normal interval.

    Raises:
        ValueError: not 0 <= successes <= count, or count < 1.
    """
    if not 0 <= successes <= count or count < 1:
        raise ValueError(f"{successes} successes of {count}")
    z2 = float(ndtri((1 + confidence) / 2)) ** 2
    rate = successes / count
    centre = (rate + z2 / (2 * count)) / (1 + z2 / count)
    reach = np.sqrt(z2 * rate * (1 - rate) / count + (z2 / (2 * count)) ** 2) / (1 + z2 / count)
    # At the ends a bound is exactly 0 or 1, but for rounding.
    low = 0.0 if successes == 0 else float(centre - reach)
    return Interval(low, 1.0 if successes == count else float(centre + reach))


def mean_estimate(values: ArrayLike, groups: Labels | None = None) -> Estimate:
    """Computes the mean of [N] values and its standard error, clustered by group.

    Args:
        values: a value for each image.
        groups: [N] the prompt of each image, since images of one prompt are not independent. None: all are independent.

    Returns:
        The estimate; its error is NaN if there is only one group.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"values must be [N] with N > 0, got shape {x.shape}")
    index = np.arange(len(x)) if groups is None else group_index(groups)
    if len(index) != len(x):
        raise ValueError(f"{len(x)} values, {len(index)} groups")
    mean = float(x.mean())
    residuals = np.bincount(index, weights=x - mean)
    n_groups = len(residuals)
    error = np.sqrt(np.square(residuals).sum() * n_groups / (n_groups - 1)) / len(x) if n_groups > 1 else np.nan
    return Estimate(mean, float(error), len(x), x)


def bootstrap_interval(
    measure: Callable[..., float], *strata: Labels, seed: int, draws: int = 1000, confidence: float = 0.95
) -> Interval:
    """Computes the percentile interval of a statistic, from bootstrap samples of whole groups.

    Args:
        measure: called with the sampled rows of each stratum.
        strata: for each independent sample, the group of each of its rows.
    """
    rng = np.random.default_rng(seed)
    members = []
    for groups in strata:
        index = group_index(groups)
        order, sizes = np.argsort(index, kind="stable"), np.bincount(index)
        members.append(order if len(sizes) == len(order) else np.split(order, np.cumsum(sizes)[:-1]))

    def sampled(rows: NDArray[np.int64] | list[NDArray[np.int64]]) -> NDArray[np.int64]:
        chosen = rng.integers(0, len(rows), len(rows))
        return rows[chosen] if isinstance(rows, np.ndarray) else np.concatenate([rows[k] for k in chosen])

    values = [measure(*map(sampled, members)) for _ in range(draws)]
    low, high = np.quantile(values, ((1 - confidence) / 2, (1 + confidence) / 2)).tolist()
    return Interval(low, high)


def group_index(groups: Labels) -> NDArray[np.int64]:
    """Maps [N] hashable labels to [N] integers 0..G-1 in order of first appearance."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in groups], dtype=np.int64)
