"""Finds the images of a run that are nearest to its training data, and the training images nearest to each of them."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.data import open_dataset
from t2i.extractors import ImageTextExtractor
from t2i.metrics import Features
from t2i.metrics.neighbours import nearest, squared_distances
from t2i.report.judged import Judged, Pool
from t2i.report.runs import ShownRun
from t2i.scoring.images.collection import Images, Tick, dataset_images
from t2i.scoring.images.extraction import Pass, extract

NEAR, NEIGHBOURS = 6, 3  # shown generated images, and shown training images for each


class Near(NamedTuple):
    """A generated image and the training images nearest to it, with their distances."""

    generated: Judged
    training: list[tuple[Judged, float]]


class Neighbours(NamedTuple):
    """The images of a run that are nearest to its training data."""

    among: str  # description of the training images and the features
    nearest: list[Near]
    median: float  # median distance of all generated images from their nearest training image
    held_out: float  # the same for the held-out real images


def find_neighbours(
    run: ShownRun, pool: Pool, most: int, scorer: ImageTextExtractor, tick: Tick, known: dict[str, NDArray]
) -> Neighbours:
    """Compares a pool with the training images of its run.

    Args:
        most: number of training images to search; a random choice if there are more.
        known: cache of training features by key, which runs on the same data share.

    Raises:
        InputError: the training images cannot be read.
    """
    training, total = _training(run, most)
    key = training.key()
    if key not in known:
        evidence = extract(training, f"training images of {run.name}", [scorer], Pass(tick))
        known[key] = np.asarray(evidence.features[scorer.digest()])
    generated, real = (scorer.features(np.stack(images)) for images in (pool.generated, pool.real))
    count = f"{len(training):,}" if len(training) == total else f"{len(training):,} of {total:,}"
    among = f"{count} training images, features of {scorer.name}"
    return neighbours_of(among, pool, training, generated, real, known[key])


def _training(run: ShownRun, most: int) -> tuple[Images, int]:
    """Returns at most `most` training images, and the number of all."""
    own = run.data
    view = replace(run.view, limit=own["limit"])
    count = len(open_dataset(own["address"], "train", view))
    return dataset_images(own["address"], "train", min(count, most), view), count


def neighbours_of(
    among: str, pool: Pool, training: Images, generated: Features, real: Features, train: Features
) -> Neighbours:
    """Finds neighbours by features of generated [N, D], real [M, D] and training images [T, D]."""
    to_training, real_to_training = nearest(generated, train)[1], nearest(real, train)[1]
    rows = np.argsort(to_training, kind="stable")[:NEAR]
    distances = np.concatenate([block for _, _, block in squared_distances(generated[rows], train)], axis=1)
    columns = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
    shown = sorted(set(columns.ravel().tolist()))
    images = dict(zip(shown, (image for chunk in training.chunks(shown) for image in chunk), strict=True))
    captions, training_captions = pool.captioned.captions or [], training.captions or []
    near = [
        Near(
            Judged(pool.generated[row], captions[row]),
            [(Judged(images[k], training_captions[k]), float(np.sqrt(distances[i, k]))) for k in columns[i].tolist()],
        )
        for i, row in enumerate(rows.tolist())
    ]
    return Neighbours(among, near, float(np.median(to_training)), float(np.median(real_to_training)))
