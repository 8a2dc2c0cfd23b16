"""Inception Score (Salimans et al., 2016): high if each image has a clear class and all images have many classes.

The score is exp of the mean KL divergence of an image's class distribution from the mean over images, in [1, classes]. It uses
the FID Inception's 1008 classes without the bias of the last layer, like the first implementation.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from t2i.errors import InputError
from t2i.metrics import Inputs, Metric
from t2i.metrics.score import Score

SPLITS = 10


def inception_score(logits: NDArray[np.floating], splits: int = SPLITS) -> tuple[float, float]:
    """Returns mean and standard deviation over `splits` consecutive parts of the images.

    Args:
        logits: [N, classes], in random order.

    Raises:
        ValueError: there are fewer images than parts.
    """
    if len(logits) < splits:
        raise ValueError(f"{len(logits)} images cannot be divided into {splits} parts")
    ends = [k * len(logits) // splits for k in range(splits + 1)]
    scores = [_score(logits[start:end]) for start, end in pairwise(ends)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(logits: NDArray[np.floating]) -> float:
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    p = np.exp(log_p)
    return float(np.exp((p * (log_p - np.log(p.mean(axis=0)))).sum(axis=1).mean()))


def _measure(given: Inputs) -> list[Score]:
    assert given.classes is not None
    value, deviation = inception_score(_shuffled(given.fake, given.seed) @ given.classes.T)
    bounds = {"deviation between tenths": deviation}
    if isinstance(given.real, np.ndarray) and len(given.real):
        bounds["real"] = inception_score(_shuffled(given.real, given.seed) @ given.classes.T)[0]
    return [given.score("inception-score", value, bounds=bounds)]


def _shuffled(features: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    return features[np.random.default_rng(seed).permutation(len(features))]


def _check(n_fake: int, n_real: int, dim: int, force: bool) -> None:
    if min(n_fake, n_real) < SPLITS * 2:
        raise InputError(
            f"too few images for an Inception Score in {SPLITS} parts, {min(n_fake, n_real)}: score at least {SPLITS * 2}"
        )


INCEPTION_SCORE = Metric(1, _measure, reads="classes", check=_check)
