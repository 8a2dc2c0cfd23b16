"""Faithfulness: the share of images that are correct for their captions, from the verdicts of an oracle."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t2i.metrics import Inputs, Metric
from t2i.metrics.intervals import Interval, wilson
from t2i.metrics.score import Score

# Aspects of an image that an oracle judges; `strict`: all of them are right.
ASPECTS = ("count", "layout", "shape", "colour", "size", "relation", "background", "strict")

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Rate:
    """A share of captions with its 95 % Wilson interval."""

    value: float
    interval: Interval
    successes: int
    count: int

    @classmethod
    def of(cls, flags: Flags) -> "Rate":
        successes, count = int(flags.sum()), len(flags)
        return cls(successes / count, wilson(successes, count), successes, count)


def faithfulness(
    outcomes: Mapping[str, Flags], subgroups: Mapping[str, Flags] | None = None
) -> dict[str, dict[str, Rate]]:
    """Computes the rate of each aspect, over all captions and over each subgroup.

    Args:
        outcomes: aspect (one of `ASPECTS`) -> [N] bool, True if image i has that aspect of caption i.
        subgroups: name -> [N] bool, True for captions of the subgroup, e.g. those with unseen combinations.

    Returns:
        subgroup -> aspect -> rate, with all captions as the subgroup `all`. Empty subgroups are left out.

    Raises:
        ValueError: an aspect is unknown, an array is not [N] bool, or an image is strictly right but wrong in an aspect.
    """
    masks = {**(subgroups or {})}
    if unknown := sorted(set(outcomes) - set(ASPECTS)):
        raise ValueError(f"unknown aspects {unknown}; allowed: {', '.join(ASPECTS)}")
    if not outcomes or "all" in masks:
        raise ValueError("need at least one aspect, and no subgroup of the name 'all'")
    count = len(next(iter(outcomes.values())))
    for name, flags in {**outcomes, **masks}.items():
        if np.shape(flags) != (count,) or np.asarray(flags).dtype != np.bool_ or count == 0:
            actual = f"{np.asarray(flags).dtype} {np.shape(flags)}"
            raise ValueError(f"{name!r} must be bool ({count},) and not empty, got {actual}")
    for name, flags in outcomes.items():
        if "strict" in outcomes and (outcomes["strict"] & ~flags).any():
            raise ValueError(f"an image is strictly right but its {name} is wrong")
    masks = {"all": np.ones(count, dtype=np.bool_), **masks}
    return {
        group: {aspect: Rate.of(outcomes[aspect][mask]) for aspect in ASPECTS if aspect in outcomes}
        for group, mask in masks.items()
        if mask.any()
    }


def _measure(given: Inputs) -> list[Score]:
    """Returns `faithfulness-ASPECT` over all captions and `faithfulness-ASPECT-GROUP` over each subgroup."""
    rates = {images: faithfulness(outcomes, given.groups) for images, outcomes in given.outcomes.items()}
    scores = []
    for group, by_aspect in rates.pop("fake").items():
        for aspect, rate in by_aspect.items():
            bounds = {images: groups[group][aspect].value for images, groups in rates.items()}
            counts = rate.count, rate.count if "real" in bounds else None
            name = f"faithfulness-{aspect}" + ("" if group == "all" else f"-{group}")
            counted = given.groups.get(group, True)
            samples = np.where(counted, given.outcomes["fake"][aspect], np.nan)
            more = {"interval": rate.interval, "interval_method": "wilson", "bounds": bounds, "samples": samples}
            scores.append(given.score(name, rate.value, counts, **more))
    return scores


FAITHFULNESS = Metric(1, _measure, reads="oracle", needs=("captions", "rendered"), usual=True)
