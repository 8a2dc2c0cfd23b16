"""A residual text-conditional GAN without normalisation layers.

Blocks and initialisation follow R3GAN (Huang et al., NeurIPS 2024), text fusion by affine layers DF-GAN (Tao et al., CVPR
2022), the projection discriminator Miyato & Koyama (ICLR 2018), gated word attention GigaGAN (Kang et al., CVPR 2023).

Axes: B batch, C channels, H W image, T text tokens, D token width, P pooled text, Z noise, W latent.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from t2i.cgan.config import DiscriminatorConfig, GeneratorConfig
from t2i.text import TextFeatures

SLOPE = 0.2
ATTENTION_AT = (8, 16)


def unit_rms(x: Tensor) -> Tensor:
    """Scales each row to a mean square of one."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-8)


def unit_energy(x_BCHW: Tensor) -> Tensor:
    """Scales the features of each image to a mean square of one over channels and positions, which keeps contrasts."""
    return x_BCHW * torch.rsqrt(x_BCHW.float().square().mean(dim=(1, 2, 3), keepdim=True) + 1e-4).to(x_BCHW.dtype)


def activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def conv3x3(channels_in: int, channels_out: int, gain: float = 1.0) -> nn.Conv2d:
    """Returns a convolution with He initialisation for the leaky ReLU; gain 0 starts a residual branch at zero (Fixup)."""
    layer = nn.Conv2d(channels_in, channels_out, 3, padding=1)
    nn.init.normal_(layer.weight, std=gain * math.sqrt(2 / (1 + SLOPE**2) / (9 * channels_in)))
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def conv1x1(channels_in: int, channels_out: int) -> nn.Module:
    """Returns the projection of a skip path; the identity if the numbers of channels are equal."""
    if channels_in == channels_out:
        return nn.Identity()
    layer = nn.Conv2d(channels_in, channels_out, 1, bias=False)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(channels_in))
    return layer


def stage_widths(width: int, limit: int, resolution: int) -> list[int]:
    """Returns the channels of all stages, from full resolution down to 4 x 4."""
    return [min(width * 2**i, limit) for i in range((resolution // 4).bit_length())]


class Affine(nn.Module):
    """Scales and shifts channels by the latent (DF-GAN), after scaling the features to unit mean square.

    Without this normalisation, the scales multiply from block to block and the output grows without bound at the learning
    rates of short runs: fitted to images alone at 1e-3, the generator diverged in three of three trials, and in none with it.
    """

    def __init__(self, w_dim: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(w_dim, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_BCHW: Tensor, w_BW: Tensor) -> Tensor:
        scale, shift = self.linear(w_BW)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, unit_energy(x_BCHW), 1 + scale)


class GeneratorBlock(nn.Module):
    """A residual pair of 3x3 convolutions, each after an affine layer."""

    def __init__(self, channels_in: int, channels_out: int, w_dim: int) -> None:
        super().__init__()
        self.skip = conv1x1(channels_in, channels_out)
        self.affine_1, self.conv_1 = Affine(w_dim, channels_in), conv3x3(channels_in, channels_out)
        self.affine_2, self.conv_2 = Affine(w_dim, channels_out), conv3x3(channels_out, channels_out, gain=0)

    def forward(self, x_BCHW: Tensor, w_BW: Tensor) -> Tensor:
        h = self.conv_1(activate(self.affine_1(x_BCHW, w_BW)))
        return self.skip(x_BCHW) + self.conv_2(activate(self.affine_2(h, w_BW)))


class WordAttention(nn.Module):
    """Attention of pixels to token states, without padding; the gate starts at 0, so it has no effect at first."""

    def __init__(self, channels: int, token_dim: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(channels, channels), nn.Linear(token_dim, 2 * channels)
        self.out = nn.Linear(channels, channels)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x_BCHW: Tensor, tokens_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        height = x_BCHW.shape[2]
        pixels = rearrange(x_BCHW, "b c h w -> b (h w) c")
        q = rearrange(self.q(unit_rms(pixels)), "b l (n d) -> b n l d", n=self.heads)
        k, v = rearrange(self.kv(unit_rms(tokens_BTD)), "b t (two n d) -> two b n t d", two=2, n=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BT[:, None, None, :])
        update = self.out(rearrange(attended, "b n l d -> b l (n d)"))
        return x_BCHW + self.gate * rearrange(update, "b (h w) c -> b c h w", h=height)


class Generator(nn.Module):
    """Generates images in [-1, 1] from noise and text; `mapping` and `synthesis` are its two halves."""

    w_average: Tensor
    # meaning of the columns, for starting from other weights (t2i.training.initialise)
    roles: ClassVar[dict[str, str]] = {"text.weight": "pooled", "words.*.kv.weight": "tokens"}

    def __init__(self, config: GeneratorConfig, resolution: int, pooled_dim: int, token_dim: int) -> None:
        super().__init__()
        self.config, self.resolution = config, resolution
        widths = stage_widths(config.width, config.width_limit, resolution)[::-1]
        self.text = nn.Linear(pooled_dim, config.w_dim)
        self.map_1 = nn.Linear(config.z_dim + config.w_dim, config.w_dim)
        self.map_2 = nn.Linear(config.w_dim, config.w_dim)
        self.start = nn.Linear(config.w_dim, widths[0] * 16)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                GeneratorBlock(channels_in if k == 0 else channels, channels, config.w_dim) for k in range(config.depth)
            )
            for channels_in, channels in zip([widths[0], *widths[:-1]], widths, strict=True)
        )
        self.words = nn.ModuleDict(
            {
                str(4 * 2**i): WordAttention(channels, token_dim)
                for i, channels in enumerate(widths)
                if config.cross_attention and 4 * 2**i in ATTENTION_AT
            }
        )
        self.to_rgb = conv3x3(widths[-1], 3, gain=0.3)
        # the mean latent over training captions, which guidance uses in place of a null caption
        self.register_buffer("w_average", torch.zeros(config.w_dim))
        self.to(memory_format=torch.channels_last)

    def mapping(self, z_BZ: Tensor, pooled_BP: Tensor) -> Tensor:
        """Returns w_BW, of unit mean square. Noise and text have equal weight."""
        text = unit_rms(self.text(unit_rms(pooled_BP)))
        hidden = activate(self.map_1(torch.cat([unit_rms(z_BZ), text], dim=1)))
        return unit_rms(activate(self.map_2(hidden)))

    def synthesis(self, w_BW: Tensor, text: TextFeatures) -> Tensor:
        """Returns images_BCHW, roughly in [-1, 1]; they are not clipped, so that gradients never vanish."""
        x = self.start(w_BW).view(w_BW.shape[0], -1, 4, 4).contiguous(memory_format=torch.channels_last)
        for i, stage in enumerate(self.stages):
            if i:
                x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            for block in stage:  # type: ignore[union-attr]
                x = block(x, w_BW)
            if str(x.shape[2]) in self.words:
                x = self.words[str(x.shape[2])](x, text.tokens_BTD, text.mask_BT)
        return self.to_rgb(activate(unit_energy(x)))

    def forward(self, z_BZ: Tensor, text: TextFeatures) -> Tensor:
        return self.synthesis(self.mapping(z_BZ, text.pooled_BP), text)


class DiscriminatorBlock(nn.Module):
    """A residual pair of 3x3 convolutions."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.skip = conv1x1(channels_in, channels_out)
        self.conv_1, self.conv_2 = conv3x3(channels_in, channels_in), conv3x3(channels_in, channels_out, gain=0)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.skip(x_BCHW) + self.conv_2(activate(self.conv_1(activate(x_BCHW))))


class Discriminator(nn.Module):
    """Computes logit(x, t) = u(phi(x)) + <phi(x), P t> / sqrt(d), so that further captions of an image need no second pass."""

    roles: ClassVar[dict[str, str]] = {"text_1.weight": "pooled"}

    def __init__(self, config: DiscriminatorConfig, resolution: int, pooled_dim: int) -> None:
        super().__init__()
        widths = stage_widths(config.width, config.width_limit, resolution)
        self.stem = conv3x3(3, widths[0])
        self.stages = nn.ModuleList(
            nn.ModuleList(
                DiscriminatorBlock(channels, channels_out if k == config.depth - 1 else channels)
                for k in range(config.depth)
            )
            for channels, channels_out in zip(widths[:-1], widths[1:], strict=True)
        )
        self.last = conv3x3(widths[-1], widths[-1])
        self.phi = nn.Linear(widths[-1] * 16, config.feature_dim)
        self.unconditional = nn.Linear(config.feature_dim, 1)
        self.text_1 = nn.Linear(pooled_dim, config.feature_dim)
        self.text_2 = nn.Linear(config.feature_dim, config.feature_dim)
        for head in (self.unconditional, self.text_2):  # logits start at 0, and relativistic losses at ln 2
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, images_NCHW: Tensor, pooled_MP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Processes all images and captions of a step in one pass, as DistributedDataParallel requires.

        Returns:
            unconditional u(phi(x)) [N], features phi(x) [N, F], projected captions P t / sqrt(F) [M, F]. The logit of image
            i with caption j is unconditional[i] + <features[i], projected[j]>.
        """
        x = self.stem(images_NCHW)
        for stage in self.stages:
            for block in stage:  # type: ignore[union-attr]
                x = block(x)
            x = F.avg_pool2d(x, 2)
        features = activate(self.phi(activate(self.last(activate(x))).flatten(1)))
        projected = self.text_2(activate(self.text_1(unit_rms(pooled_MP))))
        projected = projected / math.sqrt(projected.shape[-1])
        return self.unconditional(features).squeeze(1).float(), features.float(), projected.float()
