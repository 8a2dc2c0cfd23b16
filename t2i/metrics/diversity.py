"""Diversity within a prompt.

A generator that ignores its noise makes one image a prompt, and neither FID nor CLIP score sees it.
"""

import numpy as np
from numpy.typing import NDArray

from t2i.errors import InputError
from t2i.metrics import Inputs, Metric
from t2i.metrics.intervals import Estimate, Labels, group_index, mean_estimate
from t2i.metrics.score import Score
from t2i.metrics.statistics import checked


def within_prompt_diversity(features: NDArray[np.floating], prompts: Labels) -> Estimate:
    """Mean Euclidean distance between images of the same prompt, averaged over prompts; 0 for a collapsed generator.

    Args:
        features: [N, D] of the generated images.
        prompts: [N] the prompt of each image.

    Raises:
        InputError: a prompt has only one image.
    """
    x, index = checked(features), group_index(prompts)
    if len(x) != len(index):
        raise ValueError(f"{len(x)} images, {len(index)} prompts")
    sizes = np.bincount(index)
    if (sizes < 2).any():
        lonely = prompts[int(np.flatnonzero(sizes[index] < 2)[0])]
        raise InputError(
            f"diversity needs at least 2 images a prompt; {str(lonely)[:80]!r} has one: sample with -n 2 or more"
        )
    rows = np.split(np.argsort(index, kind="stable"), np.cumsum(sizes)[:-1])
    return mean_estimate([_mean_pair_distance(x[members]) for members in rows])


def _mean_pair_distance(x: NDArray[np.float64]) -> float:
    first, second = np.triu_indices(len(x), k=1)
    return float(np.linalg.norm(x[first] - x[second], axis=1).mean())


def _measure(given: Inputs) -> list[Score]:
    """The bound is the diversity of different prompts, which a generator that ignores captions has within a prompt."""
    _, first = np.unique(group_index(given.captions), return_index=True)
    bounds = {}
    if len(first) > 1:
        bounds["different prompts"] = within_prompt_diversity(given.fake[first], [0] * len(first)).value
    found = within_prompt_diversity(given.fake, given.captions)
    return [given.score("diversity", found.value, (len(given.fake), None), bounds=bounds, **found.described())]


DIVERSITY = Metric(1, _measure, needs=("captions", "several"))
