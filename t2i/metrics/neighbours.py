"""Metrics of nearest neighbours: precision, recall, density and coverage, and memorisation.

Distances are computed in blocks, so memory does not grow with the number of pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t2i.errors import InputError
from t2i.metrics import Inputs, Metric
from t2i.metrics.intervals import wilson
from t2i.metrics.score import Score
from t2i.metrics.statistics import Array
from t2i.names import counted

BLOCK = 512  # rows against rows in float64: 2 MB


def squared_distances(x: NDArray[np.floating], y: NDArray[np.floating]) -> Iterator[tuple[int, int, Array]]:
    """Yields squared Euclidean distances of [N, D] from [M, D] rows, as (first row of x, first row of y, block).

    Exact to about 1e-14 of the squared spread of both sets.

    Raises:
        ValueError: shapes do not fit, or a value is not finite.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ValueError(f"features of {x.shape} and {y.shape}: they must be [N, D] and [M, D]")
    middle = y.mean(axis=0, dtype=np.float64)  # centred rows have small squares, so little cancels
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
    """Returns, for each of [N, D] rows, the index and distance of the nearest of [M, D] others, both [N]."""
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
    """Returns, for each k, the squared distance [N] of each row of x from its k-th nearest other row.

    Raises:
        InputError: there are not more rows than the largest k.
    """
    if len(x) <= max(ks):
        raise InputError(
            f"{counted(len(x), 'image')} cannot have {counted(max(ks), 'neighbour')} each; score at least {max(ks) + 1}"
        )
    near = np.full((len(x), max(ks)), np.inf)
    for i, j, block in squared_distances(x, x):
        if i == j:
            np.fill_diagonal(block, np.inf)
        rows = slice(i, i + len(block))
        both = np.concatenate([near[rows], block], axis=1)
        near[rows] = np.partition(both, max(ks) - 1, axis=1)[:, : max(ks)]
    near.sort(axis=1)
    return [near[:, k - 1] for k in ks]


SHARE = 0.05  # share of held-out images that count as near


def memorised(
    fake: NDArray[np.floating], real: NDArray[np.floating], train: NDArray[np.floating]
) -> tuple[NDArray[np.bool_], float]:
    """Finds generated images that are nearer to a training image than 95 % of the held-out images are.

    Args:
        fake, real, train: features [N, D] of generated, [M, D] of held-out and [T, D] of training images.

    Returns:
        Flags [N], True for about 5 % of the images if the generator copies nothing; and a ratio of medians: the distance
        of generated images from their nearest training image over that of held-out images, about 1, and 0 for copies.

    Raises:
        InputError: half of the held-out images are training images.
    """
    of_fake, of_real = nearest(fake, train)[1], nearest(real, train)[1]
    median = float(np.median(of_real))
    if median == 0:
        raise InputError(
            "half of the real images are training images, so copies cannot be detected; score held-out ones"
        )
    return of_fake < np.quantile(of_real, SHARE), float(np.median(of_fake)) / median


def _measure_memorised(given: Inputs) -> list[Score]:
    assert given.train is not None
    near, ratio = memorised(given.fake, given.real, given.train)
    share = float(near.mean())
    # the threshold is a quantile of the held-out images, and as uncertain as the share if they are as few
    count = len(near) * len(given.real) / (len(near) + len(given.real))
    interval = wilson(share * count, count)
    how = {"interval": interval, "interval_method": "wilson, of both sides", "samples": near.astype(np.float64)}
    return [
        given.score("memorisation", share, bounds={"held-out pictures": SHARE}, **how),
        given.score("memorisation-distance-ratio", ratio, bounds={"held-out pictures": 1.0}),
    ]


MEMORISATION = Metric(1, _measure_memorised, needs=("train", "real"))


NEIGHBOUR, NEIGHBOUR_OF_DENSITY = 3, 5  # k of precision and recall, of density and coverage


@dataclass(frozen=True)
class PRDC:
    precision: float
    recall: float
    density: float
    coverage: float


def prdc(fake: NDArray[np.floating], real: NDArray[np.floating]) -> PRDC:
    """Computes all four scores of [N, D] generated and [M, D] real features, in three passes over pairs.

    A ball includes its edge, so for sets of equal images all scores are 1 (density: M / k).

    Raises:
        InputError: fewer than 6 real or 4 generated images.
    """
    # The last digits of a distance depend on the order of the sum, and repeated images lie exactly on edges.
    slack = 1e-12 * float(np.square(real - real.mean(axis=0, dtype=np.float64)).sum(axis=1).mean())
    real_3, real_5 = (r + slack for r in radii(real, (NEIGHBOUR, NEIGHBOUR_OF_DENSITY)))
    fake_3 = radii(fake, (NEIGHBOUR,))[0] + slack
    precise, recalled, covered = (np.zeros(n, np.bool_) for n in (len(fake), len(real), len(real)))
    balls = 0
    for i, j, block in squared_distances(fake, real):
        rows, columns = slice(i, i + block.shape[0]), slice(j, j + block.shape[1])
        precise[rows] |= (block <= real_3[columns]).any(axis=1)
        recalled[columns] |= (block <= fake_3[rows, None]).any(axis=0)
        inside = block <= real_5[columns]
        covered[columns] |= inside.any(axis=0)
        balls += int(inside.sum())
    density = balls / (NEIGHBOUR_OF_DENSITY * len(fake))
    return PRDC(float(precise.mean()), float(recalled.mean()), density, float(covered.mean()))


def _measure_prdc(given: Inputs) -> list[Score]:
    return [given.score(name, value) for name, value in vars(prdc(given.fake, given.real)).items()]


def _check_prdc(n_fake: int, n_real: int, dim: int, force: bool) -> None:
    fewest = NEIGHBOUR_OF_DENSITY + 1
    if min(n_fake, n_real) < fewest:
        raise InputError(
            f"too few images for neighbours, {n_fake} generated and {n_real} real: score at least {fewest}"
        )


PRDC_METRIC = Metric(1, _measure_prdc, needs=("real",), check=_check_prdc)
