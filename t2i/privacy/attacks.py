"""Guesses which images a model was trained on: by likelihood, by its critic, by the distance from what it samples.

Each attack gives a number an image, high for one that it takes for a training image. N images, with a caption each.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i import seeding
from t2i.cgan.critic import PART, critic_logits
from t2i.data import View, open_dataset
from t2i.errors import InputError
from t2i.families import Likelihood
from t2i.images import ImageArray
from t2i.metrics import Features
from t2i.metrics.neighbours import nearest
from t2i.metrics.statistics import Array
from t2i.pipeline import TextToImagePipeline
from t2i.scoring.images.collection import Images, dataset_images
from t2i.trained import open_run

LEAST = 100  # images below which 1 % is not one image
BATCH = 32
CANDIDATES = 4  # images that are looked through for each that is chosen


class Sides(NamedTuple):
    """As many training images as images of val, with captions of the same lengths: longer ones are of fuller images."""

    members: Images
    others: Images
    member_pixels: ImageArray
    other_pixels: ImageArray


def open_sides(pipe: TextToImagePipeline, n: int) -> Sides:
    """Opens n training images and n images of val of the data that a model was trained on, or fewer where there are fewer.

    Raises:
        InputError: the data is not there, has no val, or captions of other lengths there.
    """
    data = pipe.manifest["config"]["data"]
    fit = "center" if data.get("fit") == "random" else data.get("fit", "center")
    view = View(data["resolution"], fit, None, data.get("split_seed", 0))
    views = {"train": view if data.get("limit") is None else replace(view, limit=data["limit"]), "val": view}
    address = str(data["address"])
    pools = [
        dataset_images(address, split, min(CANDIDATES * n, len(open_dataset(address, split, its))), its)
        for split, its in views.items()
    ]
    captions, other_captions = (pool.captions or [] for pool in pools)
    pairs = matched(captions, other_captions, n)
    if not pairs:
        raise InputError(f"no caption of val of {address} is as long as one of train; the two cannot be compared")
    if len(pairs) < LEAST:
        warnings.warn(
            f"{len(pairs)} images a side: 1 % of them is none, so that no false find is allowed", stacklevel=3
        )
    members, others = (_chosen(pool, [pair[side] for pair in pairs]) for side, pool in enumerate(pools))
    return Sides(members, others, *(_pixels(images) for images in (members, others)))


def matched(first: Sequence[str], second: Sequence[str], n: int) -> list[tuple[int, int]]:
    """At most n pairs of rows whose captions have as many words, each row once; a random choice, in order."""
    by_length: dict[int, tuple[list[int], list[int]]] = {}
    for side, captions in enumerate((first, second)):
        for row, caption in enumerate(captions):
            by_length.setdefault(len(caption.split()), ([], []))[side].append(row)
    pairs = sorted(pair for rows in by_length.values() for pair in zip(*rows, strict=False))
    return [pairs[k] for k in sorted(seeding.permutation(0, 0, len(pairs))[:n].tolist())]


def _chosen(images: Images, rows: list[int]) -> Images:
    captions = images.captions
    assert captions is not None
    return replace(
        images,
        ids=[images.ids[row] for row in rows],
        captions=[captions[row] for row in rows],
        chunks=lambda wanted: images.chunks([rows[k] for k in wanted]),
    )


def _pixels(images: Images) -> ImageArray:
    return np.stack([image for chunk in images.chunks(range(len(images))) for image in chunk])


def by_likelihood(
    pipe: TextToImagePipeline, pixels: ImageArray, captions: list[str], tick: Callable[[int], None]
) -> Array:
    """[N] mean log-likelihood of the codes of an image under its caption, in nats a cell."""
    sampler = pipe.sampler
    assert isinstance(sampler, Likelihood)
    found = []
    for k, (image, caption) in enumerate(zip(pixels, captions, strict=True), 1):
        text = pipe.text_encoder.encode([caption])
        found.append(float(sampler.log_likelihood(text, sampler.codes(image)).mean()))
        tick(k)
    return np.array(found)


def by_critic(pipe: TextToImagePipeline, pixels: ImageArray, captions: list[str]) -> Array | None:
    """[N] logits of the critic of a GAN; None where there is none any more."""
    if pipe.family != "cgan":
        return None
    run = open_run(pipe.run) if pipe.run is not None else None
    if run is None or PART not in run.state:
        warnings.warn("the critic is not in a saved pipeline: name the run for the attack by its logits", stacklevel=3)
        return None
    return critic_logits(run, pipe.text_encoder, pixels, captions)


def by_distance(pixels: ImageArray, sampled: ImageArray) -> Array:
    """[N] how near an image is to the nearest sampled one: minus the root mean square difference of pixels, in [0, 1]."""
    return -nearest(flat(pixels), flat(sampled))[1]


def flat(pixels_NHWC: ImageArray) -> Features:
    """[N, D] pixels, scaled so that distances are root mean square differences."""
    rows = pixels_NHWC.reshape(len(pixels_NHWC), -1).astype(np.float32) / 255
    return (rows / np.sqrt(rows.shape[1])).astype(np.float32)


def sample_for(pipe: TextToImagePipeline, captions: list[str], seed: int, tick: Callable[[int], None]) -> ImageArray:
    """[N, H, W, 3] one image a caption, at the model's own settings."""
    parts: list[NDArray[np.uint8]] = []
    for start in range(0, len(captions), BATCH):
        part = captions[start : start + BATCH]
        parts.append(np.stack(pipe(part, seed=seed, output_type="uint8").images))
        tick(start + len(part))
    return np.concatenate(parts)
