"""Keeps, of several candidates for each image, the one that an image-text encoder finds closest to its caption."""

from collections.abc import Sequence

import numpy as np

from t2i.errors import InputError
from t2i.extractors import ImageTextExtractor
from t2i.images import ImageArray
from t2i.metrics.statistics import unit_rows
from t2i.seeding import derive


def candidate_seed(seed: int, k: int) -> int:
    """The seed of candidate k of an image; candidate 0 is the image that is made without re-ranking."""
    return derive(seed, "candidate", k) if k else seed


class BestOf:
    """The best of `count` candidates for each caption, as they come.

    Attributes:
        scores: cosine of each candidate with its caption, a list an image.
    """

    def __init__(self, scorer: ImageTextExtractor, captions: Sequence[str], count: int) -> None:
        if count < 2:
            raise InputError(f"the best of {count} is no choice; sample 2 or more candidates")
        self.count, self._scorer = count, scorer
        row = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        self._text_ND = unit_rows(scorer.text_features(list(row)))[[row[caption] for caption in captions]]
        self._images: list[ImageArray] = []
        self.scores: list[list[float]] = []

    def hear(self, images_BHWC: ImageArray) -> None:
        """Takes the next images: all candidates of the first caption, then of the second, and so on."""
        for image, feature_D in zip(images_BHWC, unit_rows(self._scorer.features(images_BHWC)), strict=True):
            if not self.scores or len(self.scores[-1]) == self.count:
                self.scores.append([])
                self._images.append(image)
            score = float(feature_D @ self._text_ND[len(self.scores) - 1])
            if score > max(self.scores[-1], default=-np.inf):
                self._images[-1] = image
            self.scores[-1].append(score)

    def chosen(self) -> list[int]:
        """The best candidate of each image whose candidates are all there, the first of equals."""
        return [scores.index(max(scores)) for scores in self.scores if len(scores) == self.count]

    def images(self) -> ImageArray:
        """uint8 [N, H, W, 3], one for each that `chosen` names."""
        whole = len(self.chosen())
        return np.stack(self._images)[:whole]
