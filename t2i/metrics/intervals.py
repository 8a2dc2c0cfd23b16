"""How far a score can be trusted: Wilson for rates, normal for means (clustered by prompt), bootstrap for FID."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from t2i.metrics import Measured
from t2i.metrics.frechet import Reference, distance
from t2i.metrics.statistics import Array, checked

Labels = Sequence[Hashable] | NDArray  # anything hashable, one a row


class Interval(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A mean over pictures with its standard error."""

    value: float
    standard_error: float
    count: int
    samples: Array | None = field(default=None, compare=False, repr=False)  # [count] of which it is the mean

    def interval(self, confidence: float = 0.95) -> Interval:
        """value -+ z standard errors."""
        return _around(self.value, self.standard_error, confidence)


def estimated(estimate: Estimate, bounds: Mapping[str, float]) -> Measured:
    """With its interval, unless a single prompt says nothing about others."""
    if not math.isfinite(estimate.standard_error):
        return Measured(estimate.value, bounds=bounds, samples=estimate.samples)
    method = "normal, clustered by prompt"
    return Measured(estimate.value, estimate.interval(), method, bounds, samples=estimate.samples)


def _around(value: float, deviation: float, confidence: float) -> Interval:
    reach = float(ndtri((1 + confidence) / 2)) * deviation
    return Interval(value - reach, value + reach)


def wilson(successes: int, count: int, confidence: float = 0.95) -> Interval:
    """Score interval of a rate (Wilson, 1927): right near 0 and 1 too, where the normal interval has no width.

    Raises:
        ValueError: not 0 <= successes <= count, or count is 0.
    """
    if not 0 <= successes <= count or count < 1:
        raise ValueError(f"{successes} successes of {count}")
    z2 = float(ndtri((1 + confidence) / 2)) ** 2
    rate = successes / count
    centre = (rate + z2 / (2 * count)) / (1 + z2 / count)
    reach = np.sqrt(z2 * rate * (1 - rate) / count + (z2 / (2 * count)) ** 2) / (1 + z2 / count)
    # At the ends one bound is exactly 0 or 1; rounding would leave it a hair off.
    low = 0.0 if successes == 0 else float(centre - reach)
    return Interval(low, 1.0 if successes == count else float(centre + reach))


def mean_estimate(values: ArrayLike, groups: Labels | None = None) -> Estimate:
    """Mean of [N] values with the standard error clustered by group.

    Args:
        values: one a picture.
        groups: [N] the prompt of each picture: pictures of one prompt are not independent. None: all are.

    Returns:
        The error is NaN where there is a single group: nothing is known about other prompts then.
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


def group_index(groups: Labels) -> NDArray[np.int64]:
    """[N] any hashable labels -> [N] integers 0..G-1 in order of first appearance."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in groups], dtype=np.int64)


@dataclass(frozen=True)
class FrechetIntervals:
    """What the bootstrap says of one Frechet distance. The reference is held fixed."""

    standard_deviation: float
    expected: Interval  # of E[FID_N], the biased score around which samples of this N scatter: to compare models
    distance: Interval  # of the distance itself, with the bias of N taken off


def frechet_intervals(
    fake: NDArray[np.floating], reference: Reference, *, draws: int = 100, seed: int = 0, confidence: float = 0.95
) -> FrechetIntervals:
    """Bootstrap intervals of the Frechet distance of [N, D] features.

    A percentile interval covers 2-60 % instead of 95 %, because resampling adds the bias a second time. The estimate
    -+ z bootstrap deviations covers E[FID_N], and 2 estimate - mean(bootstrap) -+ z deviations covers the distance.

    Args:
        fake: features of the generated pictures.
        reference: the real pictures' Gaussian.
        draws: bootstrap samples, drawn as multinomial weights from `seed`.
    """
    x = checked(fake) - reference.mean
    projected = x @ reference.factor
    estimate = distance(Reference.of(fake), reference)
    rng = np.random.default_rng(seed)
    even = np.full(len(x), 1.0 / len(x))
    weights = (rng.multinomial(len(x), even).astype(np.float64) for _ in range(draws))
    bootstrap = np.array([_weighted_distance(w, x, projected, reference.trace) for w in weights])
    deviation = float(bootstrap.std(ddof=1))
    return FrechetIntervals(
        deviation,
        expected=_around(estimate, deviation, confidence),
        distance=_around(2 * estimate - float(bootstrap.mean()), deviation, confidence),
    )


def _weighted_distance(weights: Array, x: Array, projected: Array, trace_real: float) -> float:
    """Frechet distance where picture i counts weights[i] times; x less the reference's mean, projected = x @ factor."""
    n = weights.sum()
    mean = weights @ x / n
    trace = (weights @ np.square(x).sum(axis=1) - n * mean @ mean) / (n - 1)
    drawn = weights > 0
    rows = np.sqrt(weights[drawn] / (n - 1))[:, None] * (projected[drawn] - weights @ projected / n)
    # Half the digits are plenty for a spread, and the smaller Gram matrix costs a fraction of the singular values.
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    nuclear = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0)).sum()
    return float(mean @ mean + trace + trace_real - 2.0 * nuclear)
