"""Vector quantisation with a codebook learned by moving averages of latents (van den Oord et al., 2017, appendix A.1).

Three measures keep all codes in use: latents and codes are low-dimensional and of unit length (ViT-VQGAN; Yu et al., 2022); the
codebook is initialised with latents after some steps without quantisation; and an unused code is replaced by a latent from the
batches of all processes (Jukebox; Dhariwal et al., 2020), chosen with a probability proportional to its quantisation error.

Axes: N latents of all images, D dimensions, K codes; else as in `t2i.vqvae.quantizers.contract`.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.vqvae.config import ResidualConfig, VectorConfig
from t2i.vqvae.quantizers.contract import COMMITMENT, Quantized, nearest, straight_through, to_grid, to_tokens

REVIVED = 1.0  # initial average of uses per step of a new code
NEVER = 1e-8  # a code with fewer average uses per step counts as unused


def _everywhere(x_ND: Tensor) -> Tensor:
    """Gathers the rows of all processes, which have equally many."""
    if not (dist.is_available() and dist.is_initialized()):
        return x_ND
    parts = [torch.empty_like(x_ND) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x_ND.contiguous())
    return torch.cat(parts)


def _sum_everywhere(x: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


class Codebook(nn.Module):
    """K codes of D dimensions and their moving averages, identical on every process.

    Args:
        unit: normalise codes to unit length.
        number: number of the codebook, which together with the step seeds its random draws.
    """

    codes_KD: Tensor
    sums_KD: Tensor
    counts_K: Tensor
    steps: Tensor

    def __init__(self, config: VectorConfig | ResidualConfig, unit: bool, number: int = 0) -> None:
        super().__init__()
        self.config, self.unit, self.number = config, unit, number
        codes = F.normalize(torch.randn(config.codebook_size, config.dim), dim=1)
        self.register_buffer("codes_KD", codes)
        self.register_buffer("sums_KD", codes.clone())
        self.register_buffer("counts_K", torch.ones(len(codes)))  # average uses per step
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def warming_up(self) -> bool:
        return bool(self.steps < self.config.warmup_steps)

    @torch.no_grad()
    def observe(self, x_ND: Tensor, indices_N: Tensor) -> None:
        """Moves the codes towards the latents that use them; during warm-up, replaces codes by sampled latents."""
        if self.warming_up:
            self._sample(x_ND)
        else:
            self._follow(x_ND, indices_N)
            if self.steps % self.config.revival_steps == 0:
                self._revive(x_ND, indices_N)
        self.steps += 1

    def _draws(self) -> torch.Generator:
        """Returns a CPU generator with a seed that is the same on all processes."""
        return torch.Generator().manual_seed(1_000_003 * self.number + int(self.steps))

    def _replace(self, rows: Tensor, codes_RD: Tensor, count: float) -> None:
        self.codes_KD[rows] = codes_RD
        self.sums_KD[rows] = codes_RD * count  # otherwise the old average would pull a revived code back
        self.counts_K[rows] = count

    def _sample(self, x_ND: Tensor) -> None:
        every = _everywhere(x_ND)
        draws = self._draws()
        count = min(len(every), len(self.codes_KD))
        chosen = torch.randperm(len(every), generator=draws)[:count].to(every.device)
        rows = torch.randperm(len(self.codes_KD), generator=draws)[:count].to(every.device)
        self._replace(rows, every[chosen], REVIVED)

    def _follow(self, x_ND: Tensor, indices_N: Tensor) -> None:
        counts = torch.zeros_like(self.counts_K).index_add_(0, indices_N, torch.ones_like(x_ND[:, 0]))
        sums = torch.zeros_like(self.sums_KD).index_add_(0, indices_N, x_ND)
        share = 1 - self.config.ema_decay
        self.counts_K.lerp_(_sum_everywhere(counts), share)
        self.sums_KD.lerp_(_sum_everywhere(sums), share)
        means = self.sums_KD / self.counts_K[:, None]
        means = F.normalize(means, dim=1) if self.unit else means
        in_use = self.counts_K[:, None] > NEVER  # unused codes are kept, as rounding would send them to 0
        torch.where(in_use, means, self.codes_KD, out=self.codes_KD)

    def _revive(self, x_ND: Tensor, indices_N: Tensor) -> None:
        dead = (self.counts_K < self.config.revive_below).nonzero()[:, 0]
        if not len(dead):
            return
        every = _everywhere(x_ND)
        errors = _everywhere((x_ND - self.codes_KD[indices_N]).square().sum(dim=1)).double().cpu()
        able = int((errors > 0).sum())
        if not able:
            return
        dead = dead[:able]
        chosen = torch.multinomial(errors, len(dead), generator=self._draws()).to(every.device)
        self._replace(dead, every[chosen], REVIVED)


class VectorQuantizer(nn.Module):
    """One codebook of unit-length codes."""

    codebooks = 1

    def __init__(self, config: VectorConfig) -> None:
        super().__init__()
        self.dim, self.codebook_size = config.dim, config.codebook_size
        self.book = Codebook(config, unit=True)

    def points(self, latents_BCHW: Tensor) -> Tensor:
        return F.normalize(to_tokens(latents_BCHW).float(), dim=-1)

    def forward(self, latents_BCHW: Tensor) -> Quantized:
        x = self.points(latents_BCHW)
        indices = nearest(x.flatten(0, 1), self.book.codes_KD).view(*x.shape[:2], 1)
        if self.training and self.book.warming_up:
            return Quantized(to_grid(x), indices, x.new_zeros(()))
        codes = self.book.codes_KD[indices[..., 0]]
        return Quantized(to_grid(straight_through(x, codes)), indices, COMMITMENT * F.mse_loss(x, codes))

    def codes_of(self, indices_BLQ: Tensor) -> Tensor:
        return to_grid(self.book.codes_KD[indices_BLQ[..., 0]])

    @torch.no_grad()
    def observe(self, latents_BCHW: Tensor, indices_BLQ: Tensor) -> None:
        self.book.observe(self.points(latents_BCHW).flatten(0, 1), indices_BLQ.flatten())
