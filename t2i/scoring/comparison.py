"""Scores side by side: which of them compare, and by how much two models differ on the same captions.

A .safetensors file beside the score file has the score of every image: `prompts` int64 [N], a hash of each caption, and for
each score that is a mean over images its name, float32 [N], NaN where an image is not counted.
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
_BLOCK = 2**22  # random numbers at once


@dataclass
class Samples:
    """The score of every image of a scoring."""

    prompts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    values: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def take(self, images: Images, scores: Sequence[Score]) -> None:
        """Keeps the samples of scores that have one for each of these images."""
        self.prompts = np.array([key_of(caption) for caption in images.captions or images.ids], np.int64)
        known = {score.name: score.samples for score in scores if score.samples is not None}
        self.values = {name: samples for name, samples in known.items() if len(samples) == len(images)}

    def write(self, path: Path) -> None:
        """Raises InputError: the file cannot be written."""
        values = {name: its.astype(np.float32) for name, its in self.values.items()}
        write_tensors(path, {PROMPTS: self.prompts, **values}, {})


def beside(path: Path) -> Path:
    """The path of the samples of a score file."""
    return path.with_suffix(".safetensors")


def read_samples(path: Path) -> Samples:
    """The samples of a score file; none where it has none.

    Raises:
        InputError: the file is damaged.
    """
    place = beside(path)
    if not place.exists():
        return Samples()
    try:
        open_regular(place).close()
        tensors = load_file(place)
        return Samples(tensors.pop(PROMPTS), {name: its.astype(np.float64) for name, its in tensors.items()})
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(f"{place} is damaged ({error}); score again, or delete it") from error


class Difference(NamedTuple):
    """The second model's mean less the first's, over the same captions."""

    value: float
    interval: tuple[float, float]  # 95 %
    p: float  # two-sided
    count: int  # images


def paired_difference(
    first: NDArray[np.float64], second: NDArray[np.float64], groups: NDArray[np.int64] | None = None, seed: int = 0
) -> Difference:
    """Paired bootstrap of the mean of second - first, 10,000 draws of whole prompts (percentile interval).

    Args:
        first, second: [N] of the same captions; NaN in both is left out.
        groups: [N] the prompt of each; None: each its own.

    Raises:
        ValueError: nothing is left, or only one of the two is NaN somewhere.
    """
    counted = ~np.isnan(first)
    if not counted.any() or not np.array_equal(counted, ~np.isnan(second)):
        raise ValueError("the two are not of the same images")
    x = (second - first)[counted]
    index = np.arange(len(x)) if groups is None else group_index(groups[counted])
    sums, sizes = np.bincount(index, weights=x), np.bincount(index).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, DRAWS, step := max(1, _BLOCK // len(sums))):
        drawn = rng.integers(0, len(sums), (min(step, DRAWS - start), len(sums)))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    bootstrap = np.concatenate(means)
    beyond = min((bootstrap <= 0).sum(), (bootstrap >= 0).sum())
    low, high = np.quantile(bootstrap, (0.025, 0.975)).tolist()
    return Difference(float(x.mean()), (low, high), min(1.0, 2 * (int(beyond) + 1) / (DRAWS + 1)), len(x))


@dataclass(frozen=True)
class Line:
    """One score in all files.

    Attributes:
        scores: one a file; None: that file has none.
        differing: for each file but the first, where its protocol differs from the first's.
        differences: for each file but the first; None: the images do not pair.
        why: the reason why they do not.
    """

    name: str
    scores: list[Score | None]
    differing: list[list[str]]
    differences: list[Difference | None]
    why: list[str]


def compare(paths: Sequence[Path]) -> list[Line]:
    """All scores of several files, each file against the first.

    Raises:
        InputError: fewer than two files, one that is no score file, or no score that two of them have.
    """
    if len(paths) < 2:
        raise InputError(f"{len(paths)} score file compares with nothing; name two or more")
    every = [{score.name: score for score in read_scores(path)} for path in paths]
    samples = [read_samples(path) for path in paths]
    names = list(dict.fromkeys(name for found in every for name in found))
    if not any(sum(name in found for found in every) > 1 for name in names):
        raise InputError(
            f"no score is in two of these files: {paths[0]} has {', '.join(every[0])[:200]}; {paths[1]} has "
            f"{', '.join(every[1])[:200]}"
        )
    return [_line(name, [found.get(name) for found in every], samples) for name in names]


def _line(name: str, scores: list[Score | None], samples: Sequence[Samples]) -> Line:
    line = Line(name, scores, [], [], [])
    first = scores[0]
    for score, its in zip(scores[1:], samples[1:], strict=True):
        if first is None or score is None:
            found, why, differing = None, "", []
        else:
            differing = differences(first, score)
            found, why = _paired(name, samples[0], its)
        line.differing.append(differing)
        line.differences.append(found)
        line.why.append(why)
    return line


def _paired(name: str, first: Samples, second: Samples) -> tuple[Difference | None, str]:
    if not first.values or not second.values:
        return None, "there is no .safetensors file of the score of each image"
    if name not in first.values or name not in second.values:
        return None, "one number of all images"
    a, b = (np.argsort(samples.prompts, kind="stable") for samples in (first, second))
    prompts = first.prompts[a]
    if not np.array_equal(prompts, second.prompts[b]):
        return None, "of other captions"
    try:
        return paired_difference(first.values[name][a], second.values[name][b], prompts), ""
    except ValueError:
        return None, "of other captions"
