"""Residual quantisation, in which each codebook quantises the residual of the previous ones (RQ-VAE; Lee et al., CVPR 2022).

Axes as in `t2i.vqvae.quantizers.vector`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.vqvae.config import ResidualConfig
from t2i.vqvae.quantizers.contract import COMMITMENT, Quantized, nearest, straight_through, to_grid, to_tokens
from t2i.vqvae.quantizers.vector import Codebook


class ResidualQuantizer(nn.Module):
    """Q codebooks whose codes are summed; the latents have unit length."""

    def __init__(self, config: ResidualConfig) -> None:
        super().__init__()
        self.dim, self.codebook_size = config.dim, config.codebook_size
        self.codebooks = config.depth
        self.books = nn.ModuleList(Codebook(config, unit=False, number=i) for i in range(config.depth))

    def points(self, latents_BCHW: Tensor) -> Tensor:
        return F.normalize(to_tokens(latents_BCHW).float(), dim=-1)

    def _book(self, i: int) -> Codebook:
        return self.books[i]  # type: ignore[return-value]

    def forward(self, latents_BCHW: Tensor) -> Quantized:
        x = self.points(latents_BCHW)
        rest, indices, loss = x.detach(), [], x.new_zeros(())
        codes = torch.zeros_like(rest)
        for i in range(self.codebooks):
            nearest_BL = nearest(rest.flatten(0, 1), self._book(i).codes_KD).view(rest.shape[:2])
            codes = codes + self._book(i).codes_KD[nearest_BL]
            rest = x.detach() - codes
            loss = loss + F.mse_loss(x, codes)  # each partial sum should be close (equation 7)
            indices.append(nearest_BL)
        indices_BLQ = torch.stack(indices, dim=-1)
        if self.training and self._book(0).warming_up:
            return Quantized(to_grid(x), indices_BLQ, x.new_zeros(()))
        loss = COMMITMENT * loss / self.codebooks
        return Quantized(to_grid(straight_through(x, codes)), indices_BLQ, loss)

    def codes_of(self, indices_BLQ: Tensor) -> Tensor:
        codes = torch.zeros(*indices_BLQ.shape[:2], self.dim, device=indices_BLQ.device)
        for i in range(self.codebooks):  # in this order, for identical rounding
            codes = codes + self._book(i).codes_KD[indices_BLQ[..., i]]
        return to_grid(codes)

    @torch.no_grad()
    def observe(self, latents_BCHW: Tensor, indices_BLQ: Tensor) -> None:
        rest = self.points(latents_BCHW).flatten(0, 1)
        for i in range(self.codebooks):
            indices_N = indices_BLQ[..., i].flatten()
            codes = self._book(i).codes_KD[indices_N]
            self._book(i).observe(rest, indices_N)
            rest = rest - codes
