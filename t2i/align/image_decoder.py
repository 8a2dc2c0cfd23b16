"""Decodes images from the shared space, so that the dual encoder is a multimodal autoencoder (Ngiam et al., ICML 2011).

Both embeddings of a pair are decoded to the image of the pair. With noise it is a variational autoencoder (Kingma & Welling,
ICLR 2014) whose posterior is q(z | e) = N(sqrt(E) e, diag(sigma^2(e))) for a unit-length embedding e. The prior N(0, 1) has
most of its mass at this radius. The KL divergence is E / 2 nats if sigma is 1.

Axes: B batch, C channels, H W image, E embedding.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.align.config import Config

START_GRID = 4  # places per side of the map that the first layer computes
START_LOG_VARIANCE = -3.0  # bias of the log variances, so that training begins with little noise


class Decoded(NamedTuple):
    """Scalars of one batch of pairs; the errors are mean squared errors per value of images in [-1, 1]."""

    image_error: Tensor  # of images decoded from their own embedding
    text_error: Tensor  # of images decoded from the embedding of their caption
    nats: Tensor  # KL divergence of q(z | e) from the prior, mean of both sides; 0 without noise


class UpBlock(nn.Module):
    """A residual 3x3 convolution, then one that doubles the resolution by rearranging channels."""

    def __init__(self, channels: int, channels_out: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm_up = nn.GroupNorm(8, channels)
        self.up = nn.Conv2d(channels, 4 * channels_out, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW + self.conv(F.silu(self.norm(x_BCHW)))
        return F.pixel_shuffle(self.up(F.silu(self.norm_up(x_BCHW))), 2)


class ImageDecoder(nn.Module):
    """Maps unit-length embeddings to images, by the channels of the image tower in reverse order."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = config.image_tower.channels(config.data.resolution)[::-1]
        self.radius = math.sqrt(config.embedding)
        self.start = nn.Linear(config.embedding, widths[0] * START_GRID**2)
        self.blocks = nn.ModuleList(UpBlock(a, b) for a, b in zip(widths, [*widths[1:], 3], strict=True))
        self.log_variance: nn.Linear | None = None
        if config.kl_weight:
            self.log_variance = nn.Linear(config.embedding, config.embedding)
            nn.init.constant_(self.log_variance.bias, START_LOG_VARIANCE)
        with torch.no_grad():
            self.blocks[-1].up.weight.mul_(0.1)  # type: ignore[union-attr]  # initial images are grey

    def forward(self, embedding_BE: Tensor) -> Tensor:
        """Returns images_BCHW, roughly in [-1, 1], of unit-length embeddings, without noise."""
        return self._decode(self.radius * embedding_BE)

    def losses(self, image_BE: Tensor, text_BE: Tensor, images_BCHW: Tensor) -> Decoded:
        """Decodes both embeddings of each pair; with noise, it is drawn from torch's generator."""
        both_BE = torch.cat([image_BE, text_BE])
        latents_BE, nats = self.radius * both_BE, both_BE.new_zeros(())
        if self.log_variance is not None:
            log_variance_BE = self.log_variance(both_BE).float().clamp(-12, 4)
            nats = kl_nats(latents_BE, log_variance_BE).mean()
            latents_BE = latents_BE + torch.randn_like(latents_BE) * (log_variance_BE / 2).exp()
        from_image_BCHW, from_text_BCHW = self._decode(latents_BE).float().chunk(2)
        return Decoded(F.mse_loss(from_image_BCHW, images_BCHW), F.mse_loss(from_text_BCHW, images_BCHW), nats)

    def _decode(self, latents_BE: Tensor) -> Tensor:
        x = self.start(latents_BE).unflatten(1, (-1, START_GRID, START_GRID))
        for block in self.blocks:
            x = block(x)
        return x


def kl_nats(mean_BE: Tensor, log_variance_BE: Tensor) -> Tensor:
    """Returns the KL divergence [B] of N(mean, exp(log variance)) from the standard normal, in nats."""
    return (mean_BE.square() + log_variance_BE.exp() - 1 - log_variance_BE).sum(dim=1) / 2
