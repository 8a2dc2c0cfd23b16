"""Diversity of images of the same prompt.

A generator that ignores its noise makes the same image again and again, which neither FID nor CLIP score detects.
"""

import numpy as np
from numpy.typing import NDArray

from t2i.errors import InputError
from t2i.metrics import Inputs, Metric
from t2i.metrics.intervals import Estimate, Labels, group_index, mean_estimate
from t2i.metrics.score import Score
from t2i.metrics.statistics import checked


def within_prompt_diversity(features: NDArray[np.floating], prompts: Labels) -> Estimate:
    """Computes the mean Euclidean distance between images of the same prompt, averaged over prompts.

    Args:
        features: [N, D] features of the generated images.
        prompts: [N] the prompt of each image.

    Raises:
        InputError: a prompt has only one image.
    """
    x, index = checked(features), group_index(prompts)
    if len(x) != len(index):
        raise ValueError(f"{len(x)} images, {len(index)} prompts")
    sizes = np.bincount(index)
    if (sizes < 2).any():
        prompt = prompts[int(np.flatnonzero(sizes[index] < 2)[0])]
        raise InputError(
            f"diversity needs at least 2 images of each prompt; {str(prompt)[:80]!r} has one: sample with -n 2 or more"
        )
    rows = np.split(np.argsort(index, kind="stable"), np.cumsum(sizes)[:-1])
    return mean_estimate([_mean_pair_distance(x[members]) for members in rows])


def _mean_pair_distance(x: NDArray[np.float64]) -> float:
    first, second = np.triu_indices(len(x), k=1)
    return float(np.linalg.norm(x[first] - x[second], axis=1).mean())


def _measure(given: Inputs) -> list[Score]:
    """Scores the diversity; its bound is the diversity of different prompts, which a generator that ignores captions has."""
    _, first = np.unique(group_index(given.captions), return_index=True)
    bounds = {}
    if len(first) > 1:
        bounds["different prompts"] = within_prompt_diversity(given.fake[first], [0] * len(first)).value
    estimate = within_prompt_diversity(given.fake, given.captions)
    return [given.score("diversity", estimate.value, (len(given.fake), None), bounds=bounds, **estimate.described())]


DIVERSITY = Metric(1, _measure, needs=("captions", "several"))
