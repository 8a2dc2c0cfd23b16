"""Faithfulness: the share of captions whose image shows what they say, as an oracle reads it. Only the counting."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t2i.metrics import Inputs, Metric
from t2i.metrics.intervals import Interval, wilson
from t2i.metrics.score import Score

# Aspects of an image that an oracle judges; `strict` is all of them together.
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
    """Rates of each aspect, over all captions and over each subgroup.

    Args:
        outcomes: aspect (one of `ASPECTS`) -> [N] bool, True where image i shows that aspect of caption i.
        subgroups: name -> [N] bool, the captions that belong to it, e.g. seen and unseen combinations.

    Returns:
        subgroup -> aspect -> rate; the whole is the subgroup `all`. One without captions is left out: it has no rate.

    Raises:
        ValueError: an unknown aspect, an array that is not [N] bool, or an image that is right but for one aspect.
    """
    masks = {**(subgroups or {})}
    if unknown := sorted(set(outcomes) - set(ASPECTS)):
        raise ValueError(f"unknown aspects {unknown}; allowed: {', '.join(ASPECTS)}")
    if not outcomes or "all" in masks:
        raise ValueError("give at least one aspect, and no subgroup of the name 'all'")
    count = len(next(iter(outcomes.values())))
    for name, flags in {**outcomes, **masks}.items():
        if np.shape(flags) != (count,) or np.asarray(flags).dtype != np.bool_ or count == 0:
            found = f"{np.asarray(flags).dtype} {np.shape(flags)}"
            raise ValueError(f"{name!r} must be bool ({count},) and not empty, got {found}")
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
    """`faithfulness-ASPECT` over all captions and `faithfulness-ASPECT-GROUP` over those that are counted apart."""
    rates = {whose: faithfulness(outcomes, given.groups) for whose, outcomes in given.outcomes.items()}
    found = []
    for group, by_aspect in rates.pop("fake").items():
        for aspect, rate in by_aspect.items():
            beside = {whose: theirs[group][aspect].value for whose, theirs in rates.items()}
            counts = rate.count, rate.count if "real" in beside else None
            name = f"faithfulness-{aspect}" + ("" if group == "all" else f"-{group}")
            counted = given.groups.get(group, True)
            samples = np.where(counted, given.outcomes["fake"][aspect], np.nan)
            how = {"interval": rate.interval, "interval_method": "wilson", "bounds": beside, "samples": samples}
            found.append(given.score(name, rate.value, counts, **how))
    return found


FAITHFULNESS = Metric(1, _measure, reads="oracle", needs=("captions", "drawn"), usual=True)
