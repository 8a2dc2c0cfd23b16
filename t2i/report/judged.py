"""Adds to the images of a report their scores and the verdicts of the oracle of the embedded data."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from t2i.data.shapes.captions import Spec, parse
from t2i.data.shapes.oracle import judge, read
from t2i.extractors import ImageTextExtractor
from t2i.images import ImageArray
from t2i.metrics.clip_score import clip_score
from t2i.scoring.images.collection import Images
from t2i.scoring.images.extraction import LEAST_SIDE

JUDGED = ("shape", "colour", "size", "relation", "background")  # aspects that need the right number of objects


class Verdict(NamedTuple):
    """The oracle's verdict on an image: right or wrong, and the wrong aspects."""

    right: bool
    words: str


class Judged(NamedTuple):
    """An image with its caption, score and verdict."""

    image: ImageArray
    caption: str
    score: float | None = None
    verdict: Verdict | None = None


class Pool(NamedTuple):
    """A run's images for captions of one split, and the real images."""

    captioned: Images  # the real images, with the captions
    real: list[ImageArray]
    generated: list[ImageArray]
    scores: NDArray[np.float64]


def judged(images: Sequence[ImageArray], captions: Sequence[str], scores: Sequence[float | None]) -> list[Judged]:
    """Adds the verdicts of the oracle if it can read all captions."""
    specs = [parse(caption) for caption in captions]
    verdicts: list[Verdict | None] = [None] * len(captions)
    if images and None not in specs and images[0].shape[0] >= LEAST_SIDE:
        aspects = judge(read(np.stack(images)), cast(list[Spec], specs))
        verdicts = [verdict({name: bool(flags[k]) for name, flags in aspects.items()}) for k in range(len(captions))]
    return [Judged(*one) for one in zip(images, captions, scores, verdicts, strict=True)]


def verdict(right: Mapping[str, bool]) -> Verdict:
    """Describes the wrong aspects of an image.

    Args:
        right: aspect -> True if it is right.
    """
    if right["strict"]:
        return Verdict(True, "correct")
    wrong = [name for name in JUDGED if not right[name]] if right["count"] else ["number of objects"]
    return Verdict(False, f"wrong {', '.join(wrong)}")


def clip_scores(
    scorer: ImageTextExtractor, images: Sequence[ImageArray], captions: Sequence[str]
) -> NDArray[np.float64]:
    """Returns 100 max(cos, 0) [N] of each image and its caption."""
    samples = clip_score(scorer.features(np.stack(images)), scorer.text_features(captions)).samples
    assert samples is not None
    return samples
