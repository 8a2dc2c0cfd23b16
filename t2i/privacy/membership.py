"""Membership inference: how well a number tells the images of a training set from others (Shokri et al., 2017).

The area under the ROC curve is the average case; the rate of true finds at 1 % false ones tells of the worst (Carlini et al.,
"Membership Inference Attacks From First Principles", 2022). Chance is .5 and .01.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from t2i.metrics.intervals import Interval, bootstrap_interval

FALSE_RATE = 0.01


@dataclass(frozen=True)
class Membership:
    """Both values with intervals of 95 %, by the bootstrap of both samples."""

    auc: float
    auc_interval: Interval
    found: float  # share of members above what 1 % of the others reach
    found_interval: Interval


def auc(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Probability that a member scores higher than another image; ties count half."""
    ranks = rankdata(np.concatenate([members, others]))[: len(members)]
    return float((ranks.sum() - len(members) * (len(members) + 1) / 2) / (len(members) * len(others)))


def found_at(members: NDArray[np.float64], others: NDArray[np.float64], false_rate: float = FALSE_RATE) -> float:
    """Share of members that score higher than all but `false_rate` of the others."""
    bar = np.sort(others)[::-1][int(false_rate * len(others))]
    return float((members > bar).mean())


def membership(members: NDArray[np.float64], others: NDArray[np.float64], seed: int = 0) -> Membership:
    """How well scores [N] of members and [M] of others tell the two apart; higher means member.

    Raises:
        ValueError: a score is not finite, or a side is empty.
    """
    if not len(members) or not len(others) or not np.isfinite([*members, *others]).all():
        raise ValueError("scores must be finite, and of both kinds")
    rows = range(len(members)), range(len(others))
    intervals = [
        bootstrap_interval(lambda a, b, measure=measure: measure(members[a], others[b]), *rows, seed=seed)
        for measure in (auc, found_at)
    ]
    return Membership(auc(members, others), intervals[0], found_at(members, others), intervals[1])
