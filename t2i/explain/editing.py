"""Finds the cells of an image to resample when a word of its prompt is replaced."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from t2i import images
from t2i.errors import InputError
from t2i.explain.maps import likelihood_maps
from t2i.families import Completes, Likelihood
from t2i.images import Fit
from t2i.pipeline import TextToImagePipeline
from t2i.sampling.inpainting import painted

SHARE = 0.1  # a cell belongs to the word if its change is at least this share of the largest change
LEAST = 0.5  # and at least this many nats


def mask_of_edit(pipe: TextToImagePipeline, image: Image.Image, before: str, after: str) -> Image.Image:
    """Returns a mask of the cells that become less likely when the prompt changes, and of their neighbours.

    Args:
        image: an image of any size, with the prompt `before`.

    Raises:
        InputError: the family cannot keep parts of an image, or no cell changes.
    """
    sampler = pipe.sampler
    if not isinstance(sampler, Likelihood) or not isinstance(sampler, Completes):
        raise InputError(
            f"a {pipe.family} cannot resample parts of an image (--edit); sample from a run of t2i train prior with "
            "order=random"
        )
    data = pipe.manifest["config"]["data"]
    view: tuple[int, Fit] = data["resolution"], data["fit"]
    codes = sampler.codes(images.fit(image.convert("RGB"), *view))
    (change_hw,) = likelihood_maps(pipe, codes, before, [[after]])
    return painted(cells_of(change_hw, before, after), image.size, view)


def cells_of(change_hw: NDArray[np.float64], before: str, after: str) -> NDArray[np.bool_]:
    """Returns flags of the cells with a large change, and of their eight neighbours, which share edges with them.

    Raises:
        InputError: no cell changes enough.
    """
    if change_hw.max() < LEAST:
        raise InputError(
            f"no part of this image depends on the words that differ between {before[:80]!r} and {after[:80]!r}"
        )
    flags = np.pad(change_hw >= max(LEAST, SHARE * change_hw.max()), 1)
    rows, columns = change_hw.shape
    shifts: Sequence[tuple[int, int]] = [(i, j) for i in range(3) for j in range(3)]
    return np.logical_or.reduce([flags[i : i + rows, j : j + columns] for i, j in shifts])
