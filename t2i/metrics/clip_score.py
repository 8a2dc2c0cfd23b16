"""CLIP score: agreement of images with their captions by an image-text encoder (Hessel et al., 2021).

100 * max(cos(image, caption), 0), averaged, without that paper's factor 2.5 and prefix. Its scale depends on the encoder:
B/32 and L/14 differ by 5 points on the same images. The score of the real images (ceiling) and that of shuffled captions
(floor) are reported with it.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from t2i.errors import InputError
from t2i.metrics import Inputs, Metric
from t2i.metrics.intervals import Estimate, Labels, group_index, mean_estimate
from t2i.metrics.score import Score
from t2i.metrics.statistics import unit_rows


def clip_score(images: NDArray[np.floating], captions: NDArray[np.floating], prompts: Labels | None = None) -> Estimate:
    """Computes the mean of 100 * max(cos, 0) over images and their captions, in [0, 100].

    Args:
        images: [N, D] image features.
        captions: [N, D] text features of the same encoder; row i is the caption of image i.
        prompts: [N] labels of the prompts; the standard error is clustered by them.

    Raises:
        ValueError: shapes do not fit, or a feature is zero or not finite.
    """
    image_unit, caption_unit = unit_rows(images), unit_rows(captions)
    if image_unit.shape != caption_unit.shape:
        raise ValueError(f"features of images {image_unit.shape}, captions {caption_unit.shape}: shapes must be equal")
    cosine = (image_unit * caption_unit).sum(axis=1)
    return mean_estimate(100.0 * np.maximum(cosine, 0.0), prompts)


def clip_bounds(
    images: NDArray[np.floating],
    captions: NDArray[np.floating],
    real_images: NDArray[np.floating] | None,
    prompts: Labels,
    seed: int = 0,
) -> dict[str, float]:
    """Computes values to compare the score with, on the same captions.

    Args:
        real_images: [N, D] features of the real images of the captions, if there are any.
        prompts: [N] captions or labels of their meaning; after the shuffle no image has its own.

    Returns:
        `real`: the score of the real images (ceiling); `shuffled`: the score of generated images with shuffled captions
        (floor), left out if too many images share a caption.
    """
    bounds = {} if real_images is None else {"real": clip_score(real_images, captions).value}
    if can_shuffle(prompts):
        bounds["shuffled"] = clip_score(images, np.asarray(captions)[derangement(prompts, seed)]).value
    return bounds


def can_shuffle(labels: Labels) -> bool:
    """Returns True if no label has more than half of the rows, so that every row can get another label."""
    return 2 * max(np.bincount(group_index(labels), minlength=1), default=0) <= len(labels)


def derangement(labels: Labels, seed: int) -> NDArray[np.int64]:
    """Draws a permutation p of 0..N-1 from `seed` with labels[p[i]] != labels[i] for every i.

    Raises:
        ValueError: a label has more than half of the rows, so there is no such permutation; see `can_shuffle`.
    """
    index = group_index(labels)
    sizes = np.bincount(index, minlength=1)
    largest = int(sizes.max())
    if 2 * largest > len(index):
        raise ValueError(f"{largest} of {len(index)} images share a caption: they cannot be shuffled")
    rng = np.random.default_rng(seed)
    # Groups in random order, rows in random order within each group; a roll by the size of the largest group moves
    # every row out of its group.
    order = np.lexsort((rng.random(len(index)), rng.permutation(len(sizes))[index]))
    permutation = np.empty(len(index), dtype=np.int64)
    permutation[order] = np.roll(order, -largest)
    return permutation


def refuse_training_encoder(name: str, digest: str, trained_with: Mapping[str, str]) -> None:
    """Refuses to score a run with an encoder that took part in its training.

    Args:
        name: name of the scorer.
        digest: digest of the scorer's weights.
        trained_with: digest -> role of that encoder in training.

    Raises:
        InputError: the scorer took part in the training.
    """
    if digest in trained_with:
        raise InputError(
            f"{name} cannot score this run: it was its {trained_with[digest]}, "
            "so the score would measure the training objective; name another encoder"
        )


def _measure(given: Inputs) -> list[Score]:
    assert given.text is not None
    bounds = clip_bounds(given.fake, given.text, given.partners, given.meanings, given.seed)
    estimate = clip_score(given.fake, given.text, given.captions)
    return [given.score("clip", estimate.value, bounds=bounds, **estimate.described())]


CLIP_SCORE = Metric(1, _measure, reads="text", needs=("captions",), usual=True)
