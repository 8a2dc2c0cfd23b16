"""Scores of a training run on `val`, and the best weights by one of them. Never on another split: select on val,
report test once.

The captions are fixed and so is the noise of each, so the scores of two steps differ by the weights alone. They are of few
images: good for choosing among the steps of one run, and for nothing else; `t2i eval score` measures.
"""

import difflib
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
from t2i.text import TextEncoder, TextFeatures
from t2i.training.run import Run

LOWER = ("bits_per_token", "caption_nll", "kid")  # of which less is better; their names may go on after a hyphen
CHUNK = 200  # images in memory at once


def open_held_out(data: DataConfig, split: str, n: int, bare: bool = False) -> Dataset | None:
    """Returns up to n images of a split; None where it cannot be opened, which is said of `val`: much data has no `heldout`."""
    try:
        return open_dataset(data.address, split, data.view(n, bare))
    except InputError as error:
        if split == "val":
            warnings.warn(f"there is no val to draw and score in training: {error}", stacklevel=2)
        return None


def open_held_out_splits(data: DataConfig, n: int, bare: bool = False) -> dict[str, Dataset]:
    """Returns up to n images of `val` and of `heldout`, of those that the data has."""
    opened = {split: open_held_out(data, split, n, bare) for split in ("val", "heldout")}
    return {split: dataset for split, dataset in opened.items() if dataset is not None}


def oracle_scores(images_BHWC: ImageArray, captions: Sequence[str]) -> dict[str, float]:
    """Returns the share of images that show what their caption asks for, by aspect; empty for other data than shapes."""
    specs = [spec for spec in map(parse, captions) if spec is not None]
    if len(specs) < len(captions) or not specs:
        return {}
    return {name: float(flags.mean()) for name, flags in judge(read(images_BHWC), specs).items()}


def oracle_names(captions: Sequence[str]) -> list[str]:
    """The names of `oracle_scores`."""
    return list(ATTRIBUTES) if all(map(parse, captions)) else []


class HeldOut:
    """Images of val and a caption of each, which generated images are scored by.

    Args:
        rows: of the dataset, one a caption.
        extractor: its address, as `open_extractor` takes it; None: the embedded one, where the captions are of drawn shapes.

    Raises:
        InputError: there is no such extractor.
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
        self._drawn = oracle_names(captions)
        self._eye: Extractor | None = None
        if extractor is not None and len(captions) > 1:
            self._eye = open_extractor(extractor, device=str(device))
        elif self._drawn and len(captions) > 1:  # of one image there is no distribution
            self._eye = open_extractor("embedded")
        self._real: Features | None = None
        self._text: Features | None = None

    @property
    def names(self) -> list[str]:
        """Names of the scores, without N: `strict`, `kid-shapes`, `clip-aligned`, ..."""
        if self._eye is None:
            return self._drawn
        kid = "kid" if self._eye.digest() == FID_INCEPTION_DIGEST else f"kid-{self._eye.name}"
        clip = self._eye.clip_name
        return [*self._drawn, kid, *(["clip-" + clip.removeprefix("clip-")] if clip else [])]

    def scores(self, images_BHWC: ImageArray) -> dict[str, float]:
        """Returns the scores of one generated image for each caption. The images of val are read the first time."""
        found = oracle_scores(images_BHWC, self.captions)
        if self._eye is None:
            return found
        if self._real is None:
            self._real = self._look()
        fake = self._eye.features(images_BHWC)
        values = [kernel_distance(fake, self._real)]
        if self._eye.clip_name is not None:
            if self._text is None:
                self._text = cast(ImageTextExtractor, self._eye).text_features(self.captions)
            values.append(clip_score(fake, self._text).value)
        return found | dict(zip(self.names[len(found) :], values, strict=True))

    def _look(self) -> Features:
        assert self._eye is not None
        try:
            return np.concatenate([
                self._eye.features(self._dataset.images(self._rows[start : start + CHUNK]))
                for start in range(0, len(self._rows), CHUNK)
            ])  # fmt: skip
        except BrokenImage as error:
            raise InputError(f"{error}; repair or remove it, then resume") from error


class Validation(NamedTuple):
    """Held-out captions, the scores they are judged by, and their text features."""

    held_out: HeldOut
    text: TextFeatures


def prepare_validation(
    data: DataConfig, n: int, extractor: str | None, encoder: TextEncoder, run: Run
) -> Validation | None:
    """Returns up to `n` captions of `val`, one of each image; None where the data has no such split."""
    dataset = open_held_out(data, "val", n)
    run.identity.keep_held_out("val", dataset)
    if dataset is None:
        return None
    prompts = [options[0] for options in dataset.captions]
    held_out = HeldOut(dataset, prompts, range(len(dataset)), extractor, run.device)
    return Validation(held_out, encoder.encode(prompts))


class Best:
    """The weights with the best validation score so far: what is sampled from.

    Args:
        run: whose manifests tell which weights these are.
        weights: gives those of now, ready for a model of the same config.
        metric: the score's name.
        names: of all scores of a validation; None: the data has no val, which is warned of.

    Raises:
        InputError: the metric is not among them.
    """

    def __init__(
        self, run: Run, weights: Callable[[], Mapping[str, Tensor]], metric: str, names: Iterable[str] | None
    ) -> None:
        known = None if names is None else list(names)
        if known is None and run.is_main:
            warnings.warn(f"the data has no split val, so best_metric {metric} chooses nothing", stacklevel=3)
        if known == []:
            raise InputError(
                f"best_metric {metric!r} cannot be scored, as nothing here sees images like those of val; set "
                "validation_extractor to clip:FOLDER, dinov2:FOLDER or inception:FILE, or best_metric=null"
            )
        if known and metric not in known:
            near = difflib.get_close_matches(metric, known, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            choice = f"choose from {', '.join(known)}"
            raise InputError(f"best_metric {metric!r} is no score of a validation of this run{hint}; {choice}")
        self.metric = metric
        self._sign = 1.0 if metric.split("-")[0] in LOWER else -1.0
        self._run, self._weights_now = run, weights
        self._weights: dict[str, Tensor] | None = None
        self.cost, self.step, self.misses = float("inf"), 0, 0

    def hear(self, found: Mapping[str, float]) -> bool:
        """Keeps the weights of now if this validation is better than all before it; returns whether it is."""
        cost = self._sign * found[self.metric]
        if cost < self.cost:
            self.cost, self.step, self.misses = cost, self._run.step, 0
            self._weights = {name: tensor.clone() for name, tensor in self._weights_now().items()}
            self.tell()
            return True
        self.misses += 1
        return False

    def tell(self) -> None:
        """Has the manifests of the run name the score, its value and the step."""
        self._run.extra["best"] = {"metric": self.metric, "value": self._sign * self.cost, "step": self.step}

    def state_tensors(self) -> dict[str, Tensor]:
        """Before the first validation, the weights as they are."""
        return dict(self._weights_now()) if self._weights is None else self._weights

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self._weights = {name: tensor.clone() for name, tensor in tensors.items()}


class Patience:
    """The bookkeeping of `Best`, which is no weight."""

    def __init__(self, best: Best) -> None:
        self._best = best

    def state_tensors(self) -> dict[str, Tensor]:
        # the largest float means "none yet": a value that is not finite is never saved
        cost = min(self._best.cost, float(np.finfo(np.float64).max))
        counts = {"misses": self._best.misses, "step": self._best.step}
        return {"cost": torch.tensor(cost, dtype=torch.float64)} | {k: torch.tensor(v) for k, v in counts.items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        # before there was a choice of scores, it was the NLL, and its step was not kept
        self._best.cost = float(tensors["cost" if "cost" in tensors else "nll"])
        self._best.misses, self._best.step = int(tensors["misses"]), int(tensors.get("step", 0))
        if self._best.step:
            self._best.tell()


def keep_best(
    run: Run, weights: Callable[[], Mapping[str, Tensor]], metric: str | None, names: Iterable[str] | None
) -> Best | None:
    """Registers the best weights as parts of the run's checkpoints; None where no metric is named. Before `resume`.

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
    run: Run, found: Mapping[str, float], best: Best | None, split: str = "val", **beside: float
) -> None:
    """Writes the scores of a validation to the journal and on the console, and keeps the weights if they are the best.

    Call it on every rank, with the same scores.

    Args:
        found: scores on `split`, by name.
        best: None: no weights are kept, or the split is another than val.
        beside: what was measured with them and is no score.
    """
    run.record({f"{split}_{name}": value for name, value in found.items()} | beside)
    if split == "val":
        run.show_samples()
    better = best is not None and best.hear(found)
    if not found:
        return
    shown = "  ".join(f"{name} {value:.3g}" for name, value in found.items())
    run.say(f"step {run.step}, {split}: {shown}" + ("  (the best so far)" if better else ""))
