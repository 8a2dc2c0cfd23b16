"""Metrics by a reader of images: the likelihood of captions given their images, and the share of correct answers.

Both are compared with the real images of the same captions (ceiling) and with shuffled captions or questions (floor).
"""

import numpy as np

from t2i.metrics import Inputs, Metric
from t2i.metrics.intervals import mean_estimate
from t2i.metrics.score import Score


def _measure(metric: str, given: Inputs) -> list[Score]:
    """Returns the mean over images for each aspect, without NaN; the aspect "" is the whole."""
    scores = []
    for aspect, values in given.judged["fake"].items():
        counted = np.isfinite(values)
        if not counted.any():
            continue
        prompts = [given.captions[row] for row in np.flatnonzero(counted).tolist()]
        estimate = mean_estimate(values[counted], prompts)
        bounds = {
            bound: float(np.nanmean(aspects[aspect]))
            for bound, aspects in given.judged.items()
            if bound != "fake" and aspect in aspects and np.isfinite(aspects[aspect]).any()
        }
        count = int(counted.sum())
        more = {**estimate.described_interval("normal, clustered by prompt"), "samples": values, "bounds": bounds}
        counts = count, count if "real" in bounds else None
        scores.append(given.score(f"{metric}-{aspect}" if aspect else metric, estimate.value, counts, **more))
    return scores


def _likelihood(given: Inputs) -> list[Score]:
    return _measure("caption-likelihood", given)


def _questions(given: Inputs) -> list[Score]:
    return _measure("questions", given)


CAPTION_LIKELIHOOD = Metric(1, _likelihood, reads="likelihood", needs=("captions",), usual=True)
QUESTIONS = Metric(1, _questions, reads="answers", needs=("captions", "questions"), usual=True)
