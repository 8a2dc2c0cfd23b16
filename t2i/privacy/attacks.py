"""Membership inference attacks on a model: by likelihood, by the logit of its critic, by distance from sampled images.

Each attack returns a number for each image, which is higher for images that look like training images. Axis N: images, each with
a caption.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i import seeding
from t2i.cgan.critic import PART, critic_logits
from t2i.data import Dataset, View, open_dataset
from t2i.errors import InputError
from t2i.families import Likelihood
from t2i.images import ImageArray
from t2i.metrics import Features
from t2i.metrics.neighbours import nearest
from t2i.metrics.statistics import Array
from t2i.names import counted
from t2i.pipeline import TextToImagePipeline
from t2i.scoring.images.collection import Images, choose, images_of_rows
from t2i.trained import open_run

LEAST = 100  # with fewer images a side, 1 % is less than one image
BATCH = 32
CANDIDATES = 4  # images that are read for each one that is chosen


class Sides(NamedTuple):
    """Training images and as many images of val; captions have the same lengths on both sides."""

    members: Images
    others: Images
    member_pixels: ImageArray
    other_pixels: ImageArray


def open_sides(pipe: TextToImagePipeline, n: int) -> Sides:
    """Opens n training images and n images of val of a model's data, or fewer if there are fewer.

    Captions on both sides have the same numbers of words, as images with long captions are less likely, seen or not.

    Raises:
        InputError: the data or its split val does not exist, or no captions have the same length.
    """
    data = pipe.manifest["config"]["data"]
    fit = "center" if data.get("fit") == "random" else data.get("fit", "center")
    view = View(data["resolution"], fit, None, data.get("split_seed", 0))
    views = {"train": view if data.get("limit") is None else replace(view, limit=data["limit"]), "val": view}
    address = str(data["address"])
    datasets = [open_dataset(address, split, split_view) for split, split_view in views.items()]
    candidates = [_candidates(dataset, n) for dataset in datasets]
    captions = [[data.captions[row][0] for row in rows] for data, rows in zip(datasets, candidates, strict=True)]
    pairs = matched(captions[0], captions[1], n)
    if not pairs:
        raise InputError(
            f"no caption in val of {address} has as many words as one in train, so the two cannot be compared; add images to val"
        )
    if len(pairs) < LEAST:
        warnings.warn(
            f"only {counted(len(pairs), 'image')} of each side: at a false positive rate of 1 % none may be wrong",
            stacklevel=3,
        )
    members, others = (
        images_of_rows(data, [rows[k] for k in chosen], [texts[k] for k in chosen])
        for data, rows, texts, chosen in zip(datasets, candidates, captions, zip(*pairs, strict=True), strict=True)
    )
    return Sides(members, others, *(_pixels(images) for images in (members, others)))


def _candidates(dataset: Dataset, n: int) -> list[int]:
    return choose(len(dataset), min(CANDIDATES * n, len(dataset)), f"split {dataset.split} of {dataset.address}")


def matched(first: Sequence[str], second: Sequence[str], n: int) -> list[tuple[int, int]]:
    """Returns up to n pairs of rows whose captions have equally many words: a fixed random choice, each row at most once."""
    by_length: dict[int, tuple[list[int], list[int]]] = {}
    for side, captions in enumerate((first, second)):
        for row, caption in enumerate(captions):
            by_length.setdefault(len(caption.split()), ([], []))[side].append(row)
    pairs = sorted(pair for rows in by_length.values() for pair in zip(*rows, strict=False))
    return [pairs[k] for k in sorted(seeding.permutation(0, 0, len(pairs))[:n].tolist())]


def _pixels(images: Images) -> ImageArray:
    return np.stack([image for chunk in images.chunks(range(len(images))) for image in chunk])


def by_likelihood(
    pipe: TextToImagePipeline, pixels: ImageArray, captions: list[str], tick: Callable[[int], None]
) -> Array:
    """Returns [N], the mean log-likelihood of an image's codes under its caption, in nats per cell."""
    sampler = pipe.sampler
    assert isinstance(sampler, Likelihood)
    scores = []
    for k, (image, caption) in enumerate(zip(pixels, captions, strict=True), 1):
        text = pipe.text_encoder.encode([caption])
        scores.append(float(sampler.log_likelihood(text, sampler.codes(image)).mean()))
        tick(k)
    return np.array(scores)


def by_critic(pipe: TextToImagePipeline, pixels: ImageArray, captions: list[str]) -> Array | None:
    """Returns [N], the logits of a GAN's critic; None for other families and for saved pipelines, which have no critic."""
    if pipe.family != "cgan":
        return None
    run = open_run(pipe.run) if pipe.run is not None else None
    if run is None or PART not in run.state:
        warnings.warn(
            "a saved pipeline has no critic; name the run to also attack by the critic's logits", stacklevel=3
        )
        return None
    return critic_logits(run, pipe.text_encoder, pixels, captions)


def by_distance(pixels: ImageArray, sampled: ImageArray) -> Array:
    """Returns [N], minus the root mean square difference of pixels in [0, 1] from the nearest sampled image."""
    return -nearest(flat(pixels), flat(sampled))[1]


def flat(pixels_NHWC: ImageArray) -> Features:
    """Returns [N, D] pixels, scaled so that Euclidean distances are root mean square differences."""
    rows = pixels_NHWC.reshape(len(pixels_NHWC), -1).astype(np.float32) / 255
    return (rows / np.sqrt(rows.shape[1])).astype(np.float32)


def sample_for(pipe: TextToImagePipeline, captions: list[str], seed: int, tick: Callable[[int], None]) -> ImageArray:
    """Samples an image for each caption, with the model's own settings; returns uint8 [N, H, W, 3]."""
    parts: list[NDArray[np.uint8]] = []
    for start in range(0, len(captions), BATCH):
        part = captions[start : start + BATCH]
        parts.append(np.stack(pipe(part, seed=seed, output_type="uint8").images))
        tick(start + len(part))
    return np.concatenate(parts)
