"""Compares score files: differences of their protocols, and paired differences of two models on the same captions.

A .safetensors file beside a score file has the score of every image: `prompts` int64 [N], a hash of each caption, and a
float32 [N] tensor for each score that is a mean over images, with NaN for images that do not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from t2i.errors import InputError
from t2i.files import open_regular
from t2i.metrics.intervals import group_index
from t2i.metrics.score import Score, differences, read_scores
from t2i.scoring.images.collection import Images
from t2i.seeding import key_of
from t2i.tensors import write_tensors

PROMPTS = "prompts"
DRAWS = 10_000
_BLOCK = 2**22  # random numbers in memory


@dataclass
class Samples:
    """Scores of single images."""

    prompts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    values: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def take(self, images: Images, scores: Sequence[Score]) -> None:
        """Keeps the samples of scores that have one sample for each image."""
        self.prompts = np.array([key_of(caption) for caption in images.captions or images.ids], np.int64)
        known = {score.name: score.samples for score in scores if score.samples is not None}
        self.values = {name: samples for name, samples in known.items() if len(samples) == len(images)}

    def write(self, path: Path) -> None:
        """Writes a .safetensors file; raises InputError if that fails."""
        values = {name: samples.astype(np.float32) for name, samples in self.values.items()}
        write_tensors(path, {PROMPTS: self.prompts, **values}, {})


def beside(path: Path) -> Path:
    """Returns the path of the samples of a score file."""
    return path.with_suffix(".safetensors")


def read_samples(path: Path) -> Samples:
    """Reads the samples of a score file; empty if there are none.

    Raises:
        InputError: the file is damaged.
    """
    place = beside(path)
    if not place.exists():
        return Samples()
    try:
        open_regular(place).close()
        tensors = load_file(place)
        return Samples(tensors.pop(PROMPTS), {name: samples.astype(np.float64) for name, samples in tensors.items()})
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(f"{place} is damaged ({error}); score again, or delete it") from error


class Difference(NamedTuple):
    """Mean of the second model minus mean of the first, over the same captions."""

    value: float
    interval: tuple[float, float]  # 95 %
    p: float  # two-sided
    count: int  # images


def paired_difference(
    first: NDArray[np.float64], second: NDArray[np.float64], groups: NDArray[np.int64] | None = None, seed: int = 0
) -> Difference:
    """Computes the mean of second - first with a paired bootstrap: 10,000 draws of prompts, percentile interval.

    Args:
        first, second: [N] scores on the same captions; rows with NaN in both are not counted.
        groups: [N] the prompt of each row; None: all prompts differ.

    Raises:
        ValueError: no row is left, or a row has NaN in only one of the two.
    """
    counted = ~np.isnan(first)
    if not counted.any() or not np.array_equal(counted, ~np.isnan(second)):
        raise ValueError("the two score different images")
    x = (second - first)[counted]
    index = np.arange(len(x)) if groups is None else group_index(groups[counted])
    sums, sizes = np.bincount(index, weights=x), np.bincount(index).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, DRAWS, step := max(1, _BLOCK // len(sums))):
        resamples = rng.integers(0, len(sums), (min(step, DRAWS - start), len(sums)))
        means.append(sums[resamples].sum(axis=1) / sizes[resamples].sum(axis=1))
    bootstrap = np.concatenate(means)
    beyond = min((bootstrap <= 0).sum(), (bootstrap >= 0).sum())
    low, high = np.quantile(bootstrap, (0.025, 0.975)).tolist()
    return Difference(float(x.mean()), (low, high), min(1.0, 2 * (int(beyond) + 1) / (DRAWS + 1)), len(x))


@dataclass(frozen=True)
class Line:
    """One score in all files.

    Attributes:
        scores: the score in each file; None: the file does not have it.
        differing: for each file but the first: differences of its protocol from that of the first.
        differences: for each file but the first; None: the images do not pair.
        why: for each file but the first: the reason why they do not pair.
    """

    name: str
    scores: list[Score | None]
    differing: list[list[str]]
    differences: list[Difference | None]
    why: list[str]


def compare(paths: Sequence[Path]) -> list[Line]:
    """Compares all scores of several files with those of the first file.

    Raises:
        InputError: there are fewer than two files, one is not a score file, or no two of them share a score.
    """
    if len(paths) < 2:
        raise InputError(f"got {len(paths)} score file to compare; name two or more")
    files = [{score.name: score for score in read_scores(path)} for path in paths]
    samples = [read_samples(path) for path in paths]
    names = list(dict.fromkeys(name for scores in files for name in scores))
    if not any(sum(name in scores for scores in files) > 1 for name in names):
        raise InputError(
            f"no score is in two of these files: {paths[0]} has {', '.join(files[0])[:200]}; {paths[1]} has "
            f"{', '.join(files[1])[:200]}"
        )
    return [_line(name, [scores.get(name) for scores in files], samples) for name in names]


def _line(name: str, scores: list[Score | None], samples: Sequence[Samples]) -> Line:
    line = Line(name, scores, [], [], [])
    first = scores[0]
    for score, score_samples in zip(scores[1:], samples[1:], strict=True):
        difference, why, differing = None, "", list[str]()
        if first is not None and score is not None:
            differing = differences(first, score)
            difference, why = _paired(name, samples[0], score_samples)
        line.differing.append(differing)
        line.differences.append(difference)
        line.why.append(why)
    return line


def _paired(name: str, first: Samples, second: Samples) -> tuple[Difference | None, str]:
    if not first.values or not second.values:
        return None, "no .safetensors file with the scores of single images"
    if name not in first.values or name not in second.values:
        return None, "one number for all images"
    a, b = (np.argsort(samples.prompts, kind="stable") for samples in (first, second))
    prompts = first.prompts[a]
    if not np.array_equal(prompts, second.prompts[b]):
        return None, "other captions"
    try:
        return paired_difference(first.values[name][a], second.values[name][b], prompts), ""
    except ValueError:
        return None, "other captions"
