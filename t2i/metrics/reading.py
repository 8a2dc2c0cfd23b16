"""What a reader of images makes of them: how likely it finds their captions, and how many questions it answers right.

Both are read against the real images of the same captions (ceiling) and against other captions' words or questions (floor).
"""

import numpy as np

from t2i.metrics import Inputs, Metric
from t2i.metrics.intervals import mean_estimate
from t2i.metrics.score import Score


def _measure(metric: str, given: Inputs) -> list[Score]:
    """One score over all, and one for each aspect, of values one an image; NaN is not counted."""
    found = []
    for aspect, values in given.judged["fake"].items():
        counted = np.isfinite(values)
        if not counted.any():
            continue
        prompts = [caption for caption, its in zip(given.captions, counted.tolist(), strict=True) if its]
        estimate = mean_estimate(values[counted], prompts)
        bounds = {
            whose: float(np.nanmean(theirs[aspect]))
            for whose, theirs in given.judged.items()
            if whose != "fake" and aspect in theirs and np.isfinite(theirs[aspect]).any()
        }
        count = int(counted.sum())
        more = {**estimate.described_interval("normal, clustered by prompt"), "samples": values, "bounds": bounds}
        counts = count, count if "real" in bounds else None
        found.append(given.score(f"{metric}-{aspect}" if aspect else metric, estimate.value, counts, **more))
    return found


def _likelihood(given: Inputs) -> list[Score]:
    return _measure("caption-likelihood", given)


def _questions(given: Inputs) -> list[Score]:
    return _measure("questions", given)


CAPTION_LIKELIHOOD = Metric(1, _likelihood, reads="likelihood", needs=("captions",), usual=True)
QUESTIONS = Metric(1, _questions, reads="answers", needs=("captions", "asked"), usual=True)
