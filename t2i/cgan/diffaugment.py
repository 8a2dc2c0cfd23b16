"""Augments real and generated images differentiably (DiffAugment; Zhao et al., NeurIPS 2020).

The caller passes all random draws as uniform numbers in [0, 1), so an augmentation is a function of (seed, step, sample).
Axes: B batch, C channels, H W image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

DRAWS = 8  # uniform numbers per image


def augment(images_BCHW: Tensor, kinds: Sequence[str], draws_BU: Tensor) -> Tensor:
    """Applies `kinds` in order: `color`, `translation` (1/8 of the side), `cutout` (a square of half the side).

    Args:
        images_BCHW: in [-1, 1].
        draws_BU: uniform numbers [B, 8].
    """
    for kind in kinds:
        images_BCHW = KINDS[kind](images_BCHW, draws_BU)
    return images_BCHW


def color(x: Tensor, u: Tensor) -> Tensor:
    """Changes brightness by +-0.5, saturation by 0 to 2, contrast by 0.5 to 1.5. Contradicts captions with colours."""
    brightness, saturation, contrast = (u[:, k, None, None, None].to(x.dtype) for k in range(3))
    x = x + (brightness - 0.5)
    grey = x.mean(dim=1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def translation(x: Tensor, u: Tensor, ratio: float = 0.125) -> Tensor:
    """Shifts each image by whole pixels and repeats the border."""
    height, width = x.shape[2:]
    reach_y, reach_x = max(1, int(height * ratio)), max(1, int(width * ratio))
    shift_y = (u[:, 3] * (2 * reach_y + 1)).long() - reach_y
    shift_x = (u[:, 4] * (2 * reach_x + 1)).long() - reach_x
    rows = (torch.arange(height, device=x.device) + shift_y[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) + shift_x[:, None]).clamp(0, width - 1)
    x = torch.gather(x, 2, rows[:, None, :, None].expand_as(x))
    return torch.gather(x, 3, columns[:, None, None, :].expand_as(x))


def cutout(x: Tensor, u: Tensor, ratio: float = 0.5) -> Tensor:
    """Erases one square of each image."""
    height, width = x.shape[2:]
    half_y, half_x = height * ratio / 2, width * ratio / 2
    y = torch.arange(height, device=x.device) - u[:, 5, None] * height
    z = torch.arange(width, device=x.device) - u[:, 6, None] * width
    hole = (y.abs() < half_y)[:, None, :, None] & (z.abs() < half_x)[:, None, None, :]
    return x.masked_fill(hole, 0.0)


KINDS = {"color": color, "translation": translation, "cutout": cutout}


def flip(images_BCHW: Tensor, draws_BU: Tensor) -> Tensor:
    """Mirrors each image with probability 1/2, by the last of its draws."""
    return torch.where((draws_BU[:, 7] < 0.5)[:, None, None, None], images_BCHW.flip(3), images_BCHW)
