"""The images of a run that are nearest to its training data, each with the training images nearest to it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.data import View, open_dataset
from t2i.extractors import ImageTextExtractor
from t2i.metrics import Features
from t2i.metrics.neighbours import nearest, squared_distances
from t2i.report.judged import Judged, Pool
from t2i.report.runs import ShownRun
from t2i.scoring.images.collection import Images, Tick, dataset_images
from t2i.scoring.images.extraction import Pass, extract

NEAR, NEIGHBOURS = 6, 3  # generated images nearest to the training data, and training images beside each


class Near(NamedTuple):
    """A generated image and the training images nearest to it, with their distances."""

    made: Judged
    training: list[tuple[Judged, float]]


class Neighbours(NamedTuple):
    """The images of a run that are nearest to its training data."""

    among: str
    nearest: list[Near]
    median: float  # distance of all its images from their nearest training image
    held_out: float  # the same of the real images of the captions


def find_neighbours(
    run: ShownRun, pool: Pool, most: int, scorer: ImageTextExtractor, tick: Tick, known: dict[str, NDArray]
) -> Neighbours:
    """Compares a pool with the training images of its run.

    Args:
        most: training images that are looked at, a random choice where there are more.
        known: features of training images, by key, which runs of one data set share.

    Raises:
        InputError: the training images cannot be read.
    """
    training, total = _training(run, most)
    key = training.key()
    if key not in known:
        evidence = extract(training, f"training images of {run.name}", [scorer], Pass(tick))
        known[key] = np.asarray(evidence.features[scorer.digest()])
    made, real = (scorer.features(np.stack(images)) for images in (pool.made, pool.real))
    count = f"{len(training):,}" if len(training) == total else f"{len(training):,} of {total:,}"
    among = f"{count} training images, features of {scorer.name}"
    return neighbours_of(among, pool, training, made, real, known[key])


def _training(run: ShownRun, most: int) -> tuple[Images, int]:
    """Training images, and how many there are in all."""
    own = run.data
    view = View(own["resolution"], own["fit"], own["limit"], own["split_seed"])
    count = len(open_dataset(own["address"], "train", view))
    return dataset_images(own["address"], "train", min(count, most), view), count


def neighbours_of(
    among: str, pool: Pool, training: Images, made: Features, real: Features, train: Features
) -> Neighbours:
    """Chooses by features of the made [N, D], the real [M, D] and the training images [T, D]."""
    ours, theirs = nearest(made, train)[1], nearest(real, train)[1]
    rows = np.argsort(ours, kind="stable")[:NEAR]
    distances = np.concatenate([block for _, _, block in squared_distances(made[rows], train)], axis=1)
    columns = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
    wanted = sorted(set(columns.ravel().tolist()))
    images = dict(zip(wanted, (image for chunk in training.chunks(wanted) for image in chunk), strict=True))
    captions, trained_on = pool.asked.captions or [], training.captions or []
    found = [
        Near(
            Judged(pool.made[row], captions[row]),
            [(Judged(images[k], trained_on[k]), float(np.sqrt(distances[i, k]))) for k in columns[i].tolist()],
        )
        for i, row in enumerate(rows.tolist())
    ]
    return Neighbours(among, found, float(np.median(ours)), float(np.median(theirs)))
