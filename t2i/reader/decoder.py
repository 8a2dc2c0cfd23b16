"""GPT-2's decoder (Radford et al., 2019) with cross-attention to the cells of an image after each self-attention.

It processes whole captions at once, or only the next tokens if keys and values of earlier ones are given.

Axes: B captions, T tokens, D width, L cells, M width of a cell, K tokens of the vocabulary, N heads.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STD = 0.02  # standard deviation of initial weights, as in GPT-2


class Past(NamedTuple):
    """Keys and values of each block for the tokens so far, [B, N, T, D / N]."""

    own: tuple[tuple[Tensor, Tensor], ...]  # of the tokens
    cells: tuple[tuple[Tensor, Tensor], ...]  # of the image, constant over tokens

    @property
    def length(self) -> int:
        return self.own[0][0].shape[2]

    def rows(self, rows: Tensor) -> "Past":
        """Returns the past of the given rows, which may be repeated."""
        return Past(*(tuple((k[rows], v[rows]) for k, v in part) for part in self))


class CrossAttention(nn.Module):
    """Attention of tokens to cells."""

    def __init__(self, width: int, memory: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(memory, 2 * width)

    def keys(self, cells_BLM: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.key_value(cells_BLM).chunk(2, dim=-1)
        return split(k, self.heads), split(v, self.heads)

    def forward(self, x_BTD: Tensor, keys: tuple[Tensor, Tensor], allowed: Tensor | None = None) -> Tensor:
        return self.out(merge(attend(split(self.query(x_BTD), self.heads), *keys, allowed)))


class DecoderBlock(nn.Module):
    """Self-attention, cross-attention and MLP, each pre-normalised and residual."""

    def __init__(self, width: int, memory: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_cross, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.cross = CrossAttention(width, memory, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(
        self, x_BTD: Tensor, cells: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Returns the states, and keys and values of all tokens so far."""
        q, k, v = (split(part, self.heads) for part in self.qkv(self.norm_attention(x_BTD)).chunk(3, dim=-1))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
        x_BTD = x_BTD + self.out(merge(attend(q, k, v, seen)))
        x_BTD = x_BTD + self.cross(self.norm_cross(x_BTD), cells)
        x_BTD = x_BTD + self.down(F.gelu(self.up(self.norm_mlp(x_BTD)), approximate="tanh"))
        return x_BTD, (k, v)


class CaptionDecoder(nn.Module):
    """Computes next-token logits of captions given the cells of their images; embedding and output weights are tied."""

    def __init__(self, vocabulary: int, max_tokens: int, width: int, depth: int, heads: int, memory: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(max_tokens, width)
        self.blocks = nn.ModuleList(DecoderBlock(width, memory, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                residual = (2 * depth) ** -0.5 if name.endswith(("out.weight", "down.weight")) else 1.0
                nn.init.normal_(parameter, std=STD * residual)

    def start(self, cells_BLM: Tensor) -> Past:
        """Returns the past before the first token."""
        keys = tuple(block.cross.keys(cells_BLM) for block in self.blocks)  # pyright: ignore
        empty = keys[0][0][:, :, :0]
        return Past(tuple((empty, empty) for _ in keys), keys)

    def forward(self, ids_BT: Tensor, past: Past) -> tuple[Tensor, Past]:
        """Returns logits_BTK for the token after each of `ids`, and the past including `ids`."""
        at = torch.arange(past.length, past.length + ids_BT.shape[1], device=ids_BT.device)
        x, own = self.tokens(ids_BT) + self.positions(at), []
        for block, cells, before in zip(self.blocks, past.cells, past.own, strict=True):
            x, after = block(x, cells, before)
            own.append(after)
        return F.linear(self.norm(x), self.tokens.weight), Past(tuple(own), past.cells)


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Returns attention outputs [B, N, T, D / N]; `allowed` is True if a query attends to a key, None: to all.

    On a CPU it is computed as two batched products, whose backward pass takes a fraction of the time of torch's fused kernel
    for a few dozen tokens (LOG.md).
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(dim=-1).to(v.dtype) @ v


def split(x_BTD: Tensor, heads: int) -> Tensor:
    """Converts [B, T, D] to [B, N, T, D / N]."""
    return x_BTD.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge(x_BNTd: Tensor) -> Tensor:
    """Converts [B, N, T, D / N] to [B, T, D]."""
    return x_BNTd.transpose(1, 2).flatten(2)
