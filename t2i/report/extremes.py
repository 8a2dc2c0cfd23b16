"""Selects the best and the worst images of a run, by a score file if it has the scores of single images."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.errors import InputError
from t2i.images import ImageArray
from t2i.metrics.score import ScoreProtocol
from t2i.report.judged import Judged, Pool, judged
from t2i.report.runs import ShownRun
from t2i.scoring.comparison import read_samples
from t2i.scoring.images.collection import Images, dataset_images
from t2i.scoring.options import ScoreOptions
from t2i.scoring.trial import Trial
from t2i.seeding import key_of

EXTREMES = 6  # number of best images, and of worst images


class Extremes(NamedTuple):
    """The best images of a run, best first, and its worst images, worst first."""

    among: str  # number and data of the images, and the name of the score
    best: list[Judged]
    worst: list[Judged]


def extremes(run: ShownRun, pool: Pool, score: str, score_files: bool) -> Extremes:
    """Returns the best and the worst images among those of a score file, or else among those of the pool.

    Args:
        score: name of the pool's score.
        score_files: looks for a score file of the run first.
    """
    if score_files and (extremes_of_file := _of_score_file(run)) is not None:
        return extremes_of_file
    by = "PSNR" if run.pipe is None else score
    among = f"of {len(pool.generated):,} for {pool.captioned.name} {pool.captioned.split}, by {by}"
    return _chosen(among, pool.scores, pool.captioned, lambda rows: [pool.generated[k] for k in rows])


def _chosen(
    among: str, scores: NDArray[np.float64], captioned: Images, images_at: Callable[[Sequence[int]], list[ImageArray]]
) -> Extremes:
    """Selects extremes by scores. If there are few images, each is either a best or a worst one."""
    order = np.argsort(-scores, kind="stable").tolist()
    best = order[: min(EXTREMES, -(-len(order) // 2))]
    worst = order[len(best) :][::-1][:EXTREMES]
    captions = captioned.captions or []
    rows = best + worst
    images = judged(images_at(rows), [captions[k] for k in rows], [float(scores[k]) for k in rows])
    return Extremes(among, images[: len(best)], images[len(best) :])


def _of_score_file(run: ShownRun) -> Extremes | None:
    """Samples the extremes of the CLIP score with the most images again, if its run, data and settings are unchanged."""
    best: Extremes | None = None
    most = 0
    for file in run.scores:
        with suppress(InputError):  # its data is missing, or its samples are damaged
            samples = read_samples(file.path)
            for score in file.scores:
                values, protocol = samples.values.get(score.name), score.protocol
                if protocol.metric != "clip" or values is None or len(values) <= most or np.isnan(values).any():
                    continue
                if (trial := _same_trial(run, protocol, samples.prompts)) is not None:
                    name = score.name.rpartition("@")[0]
                    among = f"of {len(values):,} for {protocol.data} {protocol.split}, by {name}"
                    best = _chosen(among, values, trial.captioned, trial.images_at)
                    most = len(values)
    return best


def _same_trial(run: ShownRun, protocol: ScoreProtocol, prompts: NDArray[np.int64]) -> Trial | None:
    """Returns the trial whose images have this score, or None if weights, data or settings have changed since."""
    if protocol.split is None or protocol.seed is None or run.pipe is None:
        return None
    captioned = dataset_images(protocol.data, protocol.split, protocol.n_fake, run.view)
    trial = Trial(run.folder, run.pipe, captioned, ScoreOptions(target=str(run.folder), seed=protocol.seed), None)
    same = np.array_equal([key_of(caption) for caption in captioned.captions or []], prompts)
    return trial if same and trial.marked(protocol) == protocol else None
