"""The cells of an image that a word made: those that are sampled anew when the word is replaced."""

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

SHARE = 0.1  # of the largest change, from which on a cell is the word's
LEAST = 0.5  # nats: below this a cell is nobody's


def mask_of_edit(pipe: TextToImagePipeline, image: Image.Image, before: str, after: str) -> Image.Image:
    """A mask of the cells of an image that become unlikely when its prompt changes, and of those that touch them.

    Args:
        image: of any size; `before` says what it shows.

    Raises:
        InputError: the family keeps no parts of an image, or the prompts make no difference to this one.
    """
    sampler = pipe.sampler
    if not isinstance(sampler, Likelihood) or not isinstance(sampler, Completes):
        raise InputError(
            f"a {pipe.family} cannot redraw parts of an image (--edit); sample from a run of t2i train prior with order=random"
        )
    data = pipe.manifest["config"]["data"]
    view: tuple[int, Fit] = data["resolution"], data["fit"]
    codes = sampler.codes(images.fit(image.convert("RGB"), *view))
    (change_hw,) = likelihood_maps(pipe, codes, before, [[after]])
    return painted(cells_of(change_hw, before, after), image.size, view)


def cells_of(change_hw: NDArray[np.float64], before: str, after: str) -> NDArray[np.bool_]:
    """Flags of the cells that change much, and of their eight neighbours: an edge is shared.

    Raises:
        InputError: no cell does.
    """
    if change_hw.max() < LEAST:
        raise InputError(
            f"nothing in this image is due to the words that differ between {before[:80]!r} and {after[:80]!r}"
        )
    flags = np.pad(change_hw >= max(LEAST, SHARE * change_hw.max()), 1)
    rows, columns = change_hw.shape
    shifts: Sequence[tuple[int, int]] = [(i, j) for i in range(3) for j in range(3)]
    return np.logical_or.reduce([flags[i : i + rows, j : j + columns] for i, j in shifts])
