"""Scores a training run on `val` and keeps the best weights by one of the scores. No other split may choose weights.

The captions and the noise of each are fixed, so the scores of two steps differ by the weights alone. They are computed on few
images and serve only to choose among the steps of one run; use `t2i eval score` to measure a model.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from t2i.data import DataConfig, Dataset, open_dataset
from t2i.data.shapes.captions import parse
from t2i.data.shapes.oracle import ATTRIBUTES, judge, read
from t2i.errors import InputError
from t2i.extractors import Extractor, ImageTextExtractor, open_extractor
from t2i.images import BrokenImage, ImageArray
from t2i.metrics import Features
from t2i.metrics.clip_score import clip_score
from t2i.metrics.kernel import kernel_distance
from t2i.metrics.score import FID_INCEPTION_DIGEST
from t2i.names import nearest, number
from t2i.text import TextEncoder, TextFeatures
from t2i.training.run import Run

LOWER = ("bits_per_token", "caption_nll", "kid")  # scores of which lower is better; a name may continue after a hyphen
CHUNK = 200  # images in memory at a time


def open_held_out(data: DataConfig, split: str, n: int, bare: bool = False) -> Dataset | None:
    """Returns up to n images of a split; None if it cannot be opened. Warns only about `val`, as most data has no `heldout`."""
    try:
        return open_dataset(data.address, split, data.view(n, bare))
    except InputError as error:
        if split == "val":
            warnings.warn(f"no validation during training, as the split val cannot be opened: {error}", stacklevel=2)
        return None


def open_held_out_splits(data: DataConfig, n: int, bare: bool = False) -> dict[str, Dataset]:
    """Returns up to n images of each of the splits `val` and `heldout` that the data has."""
    opened = {split: open_held_out(data, split, n, bare) for split in ("val", "heldout")}
    return {split: dataset for split, dataset in opened.items() if dataset is not None}


def oracle_scores(images_BHWC: ImageArray, captions: Sequence[str]) -> dict[str, float]:
    """Returns the share of images that match their caption, by attribute; empty for data other than rendered shapes."""
    specs = [spec for spec in map(parse, captions) if spec is not None]
    if len(specs) < len(captions) or not specs:
        return {}
    return {name: float(flags.mean()) for name, flags in judge(read(images_BHWC), specs).items()}


def oracle_names(captions: Sequence[str]) -> list[str]:
    """Returns the names of the `oracle_scores` of these captions."""
    return list(ATTRIBUTES) if all(map(parse, captions)) else []


class HeldOut:
    """Captions and images of val that generated images are scored against.

    Args:
        rows: the row of the dataset that each caption belongs to.
        extractor: address for `open_extractor`; None: the embedded one if the captions describe rendered shapes.

    Raises:
        InputError: the extractor cannot be opened.
    """

    def __init__(
        self,
        dataset: Dataset,
        captions: Sequence[str],
        rows: Sequence[int],
        extractor: str | None,
        device: torch.device,
    ) -> None:
        self.captions = captions
        self._dataset, self._rows = dataset, rows
        self._oracle_names = oracle_names(captions)
        self._extractor: Extractor | None = None
        if extractor is not None and len(captions) > 1:  # KID needs at least two images
            self._extractor = open_extractor(extractor, device=str(device))
        elif self._oracle_names and len(captions) > 1:
            self._extractor = open_extractor("embedded")
        self._real: Features | None = None
        self._text: Features | None = None

    @property
    def names(self) -> list[str]:
        """Names of the scores, without the number of images: `strict`, `kid-shapes`, `clip-aligned`, ..."""
        if self._extractor is None:
            return self._oracle_names
        kid = "kid" if self._extractor.digest() == FID_INCEPTION_DIGEST else f"kid-{self._extractor.name}"
        clip = self._extractor.clip_name
        return [*self._oracle_names, kid, *(["clip-" + clip.removeprefix("clip-")] if clip else [])]

    def scores(self, images_BHWC: ImageArray) -> dict[str, float]:
        """Returns the scores of one generated image per caption. The first call reads the images of val."""
        scores = oracle_scores(images_BHWC, self.captions)
        if self._extractor is None:
            return scores
        if self._real is None:
            self._real = self._real_features(self._extractor)
        fake = self._extractor.features(images_BHWC)
        values = [kernel_distance(fake, self._real)]
        if self._extractor.clip_name is not None:
            if self._text is None:
                self._text = cast(ImageTextExtractor, self._extractor).text_features(self.captions)
            values.append(clip_score(fake, self._text).value)
        return scores | dict(zip(self.names[len(scores) :], values, strict=True))

    def _real_features(self, extractor: Extractor) -> Features:
        try:
            return np.concatenate([
                extractor.features(self._dataset.images(self._rows[start : start + CHUNK]))
                for start in range(0, len(self._rows), CHUNK)
            ])  # fmt: skip
        except BrokenImage as error:
            raise InputError(f"{error}; repair or remove it, then resume") from error


class Validation(NamedTuple):
    """Held-out captions that images are sampled for, and their text features."""

    held_out: HeldOut
    text: TextFeatures


def prepare_validation(
    data: DataConfig, n: int, extractor: str | None, encoder: TextEncoder, run: Run
) -> Validation | None:
    """Returns up to `n` captions of `val`, one per image; None if the data has no such split."""
    dataset = open_held_out(data, "val", n)
    run.identity.keep_held_out("val", dataset)
    if dataset is None:
        return None
    prompts = [options[0] for options in dataset.captions]
    held_out = HeldOut(dataset, prompts, range(len(dataset)), extractor, run.device)
    return Validation(held_out, encoder.encode(prompts))


class Best:
    """The weights with the best validation score so far, which are used for sampling.

    Args:
        run: its manifests record the score and the step of these weights.
        weights: returns the current weights.
        metric: name of the score.
        names: names of all validation scores; None if the data has no val, which causes a warning.

    Raises:
        InputError: the metric is not among the names.
    """

    def __init__(
        self, run: Run, weights: Callable[[], Mapping[str, Tensor]], metric: str, names: Iterable[str] | None
    ) -> None:
        known = None if names is None else list(names)
        if known is None and run.is_main:
            warnings.warn(f"the data has no split val, so best_metric {metric} has no effect", stacklevel=3)
        if known == []:
            raise InputError(
                f"best_metric {metric!r} cannot be computed, as the embedded extractor only reads rendered shapes; set "
                "validation_extractor to clip:FOLDER, dinov2:FOLDER or inception:FILE, or best_metric=null"
            )
        if known and metric not in known:
            choice = f"choose from {', '.join(known)}"
            raise InputError(
                f"best_metric {metric!r} is not a validation score of this run{nearest(metric, known)}; {choice}"
            )
        self.metric = metric
        self._sign = 1.0 if metric.split("-")[0] in LOWER else -1.0
        self._run, self._weights_now = run, weights
        self._weights: dict[str, Tensor] | None = None
        self.cost, self.step, self.misses = float("inf"), 0, 0

    def update(self, scores: Mapping[str, float]) -> bool:
        """Keeps the current weights if this validation is better than all before it; returns True if it is."""
        cost = self._sign * scores[self.metric]
        if cost < self.cost:
            self.cost, self.step, self.misses = cost, self._run.step, 0
            self._weights = {name: tensor.clone() for name, tensor in self._weights_now().items()}
            self.record()
            return True
        self.misses += 1
        return False

    def record(self) -> None:
        """Adds the score, its value and the step to the manifests of the run."""
        self._run.extra["best"] = {"metric": self.metric, "value": self._sign * self.cost, "step": self.step}

    def state_tensors(self) -> dict[str, Tensor]:
        """Returns the best weights; before the first validation, the current ones."""
        return dict(self._weights_now()) if self._weights is None else self._weights

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self._weights = {name: tensor.clone() for name, tensor in tensors.items()}


class Patience:
    """The part of a checkpoint with the bookkeeping of `Best`: best score, its step, validations without improvement."""

    def __init__(self, best: Best) -> None:
        self._best = best

    def state_tensors(self) -> dict[str, Tensor]:
        # the largest float stands for "none yet", as checkpoints hold finite values only
        cost = min(self._best.cost, float(np.finfo(np.float64).max))
        counts = {"misses": self._best.misses, "step": self._best.step}
        return {"cost": torch.tensor(cost, dtype=torch.float64)} | {k: torch.tensor(v) for k, v in counts.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        # old checkpoints hold the NLL, the only score then, and no step
        self._best.cost = float(tensors["cost" if "cost" in tensors else "nll"])
        self._best.misses, self._best.step = int(tensors["misses"]), int(tensors.get("step", 0))
        if self._best.step:
            self._best.record()


def keep_best(
    run: Run, weights: Callable[[], Mapping[str, Tensor]], metric: str | None, names: Iterable[str] | None
) -> Best | None:
    """Registers the best weights as parts of the run's checkpoints, before `resume`; returns None if `metric` is None.

    Raises:
        InputError: as `Best`.
    """
    if metric is None:
        return None
    best = Best(run, weights, metric, names)
    run.register("best", best)
    run.register("patience", Patience(best))
    return best


def note_validation(
    run: Run, scores: Mapping[str, float], best: Best | None, n: int, split: str = "val", **others: float
) -> None:
    """Writes the scores of a validation to the journal and the console, and keeps the weights if they are the best.

    Call it on every rank, with the same scores.

    Args:
        scores: scores on `split`, by name.
        best: None if no weights are kept or the split is not val.
        n: number of images that were scored, since a recall among few is high.
        others: further measurements for the journal.
    """
    run.record({f"{split}_{name}": value for name, value in scores.items()} | others)
    if split == "val":
        run.show_samples()
    better = best is not None and best.update(scores)
    if not scores:
        return
    shown = "  ".join(f"{name} {number(value)}" for name, value in scores.items())
    run.say(f"step {run.step}, {split}, N {n:,}: {shown}" + ("  (best so far)" if better else ""))
