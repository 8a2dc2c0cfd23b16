"""The networks of a reader: image tower and caption decoder; question tower, fusion and head for answers.

Axes: B images, Q questions, C channels, H W image, L cells, T tokens, D width, K tokens of the vocabulary, A answers.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.align.dual_encoder import ResidualStage, TowerBlock, last_map
from t2i.extractors import ImageEncoder, ImageFeatures
from t2i.reader.config import Config, OwnImageConfig
from t2i.reader.decoder import CaptionDecoder
from t2i.reader.fusion import FUSIONS
from t2i.text import TextFeatures

KERNEL = 5  # width of the question tower's convolution, in words


class Tokens(NamedTuple):
    """Captions or questions as tokens; the mask is True for real tokens."""

    ids_BT: Tensor
    mask_BT: Tensor


def token_nll(logits_of: Callable[[Tensor], Tensor], captions: Tokens) -> Tensor:
    """Returns the negative log likelihood of each token [B, T - 1] after the first, in nats; 0 at padding.

    Args:
        logits_of: returns logits_BTK for the token after each of ids_BT.
    """
    longest = int(captions.mask_BT.sum(dim=1).max())
    ids, mask = captions.ids_BT[:, :longest], captions.mask_BT[:, :longest]
    nll = F.cross_entropy(logits_of(ids[:, :-1]).float().transpose(1, 2), ids[:, 1:], reduction="none")
    return nll * mask[:, 1:]


class Sizes(NamedTuple):
    """Sizes of a reader's networks that are not in its config."""

    vocabulary: int
    answers: int = 0
    text_dim: int = 0  # width of a frozen encoder of questions; 0: the reader trains its own
    decoder: tuple[int, int, int, int] | None = None  # tokens, width, depth, heads of a GPT-2; None: from the config


class CellTower(nn.Module):
    """A residual convolutional tower that reduces the image to `grid` x `grid` cells."""

    def __init__(self, config: OwnImageConfig, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution
        halvings = max(0, (resolution // config.grid).bit_length() - 1)
        widths = [min(config.width * 2**i, config.width_limit) for i in range(halvings + 1)]
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(ResidualStage(a, b, config.depth) for a, b in zip(widths, widths[1:], strict=False))
        self.norm = nn.GroupNorm(8, widths[-1])

    def forward(self, images_BCHW: Tensor) -> ImageFeatures:
        x = last_map(images_BCHW, self.resolution, self.stem, self.stages)
        cells = F.silu(self.norm(x)).flatten(2).transpose(1, 2)
        return ImageFeatures(cells, cells.mean(dim=1))


def place_codes(rows: int, columns: int, width: int) -> Tensor:
    """Returns sines and cosines [L, D] of the row and the column of each cell (Vaswani et al., 2017, in two dimensions)."""
    quarter = width // 4
    rates = torch.exp(torch.arange(quarter) / quarter * -math.log(100.0))
    y, x = torch.meshgrid(torch.arange(rows) / rows, torch.arange(columns) / columns, indexing="ij")
    angles = [2 * math.pi * at.reshape(-1, 1) * 4 * rates for at in (y, x)]
    codes = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return F.pad(codes, (0, width - codes.shape[1]))


class QuestionTower(nn.Module):
    """A small transformer over the words of a question."""

    def __init__(self, config: Config, vocabulary: int, depth: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, config.width)
        self.positions = nn.Parameter(torch.randn(config.max_tokens, config.width) * 0.02)
        self.blocks = nn.ModuleList(TowerBlock(config.width, config.fusion.heads, KERNEL) for _ in range(depth))
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, words: Tokens) -> Tensor:
        x = self.tokens(words.ids_BT) + self.positions[: words.ids_BT.shape[1]]
        for block in self.blocks:
            x = block(x, words.mask_BT)
        return x


class Answerer(nn.Module):
    """Computes a logit for each answer from cells and a question."""

    def __init__(self, config: Config, cells: int, sizes: Sizes) -> None:
        super().__init__()
        width, text, fusion = config.width, config.text, config.fusion
        self.frozen_text = sizes.text_dim > 0
        depth = 0 if self.frozen_text else text.depth  # type: ignore[union-attr]
        self.text: nn.Module = (
            nn.Linear(sizes.text_dim, width) if self.frozen_text else QuestionTower(config, sizes.vocabulary, depth)
        )
        self.norm_text = nn.LayerNorm(width)
        self.fuse = FUSIONS[fusion.kind](width, cells, fusion.depth, fusion.heads)
        self.norm = nn.LayerNorm(width)
        self.hidden, self.out = nn.Linear(width, 2 * width), nn.Linear(2 * width, sizes.answers)
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)

    def forward(self, cells_QLD: Tensor, questions: Tokens | TextFeatures) -> Tensor:
        """Returns logits_QA.

        Args:
            questions: tokens of the questions, or their features by the frozen encoder.
        """
        states = self.text(questions.tokens_BTD if isinstance(questions, TextFeatures) else questions)
        mask = questions.mask_BT
        joint = self.fuse(cells_QLD, self.norm_text(states), mask)
        weight = mask[..., None].to(joint.dtype)
        mean = (self.norm(joint) * weight).sum(dim=1) / weight.sum(dim=1)
        return self.out(F.gelu(self.hidden(mean))).float()


class ReaderNetwork(nn.Module):
    """All trained networks of a reader; a frozen image tower is not part of the state dict."""

    # meaning of the rows and columns of weights, for runs that start from other weights (t2i.training.initialise)
    roles: ClassVar[dict[str, str]] = {
        "places": "square", "captions.tokens.weight": "words", "captions.positions.weight": "order",
        "answers.text.tokens.weight": "words", "answers.text.positions": "order", "answers.text.weight": "tokens",
        "answers.out.*": "answers",
    }  # fmt: skip

    def __init__(self, config: Config, sizes: Sizes, encoder: ImageEncoder | None = None) -> None:
        """
        Args:
            encoder: the pretrained image tower; None: the reader has its own tower.
        """
        super().__init__()
        own = config.image
        if isinstance(own, OwnImageConfig):
            tower: nn.Module = CellTower(own, config.data.resolution)
            self.grid, cell_dim = (own.grid, own.grid), tower.norm.num_channels  # type: ignore[union-attr]
        else:
            assert encoder is not None
            tower, self.grid, cell_dim = encoder.tower, encoder.grid, encoder.cell_dim
        learns = own.trained
        self.tower = tower.requires_grad_(True) if learns else None
        self._frozen: list[nn.Module] = [] if learns else [tower]
        width, cells = config.width, self.grid[0] * self.grid[1]
        self.cells = nn.Linear(cell_dim, width)
        self.places = nn.Parameter(place_codes(*self.grid, width))
        self.norm_cells = nn.LayerNorm(width)
        self.captions: CaptionDecoder | None = None
        self.answers: Answerer | None = None
        if config.tasks.caption:
            shape = sizes.decoder or (config.max_tokens, width, config.decoder.depth, config.decoder.heads)
            self.captions = CaptionDecoder(sizes.vocabulary, *shape, memory=width)
        if config.tasks.answers:
            self.answers = Answerer(config, cells, sizes)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        for tower in self._frozen:
            tower._apply(fn)
        return super()._apply(fn, recurse)

    def see(self, images_BCHW: Tensor) -> Tensor:
        """Returns cells_BLD of images in [-1, 1], including position codes."""
        if self.tower is not None:
            cells = self.tower(images_BCHW).cells_BLD
        else:
            with torch.no_grad():
                cells = self._frozen[0](images_BCHW).cells_BLD
        return self.norm_cells(self.cells(cells) + self.places)

    def caption_nll(self, cells_BLD: Tensor, captions: Tokens) -> Tensor:
        """Returns the negative log likelihood of each token [B, T - 1] after the first, in nats; 0 at padding."""
        decoder = self.captions
        assert decoder is not None
        return token_nll(lambda ids_BT: decoder(ids_BT, decoder.start(cells_BLD))[0], captions)
