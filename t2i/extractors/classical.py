"""Image features that nobody trained: histograms of oriented gradients (Dalal & Triggs, CVPR 2005) beside a grid of colours.

Axes: B images, C channels, H W image, O orientations, L cells, D width of a cell, P width of the pooled vector.
"""

import math
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.extractors import ImageFeatures
from t2i.extractors.cells import TowerCells

SIDE, CELLS, COLORS = 64, 8, 8  # pixels a side; cells a side of the gradients, and of the colours
ORIENTATIONS = 9
NEAR_ZERO = 1e-2  # added to lengths that divide


class ClassicalTower(nn.Module):
    """Cells: the gradients' histogram and the mean colour of each. Pooled: all of them, blocks of 2 x 2 cells normed."""

    def forward(self, images_BCHW: Tensor) -> ImageFeatures:
        x = images_BCHW.float()
        if x.shape[-1] != SIDE:
            x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=x.shape[-1] > SIDE)
        histograms_BOHW = _histograms(x)
        colors_BCHW = F.adaptive_avg_pool2d(x, COLORS)
        windows = F.unfold(histograms_BOHW, 2)  # [B, O * 4, blocks]
        blocks = windows / (windows.norm(dim=1, keepdim=True) + NEAR_ZERO)
        pooled = torch.cat([blocks.flatten(1) / math.sqrt(blocks.shape[-1]), colors_BCHW.flatten(1) / COLORS], dim=1)
        cells = torch.cat([histograms_BOHW, colors_BCHW], dim=1)
        return ImageFeatures(cells.flatten(2).transpose(1, 2), pooled)


def _histograms(images_BCHW: Tensor) -> Tensor:
    """Returns [B, O, 8, 8]: lengths of gradients by their direction without sign, shared by the two nearest directions.

    At each pixel it is the gradient of the channel in which it is longest.
    """
    padded = F.pad(images_BCHW, (1, 1, 1, 1), mode="replicate")
    across, down = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2], padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    longest = (across.square() + down.square()).argmax(dim=1, keepdim=True)
    across, down = across.gather(1, longest), down.gather(1, longest)
    length = (across.square() + down.square() + 1e-12).sqrt()
    angle = torch.atan2(down, across + 1e-12) % math.pi / math.pi * ORIENTATIONS  # in [0, O]
    centres = torch.arange(ORIENTATIONS, device=angle.device).view(1, -1, 1, 1)
    apart = (angle - centres).abs()
    share_BOHW = (1 - torch.minimum(apart, ORIENTATIONS - apart)).clamp(min=0)
    return F.adaptive_avg_pool2d(share_BOHW * length, CELLS)


class ClassicalCells(TowerCells):
    """Gradients and colours of 8 x 8 cells, the same for every data set."""

    name = "classical"

    def __init__(self) -> None:
        super().__init__(ClassicalTower(), SIDE)

    @classmethod
    def open(cls, path: str) -> Self:
        return cls()

    @classmethod
    def load(cls, directory: Path) -> Self:
        return cls()

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._note(directory)

    def _decisive(self) -> list[Any]:
        return [SIDE, CELLS, COLORS, ORIENTATIONS, 1]
