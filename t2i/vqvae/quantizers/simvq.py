"""SimVQ, a frozen random codebook transformed by a learned linear map (Zhu et al., ICCV 2025).

Gradients of the map move all codes, so that no code stays unused.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.vqvae.config import SimVQConfig
from t2i.vqvae.quantizers.contract import COMMITMENT, Quantized, nearest, straight_through, to_grid, to_tokens


class SimVQ(nn.Module):
    """Computes codes as C W with C frozen."""

    codebooks = 1
    frozen_KD: Tensor

    def __init__(self, config: SimVQConfig) -> None:
        super().__init__()
        self.dim, self.codebook_size = config.dim, config.codebook_size
        self.register_buffer("frozen_KD", torch.randn(config.codebook_size, config.dim) * config.dim**-0.5)
        self.map = nn.Linear(config.dim, config.dim, bias=False)
        nn.init.eye_(self.map.weight)

    def _codebook(self) -> Tensor:
        with torch.autocast(self.frozen_KD.device.type, enabled=False):
            return self.map(self.frozen_KD)

    def points(self, latents_BCHW: Tensor) -> Tensor:
        return to_tokens(latents_BCHW).float()

    def forward(self, latents_BCHW: Tensor) -> Quantized:
        x, codebook = self.points(latents_BCHW), self._codebook()
        indices = nearest(x.flatten(0, 1), codebook).view(*x.shape[:2], 1)
        codes = codebook[indices[..., 0]]
        loss = F.mse_loss(codes, x.detach()) + COMMITMENT * F.mse_loss(x, codes.detach())
        return Quantized(to_grid(straight_through(x, codes.detach())), indices, loss)

    def codes_of(self, indices_BLQ: Tensor) -> Tensor:
        return to_grid(self._codebook()[indices_BLQ[..., 0]])

    def observe(self, latents_BCHW: Tensor, indices_BLQ: Tensor) -> None:
        """Does nothing, as the map is learned by gradients."""
