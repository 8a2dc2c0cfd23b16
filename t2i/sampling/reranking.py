"""Keeps, of several candidates for each image, the one that fits its caption best: by an image-text encoder or a reader."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from t2i.errors import InputError
from t2i.extractors import ImageTextExtractor, open_image_text
from t2i.families import family_of
from t2i.images import ImageArray
from t2i.metrics.statistics import Array, unit_rows
from t2i.reader.judging import JudgingReader, open_judge
from t2i.reader.reading import Reader
from t2i.seeding import derive


def candidate_seed(seed: int, k: int) -> int:
    """The seed of candidate k of an image; candidate 0 is the image that is made without re-ranking."""
    return derive(seed, "candidate", k) if k else seed


Chooser = ImageTextExtractor | JudgingReader


def open_chooser(address: str | None, device: str) -> Chooser:
    """Opens what chooses among candidates: `reader:RUN`, a run of `t2i train reader`, or what `open_image_text` opens.

    Raises:
        InputError: there is none, or it neither reads captions nor writes them.
    """
    path = Path(str(address).removeprefix("reader:")).expanduser()
    if address is None or not str(address).startswith("reader:"):
        if address is None or not (path / "config.yaml").is_file() or family_of(path) != "reader":
            return open_image_text(address, device)
    judge = open_judge(path, device)
    if not judge.reader.writes:
        raise InputError(
            f"reader {path} finds no caption likely, as it only answers questions; name one that writes captions"
        )
    return judge


def name_of(chooser: Chooser) -> str:
    """The name of a chooser in manifests and protocols."""
    return chooser.clip_name or chooser.name


class BestOf:
    """The best of `count` candidates for each caption, as they come.

    Attributes:
        scores: of each candidate with its caption, a list an image: the cosine, or by a reader log p(caption | image).
    """

    def __init__(self, scorer: Chooser | Reader, captions: Sequence[str], count: int) -> None:
        if count < 2:
            raise InputError(f"the best of {count} is no choice; sample 2 or more candidates")
        scorer = JudgingReader(scorer) if isinstance(scorer, Reader) else scorer
        self.count, self._scorer, self._captions = count, scorer, list(captions)
        self._text_ND: Array | None = None
        if not isinstance(scorer, JudgingReader):
            row = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
            self._text_ND = unit_rows(scorer.text_features(list(row)))[[row[caption] for caption in captions]]
        self._images: list[ImageArray] = []
        self.scores: list[list[float]] = []

    def hear(self, images_BHWC: ImageArray) -> None:
        """Takes the next images: all candidates of the first caption, then of the second, and so on."""
        heard = sum(map(len, self.scores))
        rows = [(heard + k) // self.count for k in range(len(images_BHWC))]
        for image, row, score in zip(images_BHWC, rows, self._agreement(images_BHWC, rows), strict=True):
            if row == len(self.scores):
                self.scores.append([])
                self._images.append(image)
            if score > max(self.scores[-1], default=-np.inf):
                self._images[-1] = image
            self.scores[-1].append(score)

    def _agreement(self, images_BHWC: ImageArray, rows: Sequence[int]) -> list[float]:
        """How well each image fits the caption at its row."""
        if isinstance(self._scorer, JudgingReader):
            return self._scorer.agreement(images_BHWC, [self._captions[row] for row in rows]).tolist()
        assert self._text_ND is not None
        return [
            float(one @ self._text_ND[k])
            for one, k in zip(unit_rows(self._scorer.features(images_BHWC)), rows, strict=True)
        ]

    def chosen(self) -> list[int]:
        """The best candidate of each image whose candidates are all there, the first of equals."""
        return [scores.index(max(scores)) for scores in self.scores if len(scores) == self.count]

    def images(self) -> ImageArray:
        """uint8 [N, H, W, 3], one for each that `chosen` names."""
        whole = len(self.chosen())
        return np.stack(self._images)[:whole]
