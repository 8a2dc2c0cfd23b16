"""A dual encoder, which maps captions and images into one space (CLIP, Radford et al., 2021), small enough for a CPU.

Axes: B batch, C channels, H W image, T text tokens, D token width, E shared embedding.
"""

from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from t2i.align.config import Config, ImageTowerConfig, TextTowerConfig
from t2i.align.image_decoder import ImageDecoder

TEMPERATURE_START, SCALE_LIMIT = 0.07, 100.0
PLACES = 16  # in the 4 x 4 map at the end of the image tower
KERNEL = 5  # width of the text tower's convolution, in tokens


class TowerBlock(nn.Module):
    """A pre-norm transformer block; with a kernel, a depthwise convolution first mixes each token with its neighbours.

    With the convolution, adjectives are bound to their nouns in a third of the steps that attention alone needs (LOG.md;
    compare Primer, So et al., NeurIPS 2021).
    """

    def __init__(self, width: int, heads: int, kernel: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.neighbours = (
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(width),
                    "conv": nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width),
                }
            )
            if kernel
            else None
        )

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None, visible_TT: Tensor | None = None) -> Tensor:
        """
        Args:
            mask_BT: True at real tokens; padding is never attended to. None: all tokens are real.
            visible_TT: True if token i may attend to token j; None: all tokens may.
        """
        if self.neighbours is not None:
            normed = self.neighbours["norm"](x_BTD)
            normed = normed if mask_BT is None else normed * mask_BT[..., None]
            x_BTD = x_BTD + self.neighbours["conv"](normed.transpose(1, 2)).transpose(1, 2)
        q, k, v = rearrange(
            self.qkv(self.norm_attention(x_BTD)), "b t (three n d) -> three b n t d", three=3, n=self.heads
        )
        allowed = visible_TT if mask_BT is None else mask_BT[:, None, None, :]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        x_BTD = x_BTD + self.out(rearrange(attended, "b n t d -> b t (n d)"))
        return x_BTD + self.mlp(self.norm_mlp(x_BTD))


class TextTower(nn.Module):
    """Maps token ids to token states, and projects their mean to an embedding."""

    def __init__(self, config: TextTowerConfig, vocabulary: int, embedding: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, config.width)
        self.positions = nn.Parameter(torch.randn(config.max_tokens, config.width) * 0.02)
        self.blocks = nn.ModuleList(TowerBlock(config.width, config.heads, KERNEL) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.project = nn.Linear(config.width, embedding, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor, trim: bool = True) -> tuple[Tensor, Tensor]:
        """Returns tokens_BTD (normalised states, zero at padding) and embedding_BE (not normalised).

        Args:
            trim: skip the padding after the longest caption, which is faster; the last bits then depend on the batch.
        """
        longest = int(mask_BT.sum(dim=1).max()) if trim else ids_BT.shape[1]
        mask = mask_BT[:, :longest]
        x = self.tokens(ids_BT[:, :longest]) + self.positions[:longest]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x) * mask[..., None]
        embedding = self.project(x.sum(dim=1) / mask.sum(dim=1, keepdim=True))
        return F.pad(x, (0, 0, 0, ids_BT.shape[1] - longest)), embedding


class ResidualStage(nn.Module):
    """Halves the resolution, then applies residual pairs of 3x3 convolutions."""

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


def last_map(images_BCHW: Tensor, resolution: int, stem: nn.Module, stages: Iterable[nn.Module]) -> Tensor:
    """Resizes images to `resolution` and returns the output map of the last stage."""
    x = images_BCHW
    if x.shape[-1] != resolution:
        x = F.interpolate(x, (resolution, resolution), mode="bilinear", antialias=True)
    x = F.silu(stem(x))
    for stage in stages:
        x = stage(x)
    return x


class ImageTower(nn.Module):
    """Maps images in [-1, 1] to embeddings. The last 4 x 4 map is flattened, not averaged, to keep positions."""

    def __init__(self, config: ImageTowerConfig, resolution: int, embedding: int) -> None:
        super().__init__()
        self.resolution = resolution
        widths = config.channels(resolution)
        self.stem = nn.Conv2d(3, config.width // 2, 3, padding=1)
        self.stages = nn.ModuleList(
            ResidualStage(channels_in, channels, config.depth)
            for channels_in, channels in zip([config.width // 2, *widths[:-1]], widths, strict=True)
        )
        self.norm = nn.GroupNorm(8, widths[-1])
        self.project = nn.Linear(widths[-1] * 16, embedding, bias=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Returns embedding_BE, not normalised, of images of any size."""
        return self.embed(self.map(images_BCHW))

    def map(self, images_BCHW: Tensor) -> Tensor:
        """Returns the last feature map [B, C, 4, 4]."""
        return last_map(images_BCHW, self.resolution, self.stem, self.stages)

    def embed(self, map_BCHW: Tensor) -> Tensor:
        """Returns embedding_BE of a map, not normalised."""
        return self.project(F.silu(self.norm(map_BCHW)).flatten(1))


class DualEncoder(nn.Module):
    """A text tower, an image tower, a learned temperature and, if `image_weight` is set, a decoder of images."""

    # meaning of the rows of weights, for runs that start from other weights (t2i.training.initialise)
    roles: ClassVar[dict[str, str]] = {"text.tokens.weight": "words", "text.positions": "order"}

    def __init__(self, config: Config, vocabulary: int) -> None:
        super().__init__()
        self.text = TextTower(config.text_tower, vocabulary, config.embedding)
        self.image = ImageTower(config.image_tower, config.data.resolution, config.embedding)
        self.log_scale = nn.Parameter(torch.tensor(1 / TEMPERATURE_START).log())
        self.image_decoder = ImageDecoder(config) if config.image_weight else None
        self.to(memory_format=torch.channels_last)

    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        """Returns unit-length embedding_BE of images in [-1, 1]."""
        return F.normalize(self.image(images_BCHW).float(), dim=-1)

    def embed_text(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Returns unit-length embedding_BE of captions."""
        return F.normalize(self.text(ids_BT, mask_BT)[1].float(), dim=-1)

    def scale(self) -> Tensor:
        """Returns 1 / temperature, which is at most 100, as in CLIP."""
        return self.log_scale.exp().clamp(max=SCALE_LIMIT)


class Captioner(nn.Module):
    """Writes captions from the last map of the image tower, as a second task that trains this tower.

    Any detail that separates the captions of a batch satisfies the contrastive loss, while predicting the next word needs all
    details (CoCa, Yu et al., TMLR 2022). After training it captions images (`t2i.reader`).
    """

    roles: ClassVar[dict[str, str]] = {"tokens.weight": "words", "out.*": "words", "positions": "order"}

    def __init__(self, config: Config, vocabulary: int, depth: int = 2) -> None:
        super().__init__()
        text, channels = config.text_tower, config.image_tower.channels(config.data.resolution)[-1]
        self.places = nn.Linear(channels, text.width)
        self.place_positions = nn.Parameter(torch.randn(PLACES, text.width) * 0.5)
        self.tokens = nn.Embedding(vocabulary, text.width)
        self.positions = nn.Parameter(torch.randn(text.max_tokens, text.width) * 0.02)
        self.blocks = nn.ModuleList(TowerBlock(text.width, text.heads) for _ in range(depth))
        self.norm, self.out = nn.LayerNorm(text.width), nn.Linear(text.width, vocabulary)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, map_BCHW: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Returns the mean negative log likelihood of a token given the map and the tokens before it, in nats."""
        length = int(mask_BT.sum(dim=1).max())
        ids, mask = ids_BT[:, :length], mask_BT[:, :length]
        logits = self.logits(map_BCHW, ids[:, :-1]).float()
        return F.cross_entropy(logits[mask[:, 1:]], ids[:, 1:][mask[:, 1:]])

    def logits(self, map_BCHW: Tensor, ids_BT: Tensor) -> Tensor:
        """Returns logits [B, T, vocabulary] for the token after each of `ids`."""
        places = self.places(rearrange(map_BCHW, "b c h w -> b (h w) c")) + self.place_positions
        x = torch.cat([places, self.tokens(ids_BT) + self.positions[: ids_BT.shape[1]]], dim=1)
        visible = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        visible[:, :PLACES] = True
        for block in self.blocks:
            x = block(x, None, visible)
        return self.out(self.norm(x[:, PLACES:]))
