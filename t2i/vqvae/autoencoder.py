"""A convolutional autoencoder around a quantiser (VQGAN; Esser et al., CVPR 2021), without layers at full resolution.

Pixels are first folded into channels, since convolutions at full resolution cost most and improve least on a CPU.

Axes: B batch, C channels, H W image, h w latent grid, L = h * w tokens, Q codebooks.
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from t2i.names import resolve
from t2i.vqvae.config import AutoencoderConfig, Config
from t2i.vqvae.quantizers import QUANTIZERS
from t2i.vqvae.quantizers.contract import Quantizer


class Reconstruction(NamedTuple):
    """Output of the autoencoder."""

    images_BCHW: Tensor  # roughly in [-1, 1]
    latents_BCHW: Tensor  # before quantisation
    indices_BLQ: Tensor
    loss: Tensor  # of the quantiser


def _groups(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


class ResidualBlock(nn.Module):
    """A residual pair of 3x3 convolutions, initialised as the identity.

    It has one norm instead of two, since a second one would take a quarter of the time on a CPU, and more steps help more.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _groups(channels)
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv_2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_2(F.silu(self.conv_1(F.silu(self.norm(x)))))


class Attention(nn.Module):
    """Single-head self-attention over the grid, as in VQGAN's middle block, initialised as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _groups(channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (three c) h w -> three b 1 (h w) c", three=3)
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(rearrange(attended, "b 1 (h w) c -> b c h w", h=x.shape[2]))


def _blocks(channels: int, depth: int, attention: bool) -> list[nn.Module]:
    blocks: list[nn.Module] = [ResidualBlock(channels) for _ in range(depth)]
    return [*blocks, Attention(channels)] if attention else blocks


def _widths(config: AutoencoderConfig, resolution: int) -> list[int]:
    """Returns the channels of all stages, from the finest down to the grid."""
    halvings = (resolution // config.patch // config.grid).bit_length() - 1
    return [min(config.width * 2**i, config.width_limit) for i in range(halvings + 1)]


class Encoder(nn.Sequential):
    """Maps images in [-1, 1] to latents."""

    def __init__(self, config: AutoencoderConfig, resolution: int, dim: int) -> None:
        widths = _widths(config, resolution)
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(config.patch),
            nn.Conv2d(3 * config.patch**2, widths[0], 3, padding=1),
        ]
        for i, channels in enumerate(widths):
            last = i == len(widths) - 1
            layers += _blocks(channels, config.encoder_depth, config.attention and last)
            if not last:
                layers.append(nn.Conv2d(channels, widths[i + 1], 3, stride=2, padding=1))
        layers += [_groups(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], dim, 1)]
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """Maps codes to images."""

    def __init__(self, config: AutoencoderConfig, resolution: int, dim: int) -> None:
        widths = _widths(config, resolution)[::-1]
        layers: list[nn.Module] = [nn.Conv2d(dim, widths[0], 3, padding=1)]
        for i, channels in enumerate(widths):
            layers += _blocks(channels, config.decoder_depth, config.attention and i == 0)
            if i < len(widths) - 1:
                layers += [nn.Conv2d(channels, 4 * widths[i + 1], 3, padding=1), nn.PixelShuffle(2)]
        layers += [_groups(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], 3 * config.patch**2, 3, padding=1)]
        super().__init__(*layers, nn.PixelShuffle(config.patch))
        with torch.no_grad():
            self.last_weight.mul_(0.1)  # initial outputs are grey, not noise

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last convolution, whose gradients determine the adaptive weight of the adversarial loss."""
        return cast(nn.Conv2d, self[-2]).weight


def make_quantizer(config: Config) -> Quantizer:
    """Returns the quantiser that `config.quantizer.kind` names."""
    return resolve(QUANTIZERS[config.quantizer.kind])(config.quantizer)


class Autoencoder(nn.Module):
    """Encoder, quantiser and decoder, initialised with torch's generator."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        quantizer = make_quantizer(config)
        place = config.autoencoder, config.data.resolution, quantizer.dim
        self.encoder, self.decoder = Encoder(*place), Decoder(*place)
        self.quantizer = cast(nn.Module, quantizer)
        self.to(memory_format=torch.channels_last)

    @property
    def codes(self) -> Quantizer:
        """The quantiser, typed by its protocol."""
        return cast(Quantizer, self.quantizer)

    def forward(self, images_BCHW: Tensor) -> Reconstruction:
        latents = self.encoder(images_BCHW.contiguous(memory_format=torch.channels_last))
        quantized = self.codes(latents)
        return Reconstruction(self.decoder(quantized.codes_BCHW), latents, quantized.indices_BLQ, quantized.loss)

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Returns indices_BLQ of images in [-1, 1]."""
        return self.codes(self.encoder(images_BCHW.contiguous(memory_format=torch.channels_last))).indices_BLQ

    def points(self, images_BCHW: Tensor) -> Tensor:
        """Returns points_BLC of images in [-1, 1]: latents in the form that is compared with the codes."""
        return self.codes.points(self.encoder(images_BCHW.contiguous(memory_format=torch.channels_last)))

    def decode(self, indices_BLQ: Tensor) -> Tensor:
        """Returns images_BCHW, roughly in [-1, 1]."""
        return self.decoder(self.codes.codes_of(indices_BLQ))
