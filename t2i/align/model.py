"""A dual encoder: a caption and a picture mapped into one space (CLIP, Radford et al. 2021), small enough for a CPU.

Axes: B batch, C channels, H W picture, T text tokens, D token width, E shared embedding.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from t2i.align.config import Config, ImageTowerConfig, TextTowerConfig

TEMPERATURE_START, SCALE_LIMIT = 0.07, 100.0


class Block(nn.Module):
    """Pre-norm transformer block; padded keys are never attended to."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.qkv(self.norm_attention(x_BTD)), "b t (three n d) -> three b n t d", three=3, n=self.heads
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BT[:, None, None, :])
        x_BTD = x_BTD + self.out(rearrange(attended, "b n t d -> b t (n d)"))
        return x_BTD + self.mlp(self.norm_mlp(x_BTD))


class TextTower(nn.Module):
    """ids -> token states and the state at the end token."""

    def __init__(self, config: TextTowerConfig, vocabulary: int, embedding: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, config.width)
        self.positions = nn.Parameter(torch.randn(config.max_tokens, config.width) * 0.02)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.project = nn.Linear(config.width, embedding, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor, trim: bool = True) -> tuple[Tensor, Tensor]:
        """tokens_BTD (normed states, zero at padding) and embedding_BE (not yet normalised).

        Args:
            trim: leave out the padding beyond the longest caption: faster, but the last bits then depend on the batch.
        """
        longest = int(mask_BT.sum(dim=1).max()) if trim else ids_BT.shape[1]
        x = self.tokens(ids_BT[:, :longest]) + self.positions[:longest]
        for block in self.blocks:
            x = block(x, mask_BT[:, :longest])
        x = self.norm(x) * mask_BT[:, :longest, None]
        last = mask_BT.sum(dim=1) - 1
        embedding = self.project(x[torch.arange(len(x), device=x.device), last])
        return F.pad(x, (0, 0, 0, ids_BT.shape[1] - longest)), embedding


class ResidualStage(nn.Module):
    """Halves the picture, then residual 3x3 pairs."""

    def __init__(self, channels_in: int, channels: int, depth: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels_in, channels, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(8, channels),
                nn.SiLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.GroupNorm(8, channels),
                nn.SiLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
            )
            for _ in range(depth)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.down(x_BCHW)
        for block in self.blocks:
            x_BCHW = x_BCHW + block(x_BCHW)
        return x_BCHW


class ImageTower(nn.Module):
    """Picture in [-1, 1] -> embedding. The last 4 x 4 map is flattened, not averaged: places are part of the meaning."""

    def __init__(self, config: ImageTowerConfig, resolution: int, embedding: int) -> None:
        super().__init__()
        self.resolution = resolution
        halvings = (resolution // 4).bit_length() - 1
        widths = [min(config.width * 2**i, config.width_limit) for i in range(halvings)]
        self.stem = nn.Conv2d(3, config.width // 2, 3, padding=1)
        self.stages = nn.ModuleList(
            ResidualStage(channels_in, channels, config.depth)
            for channels_in, channels in zip([config.width // 2, *widths[:-1]], widths, strict=True)
        )
        self.norm = nn.GroupNorm(8, widths[-1])
        self.project = nn.Linear(widths[-1] * 16, embedding, bias=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """embedding_BE, not yet normalised. Pictures of another size are brought to the tower's own first."""
        return self.project(F.silu(self.norm(self.maps(images_BCHW)[-1])).flatten(1))

    def maps(self, images_BCHW: Tensor) -> list[Tensor]:
        """The feature map after each stage, finest first."""
        x = images_BCHW
        if x.shape[-1] != self.resolution:
            x = F.interpolate(x, (self.resolution, self.resolution), mode="bilinear", antialias=True)
        out = []
        x = F.silu(self.stem(x))
        for stage in self.stages:
            x = stage(x)
            out.append(x)
        return out


class DualEncoder(nn.Module):
    """Both towers and the learned temperature."""

    def __init__(self, config: Config, vocabulary: int) -> None:
        super().__init__()
        self.text = TextTower(config.text_tower, vocabulary, config.embedding)
        self.image = ImageTower(config.image_tower, config.data.resolution, config.embedding)
        self.log_scale = nn.Parameter(torch.tensor(1 / TEMPERATURE_START).log())
        self.to(memory_format=torch.channels_last)

    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        """Unit-length embedding_BE of pictures in [-1, 1]."""
        return F.normalize(self.image(images_BCHW).float(), dim=-1)

    def embed_text(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Unit-length embedding_BE of captions."""
        return F.normalize(self.text(ids_BT, mask_BT)[1].float(), dim=-1)

    def scale(self) -> Tensor:
        """1 / temperature, at most 100 as in CLIP."""
        return self.log_scale.exp().clamp(max=SCALE_LIMIT)


def contrastive_loss(image_BE: Tensor, text_BE: Tensor, scale: Tensor, same_BB: Tensor) -> Tensor:
    """Symmetric InfoNCE (van den Oord et al. 2018; Radford et al. 2021, figure 3).

    Args:
        image_BE, text_BE: unit-length embeddings of matching pairs.
        scale: 1 / temperature.
        same_BB: True where caption j says the same as caption i: those are no negatives.
    """
    logits_BB = scale * image_BE @ text_BE.T
    own = torch.eye(len(logits_BB), dtype=torch.bool, device=logits_BB.device)
    logits_BB = logits_BB.masked_fill(same_BB & ~own, float("-inf"))
    target = torch.arange(len(logits_BB), device=logits_BB.device)
    return (F.cross_entropy(logits_BB, target) + F.cross_entropy(logits_BB.T, target)) / 2
