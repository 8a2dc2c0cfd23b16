"""An image of a report and what is known of it: its score, and what the oracle of the embedded data reads in it."""

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

JUDGED = ("shape", "colour", "size", "relation", "background")  # told apart where the number of objects is right


class Verdict(NamedTuple):
    """Shapes that the oracle of the embedded data finds in an image."""

    right: bool
    words: str


class Judged(NamedTuple):
    """An image, its caption and what is known of it."""

    image: ImageArray
    caption: str
    score: float | None = None
    verdict: Verdict | None = None


class Pool(NamedTuple):
    """The images of one split that a run made, with the real ones."""

    asked: Images
    real: list[ImageArray]
    made: list[ImageArray]
    scores: NDArray[np.float64]


def judged(images: Sequence[ImageArray], captions: Sequence[str], scores: Sequence[float | None]) -> list[Judged]:
    """Adds the verdict of the oracle where it understands all captions."""
    specs = [parse(caption) for caption in captions]
    verdicts: list[Verdict | None] = [None] * len(captions)
    if images and None not in specs and images[0].shape[0] >= LEAST_SIDE:
        found = judge(read(np.stack(images)), cast(list[Spec], specs))
        verdicts = [verdict({name: bool(flags[k]) for name, flags in found.items()}) for k in range(len(captions))]
    return [Judged(*one) for one in zip(images, captions, scores, verdicts, strict=True)]


def verdict(right: Mapping[str, bool]) -> Verdict:
    """Says in a few words what is wrong with an image, as the oracle reads it."""
    if right["strict"]:
        return Verdict(True, "as asked")
    wrong = [name for name in JUDGED if not right[name]] if right["count"] else ["number of objects"]
    return Verdict(False, f"wrong {', '.join(wrong)}")


def fit(scorer: ImageTextExtractor, images: Sequence[ImageArray], captions: Sequence[str]) -> NDArray[np.float64]:
    """[N] 100 max(cos, 0) of each image and its caption."""
    samples = clip_score(scorer.features(np.stack(images)), scorer.text_features(captions)).samples
    assert samples is not None
    return samples
