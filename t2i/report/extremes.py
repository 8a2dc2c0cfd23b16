"""The best and the worst images of a run, by a score file where one says what each image scored."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.data import View
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

EXTREMES = 6  # images that are best, and as many that are worst


class Extremes(NamedTuple):
    """The best and the worst images of a run by their scores, the very best and the very worst first."""

    among: str  # in words: how many images, of what, by which score
    best: list[Judged]
    worst: list[Judged]


def extremes(run: ShownRun, pool: Pool, score: str, score_files: bool) -> Extremes:
    """The best and the worst images among those of a score file, else among those of the pool.

    Args:
        score: name of the score of the pool.
        score_files: consult the run's score files.
    """
    if score_files and (found := _of_score_file(run)) is not None:
        return found
    by = "PSNR" if run.pipe is None else score
    among = f"of {len(pool.made):,} of {pool.asked.name} {pool.asked.split}, by {by}"
    return _chosen(among, pool.scores, pool.asked, lambda rows: [pool.made[k] for k in rows])


def _chosen(
    among: str, scores: NDArray[np.float64], asked: Images, made: Callable[[Sequence[int]], list[ImageArray]]
) -> Extremes:
    """Every image is in one of the two, where there are few."""
    order = np.argsort(-scores, kind="stable").tolist()
    best = order[: min(EXTREMES, -(-len(order) // 2))]
    worst = order[len(best) :][::-1][:EXTREMES]
    captions = asked.captions or []
    rows = best + worst
    found = judged(made(rows), [captions[k] for k in rows], [float(scores[k]) for k in rows])
    return Extremes(among, found[: len(best)], found[len(best) :])


def _of_score_file(run: ShownRun) -> Extremes | None:
    """Samples the extremes of the largest CLIP score again, if its run, data and settings are still the same."""
    best: Extremes | None = None
    most = 0
    for file in run.scores:
        with suppress(InputError):  # its data is gone, or the file beside it is damaged
            samples = read_samples(file.path)
            for score in file.scores:
                values, protocol = samples.values.get(score.name), score.protocol
                if protocol.metric != "clip" or values is None or len(values) <= most or np.isnan(values).any():
                    continue
                if (trial := _same_trial(run, protocol, samples.prompts)) is not None:
                    name = score.name.rpartition("@")[0]
                    among = f"of {len(values):,} of {protocol.data} {protocol.split}, by {name}"
                    best = _chosen(among, values, trial.asked, trial.images_at)
                    most = len(values)
    return best


def _same_trial(run: ShownRun, protocol: ScoreProtocol, prompts: NDArray[np.int64]) -> Trial | None:
    """The trial whose images have this score; None if weights, data or settings have changed since."""
    if protocol.split is None or protocol.seed is None or run.pipe is None:
        return None
    view = View(run.data["resolution"], run.data["fit"], None, run.data["split_seed"])
    asked = dataset_images(protocol.data, protocol.split, protocol.n_fake, view)
    trial = Trial(run.folder, run.pipe, asked, ScoreOptions(target=str(run.folder), seed=protocol.seed), None)
    same = np.array_equal([key_of(caption) for caption in asked.captions or []], prompts)
    return trial if same and trial.marked(protocol) == protocol else None
