"""Finite scalar quantisation, which bounds each dimension and rounds it to a few levels (FSQ; Mentzer et al., ICLR 2024).

There is no learned codebook, which could collapse; K is the product of the levels.
"""

import torch
from torch import Tensor, nn

from t2i.vqvae.config import ScalarConfig
from t2i.vqvae.quantizers.contract import Quantized, straight_through, to_grid, to_tokens

MARGIN = 1e-3  # relative distance of the bound from the outer levels


class ScalarQuantizer(nn.Module):
    """Codes are points of a grid in [-1, 1]^D, numbered in mixed radix with the first dimension fastest."""

    codebooks = 1
    levels_D: Tensor
    radix_D: Tensor

    def __init__(self, config: ScalarConfig) -> None:
        super().__init__()
        self.dim, self.codebook_size = len(config.levels), config.codebook_size
        levels = torch.tensor(config.levels)
        self.register_buffer("levels_D", levels, persistent=False)
        self.register_buffer("radix_D", torch.cumprod(levels, 0) // levels, persistent=False)

    def _bound(self, x_BLD: Tensor) -> Tensor:
        """Bounds latents to (-L/2, L/2), where rounding gives the L levels -(L // 2) ... (L - 1) // 2 (equation 1)."""
        half = (self.levels_D - 1) * (1 + MARGIN) / 2
        offset = 0.5 * (self.levels_D % 2 == 0)
        return torch.tanh(x_BLD + torch.atanh(offset / half)) * half - offset

    def points(self, latents_BCHW: Tensor) -> Tensor:
        return self._bound(to_tokens(latents_BCHW).float()) / (self.levels_D // 2)

    def forward(self, latents_BCHW: Tensor) -> Quantized:
        bounded = self._bound(to_tokens(latents_BCHW).float())
        digits = (bounded.round() + self.levels_D // 2).long()
        indices = (digits * self.radix_D).sum(dim=-1, keepdim=True)
        codes = straight_through(bounded / (self.levels_D // 2), self._codes(indices[..., 0]))
        return Quantized(to_grid(codes), indices, codes.new_zeros(()))

    def _codes(self, indices_BL: Tensor) -> Tensor:
        digits = indices_BL[..., None] // self.radix_D % self.levels_D
        half = self.levels_D // 2
        return (digits - half).float() / half

    def codes_of(self, indices_BLQ: Tensor) -> Tensor:
        return to_grid(self._codes(indices_BLQ[..., 0]))

    def observe(self, latents_BCHW: Tensor, indices_BLQ: Tensor) -> None:
        """Does nothing, as the grid is fixed."""
