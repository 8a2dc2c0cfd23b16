"""Judges images with a reader: its cells are the features of an image, by which captions and questions are scored.

Axes: N images, D = L x W values of all cells of an image.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from t2i.data.questions import Question
from t2i.extractors.batches import check_images
from t2i.images import ImageArray
from t2i.metrics import Features
from t2i.reader.reading import Reader
from t2i.reader.scores import ask

Values = NDArray[np.float64]


def open_judge(path: str | Path, device: str = "cpu") -> "JudgingReader":
    """Opens the reader at `path` as a judge.

    Raises:
        InputError: there is no reader at `path`.
    """
    return JudgingReader(Reader.from_pretrained(path, device))


class JudgingReader:
    """A reader that implements the protocol of extractors; its features are only used by its own metrics."""

    clip_name: str | None = None
    classes: NDArray[np.float32] | None = None

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._digest = reader.digest()
        self.name = f"reader-{self._digest[:8]}"
        side = reader.resolution
        self._shape = tuple(next(reader.cells(np.zeros((1, side, side, 3), np.uint8))).shape[1:])
        self.dim: int = self._shape[0] * self._shape[1]
        self.resize = f"{reader.data.fit} to {side}x{side}"

    @property
    def reads(self) -> dict[str, str]:
        """The kinds of metrics that it supports -> its name in scores."""
        supported = {"likelihood": self.reader.writes, "answers": bool(self.reader.answers)}
        return {kind: self.name for kind, can in supported.items() if can}

    def digest(self) -> str:
        return self._digest

    def features(self, images_BHWC: ImageArray) -> Features:
        """Returns features, float32 [B, D], of uint8 images [B, H, W, 3] of any size."""
        images = check_images(images_BHWC)
        side = self.reader.resolution
        parts = self.reader.cells(images if images.shape[1:3] == (side, side) else list(images))
        return np.concatenate(
            [np.empty((0, self.dim), np.float32), *(cells.flatten(1).cpu().numpy() for cells in parts)]
        )

    def likelihoods(self, features: Features, captions: Sequence[str]) -> Values:
        """Returns log p(caption | image) [N] in nats."""
        return self.reader.likelihood_of(self._cells(features), captions)

    def agreement(self, images_BHWC: ImageArray, captions: Sequence[str]) -> Values:
        """Returns how well each image matches its caption [B]: the log likelihood of the caption."""
        return self.likelihoods(self.features(images_BHWC), captions)

    def right(self, features: Features, questions: Sequence[Sequence[Question]]) -> dict[str, Values]:
        """Returns kind of question -> share of each image's questions that are answered correctly [N], NaN without questions.

        The key "" has the share over all kinds.
        """
        answered = ask(self.reader, self._cells(features), questions)
        shares: dict[str, Values] = {}
        for kind, of_kind in answered.by_kind():
            total = np.bincount(answered.image[of_kind], answered.credit[of_kind], len(questions))
            count = np.bincount(answered.image[of_kind], minlength=len(questions))
            shares[kind] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return shares

    def _cells(self, features: Features) -> torch.Tensor:
        return torch.from_numpy(np.array(features)).unflatten(1, self._shape)
