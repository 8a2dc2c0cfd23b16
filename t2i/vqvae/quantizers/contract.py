"""The protocol of quantisers, with functions that they share.

Axes: B batch, C channels of a latent (the quantiser's `dim`), H W latent grid, L = H * W tokens row by row, Q codebooks.
"""

from typing import Any, NamedTuple, Protocol

import torch
from einops import rearrange
from torch import Tensor

COMMITMENT = 0.25  # weight of the distance from latents to their codes


class Quantized(NamedTuple):
    """Latents replaced by codes."""

    codes_BCHW: Tensor  # exactly `codes_of(indices_BLQ)`; its gradient is passed to the latents unchanged
    indices_BLQ: Tensor  # int64 in [0, K)
    loss: Tensor  # scalar term of the loss


class Quantizer(Protocol):
    """A module that replaces latents by codes; `QUANTIZERS` lists the implementations."""

    dim: int  # channels of latents and codes
    codebooks: int  # Q
    codebook_size: int  # K

    def __call__(self, latents_BCHW: Tensor) -> Quantized: ...

    def points(self, latents_BCHW: Tensor) -> Tensor:
        """Returns points_BLC, float32: latents in the form in which each is replaced by its nearest code."""
        ...

    def codes_of(self, indices_BLQ: Tensor) -> Tensor:
        """Returns codes_BCHW of a square grid of tokens, bit for bit as `forward` returned them."""
        ...

    def observe(self, latents_BCHW: Tensor, indices_BLQ: Tensor) -> None:
        """Updates codes that are not learned by gradients; called after each sound optimiser step."""
        ...


class _StraightThrough(torch.autograd.Function):
    """Returns the codes exactly (latents + (codes - latents) would round) and passes the gradient on unchanged."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, codes: Tensor) -> Tensor:
        return codes.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def straight_through(latents: Tensor, codes: Tensor) -> Tensor:
    """Returns `codes` and passes their gradient to `latents` (Bengio et al., 2013)."""
    return _StraightThrough.apply(latents, codes)  # type: ignore[return-value]


def to_tokens(x_BCHW: Tensor) -> Tensor:
    """Converts to [B, L, C], row by row."""
    return rearrange(x_BCHW, "b c h w -> b (h w) c")


def to_grid(x_BLC: Tensor) -> Tensor:
    """Converts L = h * h tokens to [B, C, h, h]."""
    side = round(x_BLC.shape[1] ** 0.5)
    if side * side != x_BLC.shape[1]:
        raise ValueError(f"{x_BLC.shape[1]} tokens are not a square grid")
    return rearrange(x_BLC, "b (h w) c -> b c h w", h=side)


def nearest(x_ND: Tensor, codebook_KD: Tensor) -> Tensor:
    """Returns the index [N] of the code with the least Euclidean distance, in fp32 under any autocast."""
    with torch.autocast(x_ND.device.type, enabled=False):
        codes = codebook_KD.float()
        return torch.addmm(codes.square().sum(dim=1), x_ND.float(), codes.T, alpha=-2).argmin(dim=1)
