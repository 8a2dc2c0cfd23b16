"""Scores of all attacks on a model, and what they were made from."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from t2i.families import Likelihood
from t2i.images import ImageArray
from t2i.metrics.score import Score, ScoreProtocol
from t2i.metrics.statistics import Array
from t2i.pipeline import TextToImagePipeline
from t2i.privacy.attacks import Sides, by_critic, by_distance, by_likelihood, open_sides, sample_for
from t2i.privacy.membership import membership
from t2i.privacy.options import PrivacyOptions
from t2i.scoring.images.collection import Tick

VERSION = 1


class Attacked(NamedTuple):
    """Scores, and the images that were sampled for the captions of both sides, members first."""

    scores: list[Score]
    sides: Sides
    sampled: ImageArray


def attack(options: PrivacyOptions, pipe: TextToImagePipeline, tick: Tick) -> Attacked:
    """Tries every attack that the family allows: AUC and true finds at 1 % false ones, with intervals.

    Raises:
        InputError: the training data is not there, or has no val.
    """
    sides = open_sides(pipe, options.n)
    pixels = np.concatenate([sides.member_pixels, sides.other_pixels])
    captions = [*(sides.members.captions or []), *(sides.others.captions or [])]
    total = len(captions)
    found: dict[str, Array | None] = {}
    if isinstance(pipe.sampler, Likelihood):
        found["likelihood"] = by_likelihood(pipe, pixels, captions, lambda k: tick("likelihoods", k, total))
    found["critic"] = by_critic(pipe, pixels, captions)
    sampled = sample_for(pipe, captions, options.seed, lambda k: tick("sampling", k, total))
    found["distance"] = by_distance(pixels, sampled)
    base = ScoreProtocol(
        metric_version=VERSION,
        n_fake=len(sides.members),
        n_real=len(sides.others),
        data=sides.members.name,
        data_digest=sides.others.digest,
        split="train against val",
        captions="first",
        resolution=sides.others.resolution,
        seed=options.seed,
        run=options.run,
        checkpoint=str(pipe.manifest.get("config_hash", "")),
    )
    scores = [score for name, values in found.items() if values is not None for score in _scores(name, values, base)]
    return Attacked(scores, sides, sampled)


def _scores(name: str, values: Array, base: ScoreProtocol) -> list[Score]:
    n = base.n_fake
    told = membership(values[:n], values[n:], base.seed or 0)
    pairs = (("auc", told.auc, told.auc_interval, 0.5), ("found", told.found, told.found_interval, 0.01))
    return [
        Score(value, replace(base, metric=f"membership-{name}-{what}"), interval, "bootstrap", {"chance": chance})
        for what, value, interval, chance in pairs
    ]
