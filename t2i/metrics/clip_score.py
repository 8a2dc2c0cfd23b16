"""CLIP score: how well an image fits its caption, as one named image-text encoder sees it (Hessel et al., 2021).

100 * max(cos(image, caption), 0), averaged, without that paper's factor 2.5 and prefix. It has no scale of its own:
B/32 and L/14 differ by 5 points on the same images, so the real images' score (ceiling) and that of shuffled
captions (floor) are reported with it.
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
    """Mean of 100 * max(cos, 0) over images, each with its caption, in [0, 100].

    Args:
        images: [N, D] image features.
        captions: [N, D] text features of the same encoder, row i the caption of image i.
        prompts: [N] labels of the prompts, where several images share one; the standard error is clustered by them.

    Raises:
        ValueError: other shapes, a feature that is zero or not finite.
    """
    image_unit, caption_unit = unit_rows(images), unit_rows(captions)
    if image_unit.shape != caption_unit.shape:
        raise ValueError(f"features of images {image_unit.shape}, of captions {caption_unit.shape}: they must be pairs")
    cosine = (image_unit * caption_unit).sum(axis=1)
    return mean_estimate(100.0 * np.maximum(cosine, 0.0), prompts)


def clip_bounds(
    images: NDArray[np.floating],
    captions: NDArray[np.floating],
    real_images: NDArray[np.floating] | None,
    prompts: Labels,
    seed: int = 0,
) -> dict[str, float]:
    """Values to read the score against, on the same captions.

    Args:
        real_images: [N, D] features of the real images that the captions were written for; None: there are none.
        prompts: [N] captions (or labels of their meaning): the shuffle gives no image one of its own.

    Returns:
        `real`: the score of the real images (ceiling); `shuffled`: of generated images with others' captions (floor),
        left out where too many images share a caption.
    """
    bounds = {} if real_images is None else {"real": clip_score(real_images, captions).value}
    if can_shuffle(prompts):
        bounds["shuffled"] = clip_score(images, np.asarray(captions)[derangement(prompts, seed)]).value
    return bounds


def can_shuffle(labels: Labels) -> bool:
    """No label has more than half of the rows, so each row can be given another one."""
    return 2 * max(np.bincount(group_index(labels), minlength=1), default=0) <= len(labels)


def derangement(labels: Labels, seed: int) -> NDArray[np.int64]:
    """A permutation p of 0..N-1, decided by `seed`, with labels[p[i]] != labels[i] for every i.

    Raises:
        ValueError: one label has more than half of the rows, so there is none; see `can_shuffle`.
    """
    index = group_index(labels)
    sizes = np.bincount(index, minlength=1)
    largest = int(sizes.max())
    if 2 * largest > len(index):
        raise ValueError(f"{largest} of {len(index)} images share a caption: they cannot be shuffled")
    rng = np.random.default_rng(seed)
    # Groups in random order, rows in random order within each; a turn by the largest group's size takes all out of
    # theirs.
    order = np.lexsort((rng.random(len(index)), rng.permutation(len(sizes))[index]))
    permutation = np.empty(len(index), dtype=np.int64)
    permutation[order] = np.roll(order, -largest)
    return permutation


def refuse_training_encoder(name: str, digest: str, trained_with: Mapping[str, str]) -> None:
    """Refuses an encoder that guided the training as a judge of its result.

    Args:
        name: of the scorer.
        digest: of the scorer's weights.
        trained_with: digest -> role of that encoder in training.

    Raises:
        InputError: the scorer is among them.
    """
    if digest in trained_with:
        raise InputError(
            f"{name} cannot score this run: it was its {trained_with[digest]}, "
            "so the score would measure the training objective; name another encoder"
        )


def _measure(given: Inputs) -> list[Score]:
    assert given.text is not None
    bounds = clip_bounds(given.fake, given.text, given.partners, given.meanings, given.seed)
    found = clip_score(given.fake, given.text, given.captions)
    return [given.score("clip", found.value, bounds=bounds, **found.described())]


CLIP_SCORE = Metric(1, _measure, reads="text", needs=("captions",), usual=True)
