"""Runs all attacks on a model and returns their scores."""

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
    """Scores of all attacks, the images they compare, and an image sampled for each caption, members first."""

    scores: list[Score]
    sides: Sides
    sampled: ImageArray


def attack(options: PrivacyOptions, pipe: TextToImagePipeline, tick: Tick) -> Attacked:
    """Runs each attack that applies to the family, and returns its AUC and its true positive rate at 1 % false positives.

    Raises:
        InputError: the training data or its split val does not exist.
    """
    sides = open_sides(pipe, options.n)
    pixels = np.concatenate([sides.member_pixels, sides.other_pixels])
    captions = [*(sides.members.captions or []), *(sides.others.captions or [])]
    total = len(captions)
    attacks: dict[str, Array | None] = {}
    if isinstance(pipe.sampler, Likelihood):
        attacks["likelihood"] = by_likelihood(pipe, pixels, captions, lambda k: tick("likelihoods", k, total))
    attacks["critic"] = by_critic(pipe, pixels, captions)
    sampled = sample_for(pipe, captions, options.seed, lambda k: tick("sampling", k, total))
    attacks["distance"] = by_distance(pixels, sampled)
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
    scores = [score for name, values in attacks.items() if values is not None for score in _scores(name, values, base)]
    return Attacked(scores, sides, sampled)


def _scores(name: str, values: Array, base: ScoreProtocol) -> list[Score]:
    n = base.n_fake
    result = membership(values[:n], values[n:], base.seed or 0)
    pairs = (("auc", result.auc, result.auc_interval, 0.5), ("found", result.found, result.found_interval, 0.01))
    return [
        Score(value, replace(base, metric=f"membership-{name}-{score}"), interval, "bootstrap", {"chance": chance})
        for score, value, interval, chance in pairs
    ]
