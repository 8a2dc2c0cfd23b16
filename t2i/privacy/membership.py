"""Scores of membership inference: how well a number separates training images from other images (Shokri et al., 2017).

The area under the ROC curve measures the average case. The true positive rate at a false positive rate of 1 % measures how many
images are identified with confidence (Carlini et al., "Membership Inference Attacks From First Principles", 2022). By chance they
are .5 and .01.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from t2i.metrics.intervals import Interval, bootstrap_interval

FALSE_RATE = 0.01


@dataclass(frozen=True)
class Membership:
    """Both scores with 95 % intervals, by the bootstrap of both samples."""

    auc: float
    auc_interval: Interval
    found: float  # true positive rate at a false positive rate of 1 %
    found_interval: Interval


def auc(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Returns the probability that a member scores higher than another image; ties count half."""
    ranks = rankdata(np.concatenate([members, others]))[: len(members)]
    return float((ranks.sum() - len(members) * (len(members) + 1) / 2) / (len(members) * len(others)))


def found_at(members: NDArray[np.float64], others: NDArray[np.float64], false_rate: float = FALSE_RATE) -> float:
    """Returns the share of members that score higher than all but a share `false_rate` of the others."""
    bar = np.sort(others)[::-1][int(false_rate * len(others))]
    return float((members > bar).mean())


def membership(members: NDArray[np.float64], others: NDArray[np.float64], seed: int = 0) -> Membership:
    """Computes how well scores [N] of members and [M] of others separate the two; members should score higher.

    Raises:
        ValueError: a score is not finite, or one side is empty.
    """
    if not len(members) or not len(others) or not np.isfinite([*members, *others]).all():
        raise ValueError("scores must be finite, with at least one of each side")
    rows = range(len(members)), range(len(others))
    intervals = [
        bootstrap_interval(lambda a, b, measure=measure: measure(members[a], others[b]), *rows, seed=seed)
        for measure in (auc, found_at)
    ]
    return Membership(auc(members, others), intervals[0], found_at(members, others), intervals[1])
