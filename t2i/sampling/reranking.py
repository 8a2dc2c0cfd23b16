"""Selects the candidate that fits its caption best, by the scores of an image-text encoder or of a reader."""

from collections.abc import Iterable, Sequence

import numpy as np

from t2i.errors import InputError
from t2i.extractors import ImageTextExtractor, open_image_text
from t2i.families import family_of
from t2i.files import at_home
from t2i.images import ImageArray
from t2i.metrics.statistics import Array, unit_rows
from t2i.reader.judging import JudgingReader, open_judge
from t2i.reader.reading import Reader
from t2i.seeding import derive


def candidate_seed(seed: int, k: int) -> int:
    """Returns the seed of candidate k of an image; candidate 0 is the image without re-ranking."""
    return derive(seed, "candidate", k) if k else seed


Chooser = ImageTextExtractor | JudgingReader


def open_chooser(address: str | None, device: str) -> Chooser:
    """Opens the scorer of candidates: `reader:RUN`, a run of `t2i train reader`, or an address of `open_image_text`.

    Raises:
        InputError: there is no such scorer, or it is a reader that does not write captions.
    """
    path = at_home(str(address).removeprefix("reader:"))
    if address is None or not str(address).startswith("reader:"):
        if address is None or not (path / "config.yaml").is_file() or family_of(path) != "reader":
            return open_image_text(address, device)
    judge = open_judge(path, device)
    if not judge.reader.writes:
        raise InputError(
            f"reader {path} only answers questions and cannot score captions; name one that writes captions"
        )
    return judge


def name_of(chooser: Chooser) -> str:
    """Returns the name of a scorer in manifests and protocols."""
    return chooser.clip_name or chooser.name


class BestOf:
    """Keeps the best of `count` candidates for each caption, batch by batch.

    Attributes:
        scores: for each image the scores of its candidates: cosine similarities, or log p(caption | image) of a reader.
    """

    def __init__(self, scorer: Chooser | Reader, captions: Sequence[str], count: int) -> None:
        if count < 2:
            raise InputError(f"cannot choose the best of {count}; sample 2 or more candidates")
        scorer = JudgingReader(scorer) if isinstance(scorer, Reader) else scorer
        self.count, self._scorer, self._captions = count, scorer, list(captions)
        self._text_ND: Array | None = None
        if not isinstance(scorer, JudgingReader):
            row = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
            self._text_ND = unit_rows(scorer.text_features(list(row)))[[row[caption] for caption in captions]]
        self._images: list[ImageArray] = []
        self.scores: list[list[float]] = []

    def add(self, images_BHWC: ImageArray) -> None:
        """Adds the next images: all candidates of the first caption, then of the second, and so on."""
        start = sum(map(len, self.scores))
        rows = [(start + k) // self.count for k in range(len(images_BHWC))]
        for image, row, score in zip(images_BHWC, rows, self._agreement(images_BHWC, rows), strict=True):
            if row == len(self.scores):
                self.scores.append([])
                self._images.append(image)
            if score > max(self.scores[-1], default=-np.inf):
                self._images[-1] = image
            self.scores[-1].append(score)

    def _agreement(self, images_BHWC: ImageArray, rows: Sequence[int]) -> list[float]:
        """Returns the score of each image with the caption at its row."""
        if isinstance(self._scorer, JudgingReader):
            return self._scorer.agreement(images_BHWC, [self._captions[row] for row in rows]).tolist()
        assert self._text_ND is not None
        return [
            float(one @ self._text_ND[k])
            for one, k in zip(unit_rows(self._scorer.features(images_BHWC)), rows, strict=True)
        ]

    def chosen(self) -> list[int]:
        """Returns the index of the best candidate for each image whose candidates are complete; the first of equals."""
        return [scores.index(max(scores)) for scores in self.scores if len(scores) == self.count]

    def images(self) -> ImageArray:
        """Returns the images of `chosen`, uint8 [N, H, W, 3], N >= 1."""
        return np.stack(self._images)[: len(self.chosen())]


def keep_best(
    batches: Iterable[ImageArray], scorer: Chooser | Reader | None, captions: Sequence[str], count: int
) -> tuple[list[ImageArray], list[int], list[list[float]]]:
    """Selects the best of `count` candidates for each caption.

    Args:
        batches: all candidates of the first caption, then of the second, and so on; may end early.
        scorer: None: the scorer that ships with the package.

    Returns:
        The selected images as at most one batch, their positions among all candidates, and the scores of the candidates.
    """
    best = BestOf(scorer or open_image_text(None), captions, count)
    for images_BHWC in batches:
        best.add(images_BHWC)
    positions = [i * count + k for i, k in enumerate(best.chosen())]
    return [best.images()] if positions else [], positions, best.scores[: len(positions)]
