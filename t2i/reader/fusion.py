"""Modules that combine the cells of an image with the words of a question, with one interface:

    (image_BLD, text_BTD, mask_BT) -> joint_BTD

The cells of an image include position codes. A new module is a class and a line in `FUSIONS`.

Axes: B questions, L cells, T words (mask True at real ones), D width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from t2i.reader.decoder import CrossAttention, attend, merge, split

NARROW = 16  # width of a cell before all cells are concatenated


class WholeImage(nn.Module):
    """Computes one vector from all cells; they are narrowed and concatenated, not averaged, to keep positions."""

    def __init__(self, width: int, cells: int) -> None:
        super().__init__()
        self.narrow, self.join = nn.Linear(width, NARROW), nn.Linear(NARROW * cells, width)

    def forward(self, image_BLD: Tensor) -> Tensor:
        return self.join(F.gelu(self.narrow(image_BLD)).flatten(1))[:, None]


class _Mlps(nn.Module):
    """Residual MLPs, applied to each word."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        for layer in self.layers:
            x_BTD = x_BTD + layer(x_BTD)
        return x_BTD


class Sum(nn.Module):
    """Computes W_I h(image) + W_T h(word)."""

    def __init__(self, width: int, cells: int, depth: int, heads: int) -> None:
        super().__init__()
        self.image, self.text, self.mlps = WholeImage(width, cells), nn.Linear(width, width), _Mlps(width, depth)

    def forward(self, image_BLD: Tensor, text_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        return self.mlps(self.image(image_BLD) + self.text(text_BTD))


class Gated(nn.Module):
    """Mixes image and word by a gate per channel (gated multimodal unit; Arevalo et al., 2017)."""

    def __init__(self, width: int, cells: int, depth: int, heads: int) -> None:
        super().__init__()
        self.image, self.text, self.mlps = WholeImage(width, cells), nn.Linear(width, width), _Mlps(width, depth)
        self.gate = nn.Linear(2 * width, width)

    def forward(self, image_BLD: Tensor, text_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        image = self.image(image_BLD).expand_as(text_BTD)
        gate = torch.sigmoid(self.gate(torch.cat([image, text_BTD], dim=-1)))
        return self.mlps(torch.lerp(torch.tanh(self.text(text_BTD)), torch.tanh(image), gate))


class Concat(nn.Module):
    """An MLP over the concatenation of image and word."""

    def __init__(self, width: int, cells: int, depth: int, heads: int) -> None:
        super().__init__()
        self.image, self.mlps = WholeImage(width, cells), _Mlps(width, depth)
        self.join = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, image_BLD: Tensor, text_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        image = self.image(image_BLD).expand_as(text_BTD)
        return self.mlps(self.join(torch.cat([image, text_BTD], dim=-1)))


class Search(CrossAttention):
    """Cross-attention with an additional learned key and value, which a word can attend to if the image does not show it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, width, heads)
        self.nothing = nn.Parameter(torch.zeros(2, 1, 1, width))  # a key and a value

    def forward(self, x_BTD: Tensor, keys: tuple[Tensor, Tensor], allowed: Tensor | None = None) -> Tensor:
        k, v = (
            torch.cat([split(own.expand(len(k), -1, -1), self.heads).to(k.dtype), k], dim=2)
            for own, k in zip(self.nothing, keys, strict=True)
        )
        return super().forward(x_BTD, (k, v), None if allowed is None else F.pad(allowed, (1, 0), value=True))


class AttentionBlock(nn.Module):
    """Self-attention of words, cross-attention to cells, and an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_own, self.norm_cross, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.cross = Search(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BTD: Tensor, other_BLD: Tensor, mask_BT: Tensor | None, other_BL: Tensor | None) -> Tensor:
        q, k, v = (split(part, self.heads) for part in self.qkv(self.norm_own(x_BTD)).chunk(3, dim=-1))
        allowed = None if mask_BT is None else mask_BT[:, None, None]
        x_BTD = x_BTD + self.out(merge(attend(q, k, v, allowed)))
        allowed = None if other_BL is None else other_BL[:, None, None]
        x_BTD = x_BTD + self.cross(self.norm_cross(x_BTD), self.cross.keys(other_BLD), allowed)
        return x_BTD + self.mlp(self.norm_mlp(x_BTD))


class Cross(nn.Module):
    """Words attend to the cells."""

    def __init__(self, width: int, cells: int, depth: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(AttentionBlock(width, heads) for _ in range(depth))

    def forward(self, image_BLD: Tensor, text_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        for block in self.blocks:
            text_BTD = block(text_BTD, image_BLD, mask_BT, None)
        return text_BTD


class CoAttention(nn.Module):
    """Both sides attend to each other: first the cells to the words, then the words to these cells (Lu et al., 2016)."""

    def __init__(self, width: int, cells: int, depth: int, heads: int) -> None:
        super().__init__()
        self.image = nn.ModuleList(AttentionBlock(width, heads) for _ in range(depth))
        self.text = nn.ModuleList(AttentionBlock(width, heads) for _ in range(depth))

    def forward(self, image_BLD: Tensor, text_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        for image, text in zip(self.image, self.text, strict=True):
            image_BLD = image(image_BLD, text_BTD, None, mask_BT)
            text_BTD = text(text_BTD, image_BLD, mask_BT, None)
        return text_BTD


class BiLSTM(nn.Module):
    """A bidirectional LSTM over the words, each concatenated with the whole image."""

    def __init__(self, width: int, cells: int, depth: int, heads: int) -> None:
        super().__init__()
        self.image = WholeImage(width, cells)
        self.lstm = nn.LSTM(2 * width, width // 2, depth, batch_first=True, bidirectional=True)

    def forward(self, image_BLD: Tensor, text_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        beside = torch.cat([self.image(image_BLD).expand_as(text_BTD), text_BTD], dim=-1)
        lengths = mask_BT.sum(dim=1).cpu()
        packed = pack_padded_sequence(beside, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=text_BTD.shape[1])[0]


# name -> class with the arguments width, number of cells, depth, heads
FUSIONS: dict[str, Callable[[int, int, int, int], nn.Module]] = {
    "sum": Sum,
    "gated": Gated,
    "concat": Concat,
    "cross": Cross,
    "co": CoAttention,
    "bilstm": BiLSTM,
}
