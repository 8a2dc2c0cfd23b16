"""Augments training images as a function of (seed, sample), so that results do not depend on processes, workers or resuming.

Only real images are augmented. For a GAN on small data use `augment` of its config, which also changes generated images. Captions
may contradict changed images, which is checked here too.
Axes: B batch, H W image, C channels.
"""

import math
import re
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from t2i.data import Augmentation, DataConfig, Dataset
from t2i.images import ImageArray
from t2i.seeding import uniform

SHARE_GREY = 0.1  # share of the images that `grey` makes grey
ROTATED, ZOOMED, SHIFTED = math.radians(10), 1.2, 0.1  # maximum angle, zoom, and shift as a share of the side
STRENGTH, NOISE = 0.2, 8.0  # maximum relative change of colours; maximum standard deviation in grey levels
LUMA = (0.299, 0.587, 0.114)

# English words by which captions contradict mirrored, cropped and recoloured images
_SIDES = "(?:left|right|leftmost|rightmost|leftward|rightward|(?:anti|counter)?-?clockwise)s?"
_PLACES = "left|right|top|bottom|upper|lower|corner|edge|above|below|background"
_COLOURS = "red|orange|yellow|green|cyan|blue|purple|pink|brown|black|white|gr[ea]y|golden|silver"


def augment(
    images_BHWC: ImageArray, names: Sequence[Augmentation], seed: int, sample_ids: NDArray[np.int64]
) -> ImageArray:
    """Applies the named augmentations, drawn for each sample; `rotate`, `zoom` and `shift` are one resampling.

    Args:
        images_BHWC: uint8.
        sample_ids: sample ids of the images, which determine the draws together with seed and name.
    """
    if not names:
        return images_BHWC
    draws: dict[Augmentation, Tensor] = {
        name: torch.from_numpy(uniform(seed, f"data/{name}", sample_ids, 3)).float() for name in names
    }
    x = torch.from_numpy(np.ascontiguousarray(images_BHWC)).permute(0, 3, 1, 2).float()
    if any(name in MOVES for name in names):
        x = _move(x, draws)
    for name in names:
        if name in COLOURS:
            x = COLOURS[name](x, draws[name])
    if "noise" in names:
        grain = [np.random.default_rng([seed, int(i)]).standard_normal(x.shape[1:], np.float32) for i in sample_ids]
        x = x + NOISE * draws["noise"][:, 0, None, None, None] * torch.from_numpy(np.stack(grain))
    return x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def _move(x_BCHW: Tensor, draws: dict[Augmentation, Tensor]) -> Tensor:
    """Rotates, enlarges and shifts images about the centre, and repeats the border."""
    still = torch.full((len(x_BCHW), 3), 0.5)
    angle = (2 * draws.get("rotate", still)[:, 0] - 1) * ROTATED
    zoom = ZOOMED ** -draws.get("zoom", torch.zeros(len(x_BCHW), 3))[:, 0]
    shift_BX = (2 * draws.get("shift", still)[:, :2] - 1) * 2 * SHIFTED  # grid_sample's image is 2 wide
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    matrix = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    grid = F.affine_grid(torch.cat([matrix, shift_BX[:, :, None]], 2), list(x_BCHW.shape), align_corners=False)
    return F.grid_sample(x_BCHW, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _luma(x_BCHW: Tensor) -> Tensor:
    return (x_BCHW * torch.tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)


def _color(x_BCHW: Tensor, u_BU: Tensor) -> Tensor:
    """Changes brightness, contrast and saturation."""
    brightness, contrast, saturation = (1 + STRENGTH * (2 * u_BU - 1)).T[:, :, None, None, None]
    x = x_BCHW * brightness
    mean = _luma(x).mean(dim=(1, 2, 3), keepdim=True)
    x = mean + (x - mean) * contrast
    grey = _luma(x)
    return grey + (x - grey) * saturation


def _grey(x_BCHW: Tensor, u_BU: Tensor) -> Tensor:
    return torch.where((u_BU[:, 0] < SHARE_GREY)[:, None, None, None], _luma(x_BCHW).expand_as(x_BCHW), x_BCHW)


COLOURS: dict[Augmentation, Callable[[Tensor, Tensor], Tensor]] = {"color": _color, "grey": _grey}
MOVES: tuple[Augmentation, ...] = ("rotate", "zoom", "shift")


# ---- captions that contradict changed images -----------------------------------------------------------------------


def may_flip(configured: bool, dataset: Dataset) -> bool:
    """Returns True if mirroring is configured and no caption mentions left or right (in English); warns if one does."""
    caption = _caption_with(_SIDES, dataset) if configured else None
    if caption is not None:
        warnings.warn(
            f"flip is off: captions of {dataset.address} mention left or right, e.g. {caption[:80]!r}; a mirrored image "
            "would contradict them",
            stacklevel=2,
        )
    return configured and caption is None


def warn_of_contradictions(data: DataConfig, dataset: Dataset) -> None:
    """Warns if captions mention positions that random crops may cut off, or colours that augmentations change."""
    if data.fit == "random" and (caption := _caption_with(_PLACES, dataset)):
        warnings.warn(
            f"data.fit=random may cut off what captions of {dataset.address} mention, e.g. {caption[:80]!r}; "
            "data.fit=pad keeps the whole image, and center the same part each time",
            stacklevel=2,
        )
    changing = [name for name in data.augment if name in COLOURS]
    if changing and (caption := _caption_with(_COLOURS, dataset)):
        warnings.warn(
            f"data.augment {', '.join(changing)} changes the colours that captions of {dataset.address} name, e.g. "
            f"{caption[:80]!r}",
            stacklevel=2,
        )


def _caption_with(words: str, dataset: Dataset) -> str | None:
    """Returns the first caption with one of the words, a regular expression."""
    pattern = re.compile(rf"\b(?:{words})\b", re.IGNORECASE)
    return next((caption for own in dataset.captions for caption in own if pattern.search(caption)), None)
