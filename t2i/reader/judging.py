"""A reader as a judge of images: the cells that it sees are features, and captions and questions are held against them.

Axes: N images, D = L x W numbers of all cells of an image.
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
        InputError: there is none.
    """
    return JudgingReader(Reader.from_pretrained(path, device))


class JudgingReader:
    """A reader behind the protocol of extractors; its features serve no other metric than its own."""

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
        """What it can give to a metric -> its name in scores."""
        found = {"likelihood": self.reader.writes, "answers": bool(self.reader.answers)}
        return {what: self.name for what, can in found.items() if can}

    def digest(self) -> str:
        return self._digest

    def features(self, images_BHWC: ImageArray) -> Features:
        """uint8 [B, H, W, 3] of any size -> float32 [B, D]."""
        images = check_images(images_BHWC)
        wanted = self.reader.resolution
        same = images.shape[1:3] == (wanted, wanted)
        parts = self.reader.cells(images if same else list(images))
        return np.concatenate(
            [np.empty((0, self.dim), np.float32), *(cells.flatten(1).cpu().numpy() for cells in parts)]
        )

    def likelihoods(self, features: Features, captions: Sequence[str]) -> Values:
        """[N] log p(caption | image) in nats."""
        return self.reader.likelihood_of(self._cells(features), captions)

    def agreement(self, images_BHWC: ImageArray, captions: Sequence[str]) -> Values:
        """[B] how well each image fits its caption: the likelihood of the caption."""
        return self.likelihoods(self.features(images_BHWC), captions)

    def right(self, features: Features, questions: Sequence[Sequence[Question]]) -> dict[str, Values]:
        """Kind of question -> [N], the share that is answered right of each image's questions; NaN: it has none.

        Under "" over all kinds.
        """
        answered = ask(self.reader, self._cells(features), questions)
        found: dict[str, Values] = {}
        for kind, of_kind in answered.by_kind():
            total = np.bincount(answered.image[of_kind], answered.credit[of_kind], len(questions))
            count = np.bincount(answered.image[of_kind], minlength=len(questions))
            found[kind] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return found

    def _cells(self, features: Features) -> torch.Tensor:
        return torch.from_numpy(np.array(features)).unflatten(1, self._shape)
