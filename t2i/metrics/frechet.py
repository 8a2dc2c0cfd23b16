"""Frechet distance between Gaussians fitted to features (Heusel et al., 2017: FID, with the FID Inception's features).

d^2 = |mu_f - mu_r|^2 + tr(S_f) + tr(S_r) - 2 nuc(L_f^T L_r), with S = L L^T and nuc the sum of singular values.
A matrix square root, or the eigenvalues of the unsymmetric product S_f S_r, would lose half the digits if a covariance is rank
deficient, and become negative for nearly equal sets.
"""

import warnings
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from t2i.errors import InputError
from t2i.metrics import Inputs, Metric
from t2i.metrics.intervals import Interval, around
from t2i.metrics.score import Score
from t2i.metrics.statistics import Array, GaussianStats, checked

FEW_IMAGES = 10_000
LARGE = 1024  # singular values from which their squares are faster to find
ROUNDING = 1e-8  # error, relative to the total variance, that a distance may have for that speed


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian as (mean, factor) with covariance = factor @ factor.T. That of the real images serves for many models."""

    mean: Array  # [D]
    factor: Array  # [D, at most min(N, D)]
    count: int

    @classmethod
    def of(cls, data: GaussianStats | NDArray[np.floating]) -> Self:
        """Fits a Gaussian to [N, D] features, or to their statistics.

        For N <= D the factor is the centred features, which is exact. For N > D it is the Cholesky factor of the
        covariance, or its scaled eigenvectors if it is singular.
        """
        if isinstance(data, GaussianStats):
            return cls(data.mean, _factor(data.covariance, data.count - 1), data.count)
        if data.ndim == 2 and len(data) > data.shape[1]:
            return cls.of(GaussianStats.of(data))
        x = checked(data)
        if len(x) < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {len(x)}")
        mean = x.mean(axis=0)
        return cls(mean, (x - mean).T / np.sqrt(len(x) - 1), len(x))

    @property
    def dim(self) -> int:
        return len(self.mean)

    @property
    def trace(self) -> float:
        """Returns the total variance: the trace of the covariance."""
        return float(np.square(self.factor).sum())


def frechet_distance(fake: GaussianStats | NDArray[np.floating], reference: Gaussian, *, force: bool = False) -> float:
    """Computes the squared Frechet distance of generated images from the reference, >= 0 up to rounding, not clipped.

    It is biased upward by about c/N, so only scores of the same N are comparable. Warns below 10,000 images.

    Args:
        fake: features [N, D] of the generated images, or their statistics.
        reference: the real images' Gaussian.
        force: allows fewer than 2 D images on a side, for which the value depends more on N than on the model.

    Raises:
        InputError: there are fewer than 2 D images on a side, and `force` is False.
        ValueError: D differs from the reference's.
        ArithmeticError: the value is below -1e-6 of the total variance, which rounding cannot explain.
    """
    dim = len(fake.shift) if isinstance(fake, GaussianStats) else np.shape(fake)[1]
    if dim != reference.dim:
        raise ValueError(f"the generated images have {dim} features, the reference has {reference.dim}")
    check_sample_size(fake.count if isinstance(fake, GaussianStats) else len(fake), reference.count, dim, force)
    return distance(Gaussian.of(fake), reference)


def distance(fake: Gaussian, real: Gaussian) -> float:
    """Computes the distance without checks of N."""
    nuclear = _nuclear_norm(fake.factor.T @ real.factor, ROUNDING * (fake.trace + real.trace))
    value = float(np.square(fake.mean - real.mean).sum() + fake.trace + real.trace - 2.0 * nuclear)
    if not value >= -1e-6 * (fake.trace + real.trace):
        raise ArithmeticError(f"Frechet distance {value:.6g} with a total variance of {fake.trace + real.trace:.6g}")
    return value


def _factor(covariance: Array, rank: int) -> Array:
    """Factors [D, D] into [D, at most rank] with factor @ factor.T = covariance."""
    import torch

    # torch's LAPACK stays fast when other processes share the cores
    matrix = torch.from_numpy(covariance)
    if rank >= len(covariance):
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            return lower.numpy()
    values, vectors = (part.numpy() for part in torch.linalg.eigh(matrix))
    # N images span N - 1 directions; the other eigenvalues are rounding errors, whose square roots would be large.
    kept = slice(-min(rank, len(values)), None)
    return vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0.0))


def _nuclear_norm(matrix: Array, tolerance: float) -> float:
    """Returns the sum of singular values: the square roots of the eigenvalues of M M^T if they are exact to `tolerance`.

    These take a quarter of the time of the singular values themselves. An eigenvalue is off by up to eps times the largest
    one, which its square root turns into the error that is summed here.
    """
    import torch

    m = torch.from_numpy(matrix)
    if min(m.shape) >= LARGE:
        values = torch.linalg.eigvalsh(m @ m.T if m.shape[0] <= m.shape[1] else m.T @ m).clamp(min=0)
        off = torch.finfo(values.dtype).eps * values[-1]
        roots = values.sqrt()
        if (off / (roots + off.sqrt())).sum() <= tolerance:
            return float(roots.sum())
    return float(torch.linalg.svdvals(m).sum())


def check_sample_size(n_fake: int, n_real: int, dim: int, force: bool = False) -> None:
    """Refuses a Frechet distance with fewer than 2 D images on a side, and warns below 10,000."""
    fewest = min(n_fake, n_real)
    counts = f"{n_fake:,} generated and {n_real:,} real images"
    if fewest < 2 * dim and not force:
        raise InputError(
            f"FID of {counts} with {dim} features is meaningless: "
            f"score at least {2 * dim:,} on each side, use KID, or add --force"
        )
    if fewest < FEW_IMAGES:
        warnings.warn(
            f"FID of {counts} is biased upward; compare it only with scores of the same N, and see the unbiased KID",
            stacklevel=3,
        )


BOOTSTRAPPED_DIM = 512  # with more features the 100 draws take minutes
SIZES = 15  # subset sizes of `fid_infinity`, from a quarter of the images to all


def fid_infinity(fake: NDArray[np.floating], reference: Gaussian, *, seed: int = 0) -> float:
    """Extrapolates the Frechet distance of [N, D] features to infinitely many generated images.

    A line in 1/N is fitted to nested random subsets, drawn from `seed`. For equal distributions the result can be below 0; with
    fewer than 8 D images its mean is below 0 (-1 for a distance of 0, N = 2 D and D = 16).

    Raises:
        ValueError: there are fewer than 8 images.
    """
    if len(fake) < 8:
        raise ValueError(f"FID-infinity needs at least 8 images, got {len(fake)}")
    order = np.random.default_rng(seed).permutation(len(fake))
    sizes = np.unique(np.linspace(len(fake) / 4, len(fake), SIZES).round().astype(int))
    values = [distance(Gaussian.of(fake[order[:size]]), reference) for size in sizes]
    return float(np.polyfit(1.0 / sizes, values, 1)[1])


def check_for_infinity(n_fake: int, n_real: int, dim: int, force: bool = False) -> None:
    """Refuses an extrapolation whose smallest subset, a quarter of the images, has fewer than 2 D, as it is too low."""
    if n_fake < 8 * dim and not force:
        raise InputError(
            f"FID-infinity of {n_fake:,} generated images with {dim} features is extrapolated from subsets that are too small "
            f"for a Frechet distance, and is too low: score at least {8 * dim:,}, use KID, or add --force"
        )
    check_sample_size(n_fake, n_real, dim, force)


def _measure_fid(given: Inputs) -> list[Score]:
    reference = Gaussian.of(given.real)
    value = frechet_distance(given.fake, reference, force=given.force)
    if reference.dim > BOOTSTRAPPED_DIM:
        return [given.score("fid", value)]
    method = "bootstrap, of the expected value at this N"
    interval = frechet_intervals(given.fake, reference, seed=given.seed).expected
    return [given.score("fid", value, interval=interval, interval_method=method)]


def _measure_infinity(given: Inputs) -> list[Score]:
    return [given.score("fid-infinity", fid_infinity(given.fake, Gaussian.of(given.real), seed=given.seed))]


FID = Metric(2, _measure_fid, needs=("moments",), usual=True, check=check_sample_size, condensed=BOOTSTRAPPED_DIM + 1)


FID_INFINITY = Metric(1, _measure_infinity, needs=("moments",), check=check_for_infinity)


@dataclass(frozen=True)
class FrechetIntervals:
    """Bootstrap estimates of one Frechet distance, for a fixed reference."""

    standard_deviation: float
    expected: Interval  # of E[FID_N], the expectation of the biased score at this N: to compare models
    distance: Interval  # of the distance without the bias of N


def frechet_intervals(
    fake: NDArray[np.floating], reference: Gaussian, *, draws: int = 100, seed: int = 0, confidence: float = 0.95
) -> FrechetIntervals:
    """Computes bootstrap intervals of the Frechet distance of [N, D] features.

    A percentile interval would cover 2-60 % instead of 95 %, because resampling adds the bias a second time. estimate -+ z
    bootstrap deviations covers E[FID_N]; 2 estimate - mean(bootstrap) -+ z deviations covers the distance.

    Args:
        fake: features of the generated images.
        reference: the real images' Gaussian.
        draws: number of bootstrap samples, drawn as multinomial weights from `seed`.
    """
    x = checked(fake) - reference.mean
    projected = x @ reference.factor
    estimate = distance(Gaussian.of(fake), reference)
    rng = np.random.default_rng(seed)
    even = np.full(len(x), 1.0 / len(x))
    weights = (rng.multinomial(len(x), even).astype(np.float64) for _ in range(draws))
    bootstrap = np.array([_weighted_distance(w, x, projected, reference.trace) for w in weights])
    deviation = float(bootstrap.std(ddof=1))
    return FrechetIntervals(
        deviation,
        expected=around(estimate, deviation, confidence),
        distance=around(2 * estimate - float(bootstrap.mean()), deviation, confidence),
    )


def _weighted_distance(weights: Array, x: Array, projected: Array, trace_real: float) -> float:
    """Computes the distance with image i repeated weights[i] times; x is centred at the reference, projected = x @ factor."""
    n = weights.sum()
    mean = weights @ x / n
    trace = (weights @ np.square(x).sum(axis=1) - n * mean @ mean) / (n - 1)
    present = weights > 0
    rows = np.sqrt(weights[present] / (n - 1))[:, None] * (projected[present] - weights @ projected / n)
    # Half the digits suffice for a standard deviation, and the smaller Gram matrix is much faster than singular values.
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    nuclear = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0)).sum()
    return float(mean @ mean + trace + trace_real - 2.0 * nuclear)
