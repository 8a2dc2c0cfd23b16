"""A critic of latents and captions, which sharpens what squared error leaves blurred (CVAE-GAN, Bao et al., ICCV 2017).

Relativistic pairs with penalties on real and generated latents (Huang et al., R3GAN, NeurIPS 2024), the penalties by finite
differences. The input sequence is words and then places; there is a logit for each place and one for the whole image.

Axes: B batch, L places, C channels of a latent, N = L + 1 logits.
"""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from t2i.cvae.config import Config
from t2i.cvae.network import Block, Shape, Words, normalize, trimmed
from t2i.text import TextFeatures

STEP = 0.02  # step of the finite difference, for latents of unit mean square
PENALISED = 0.25  # share of the batch that the penalties are computed on
MISMATCHED, CENTERING = (
    0.5,
    0.01,
)  # weights of mismatched captions, and of the mean square of the logits of whole images


class CriticTerms(NamedTuple):
    """The critic's loss and its terms, all scalars; only `critic_loss` has a gradient."""

    critic_loss: Tensor
    told_apart: Tensor  # share of pairs in which the real latents have the larger logit
    penalty: Tensor  # mean squared gradient norm, of real and generated latents together


class Critic(nn.Module):
    """Maps latents and words to logits, which start at 0."""

    roles: ClassVar[dict[str, str]] = {
        "words.embed.weight": "tokens", "words.positions": "order", "embed.*": "codes", "places": "square"
    }  # fmt: skip

    def __init__(self, config: Config, shape: Shape, token_dim: int, max_tokens: int) -> None:
        super().__init__()
        width, self.config, self.grid = config.model.width, config.critic, shape.grid
        self.words = Words(token_dim, width, config.model.word_layers, max_tokens)
        self.embed = nn.Conv2d(shape.channels, width, 3, padding=1)
        self.places = nn.Parameter(torch.randn(shape.grid**2, width) * 0.5)
        self.blocks = nn.ModuleList(
            Block(width, config.model.heads, config.critic.depth, shape.grid) for _ in range(config.critic.depth)
        )
        self.of_place, self.of_whole = nn.Linear(width, 1), nn.Linear(width, 1)
        for head in (self.of_place, self.of_whole):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, real_BLC: Tensor, fake_BLC: Tensor, text: TextFeatures, other_B: Tensor) -> CriticTerms:
        """Computes the critic's loss on one micro-batch; it is one forward pass, as DistributedDataParallel requires.

        Args:
            fake_BLC: latents generated for the same captions; they are detached.
            other_B: False for rows whose caption equals that of the next row, which is then no mismatch.
        """
        count = max(1, round(PENALISED * len(real_BLC)))
        fake_BLC = fake_BLC.detach()
        moved = [x[:count] + STEP * torch.randn_like(x[:count]) for x in (real_BLC, fake_BLC)]
        texts = [
            text,
            text,
            TextFeatures(*(x.roll(-1, dims=0) for x in text)),
            *[TextFeatures(*(x[:count] for x in text))] * 2,
        ]
        everything = TextFeatures(*(torch.cat(parts) for parts in zip(*texts, strict=True)))
        logits = self.logits(torch.cat([real_BLC, fake_BLC, real_BLC, *moved]), everything)
        batch = len(real_BLC)
        real, fake, mismatched, real_moved, fake_moved = logits.split([batch, batch, batch, count, count])
        slopes = torch.cat([real_moved - real[:count], fake_moved - fake[:count]]) / STEP
        penalty = 2 * balanced(slopes.square())  # twice the mean over real and generated latents is R1 + R2
        loss = balanced(F.softplus(fake - real)) / 2
        loss = loss + MISMATCHED * (F.softplus(mismatched - real)[:, -1] * other_B).mean()
        loss = loss + self.config.gamma / 2 * penalty
        loss = loss + CENTERING * torch.cat([real, fake])[:, -1].square().mean()
        return CriticTerms(loss, (real > fake)[:, -1].float().mean(), penalty.detach())

    def logits(self, latents_BLC: Tensor, text: TextFeatures) -> Tensor:
        """Returns logits [B, N]: one for each place, then the one for the whole image."""
        tokens, mask = trimmed(text)
        words = self.words(tokens, mask)
        grid = rearrange(latents_BLC, "b (h w) c -> b c h w", h=self.grid)
        places = rearrange(self.embed(grid), "b c h w -> b (h w) c").float() + self.places
        x, visible = torch.cat([words, places], dim=1), F.pad(mask, (0, places.shape[1]), value=True)
        no_modulation = x.new_zeros(len(x), 4 * x.shape[2])  # words condition by attention only
        for block in self.blocks:
            x = block(x, no_modulation, visible)
        x = normalize(x[:, words.shape[1] :])
        return torch.cat([self.of_place(x)[..., 0], self.of_whole(x.mean(dim=1))], dim=1).float()


def balanced(values_BN: Tensor) -> Tensor:
    """Returns the mean over places plus the value of the whole image, averaged over the batch."""
    return values_BN[:, :-1].mean() + values_BN[:, -1].mean()


def adversarial_loss(critic: Critic, real_BLC: Tensor, fake_BLC: Tensor, text: TextFeatures) -> Tensor:
    """Returns the generator's adversarial loss; its gradient reaches the generator only through `fake_BLC`."""
    both = TextFeatures(*(torch.cat([x, x]) for x in text))
    fake, real = critic.logits(torch.cat([fake_BLC, real_BLC]), both).chunk(2)
    return balanced(F.softplus(real.detach() - fake)) / 2
