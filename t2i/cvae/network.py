"""A transformer that generates all latents of an image in one pass from words and noise, trained as a conditional VAE.

Residual convolutions over neighbouring words precede the first block, so that the state of a noun includes its adjectives and
relations; in every block, words and places attend to each other. Noise enters by adaptive norms (Peebles & Xie, DiT, ICCV 2023).
In training, a posterior that sees the image and its bag of words gives the noise (Sohn et al., conditional VAE, NeurIPS 2015).
Part of the captions are trained without noise, so that the generator uses the words even for what the posterior could encode.

Axes: B batch, T words, L places row by row, N = T + L, C channels of a latent, D width, M = 4 D, Z noise, P pooled text.
"""

import math
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from t2i.cvae.config import Config, NetworkConfig
from t2i.text import TextFeatures

WINDOW = 5  # kernel size of the convolutions over words
EPS = 1e-6


class Shape(NamedTuple):
    """Shape of the tokenizer's latents."""

    grid: int  # places per side
    channels: int


class Draws(NamedTuple):
    """All random numbers of one micro-batch."""

    noise_BZ: Tensor  # standard normals of the posterior
    hidden_B: Tensor  # uniforms in [0, 1); rows below `loss.without_noise` are trained without noise
    free_BZ: Tensor  # standard normals that the generator samples from for the critic


class Terms(NamedTuple):
    """The loss of one micro-batch and its terms, all scalars; only `loss` has a gradient."""

    loss: Tensor
    error: Tensor  # weighted squared error per channel, with noise from the posterior
    error_of_text: Tensor  # the same for rows without noise
    nats: Tensor  # KL divergence of the posterior from the standard normal, per image


def linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    """Returns a layer that multiplies the variance of its input by gain squared; with gain 0 its output starts at 0."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(inputs))
    return layer


def normalize(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def trimmed(text: TextFeatures) -> tuple[Tensor, Tensor]:
    """Returns token states and mask without the columns that are padding in every row."""
    tokens, mask, _ = text
    # on a GPU this would cost a synchronisation and a recompilation for each length
    if mask.device.type != "cpu" or torch.compiler.is_exporting():
        return tokens, mask
    longest = max(1, int(mask.any(dim=0).nonzero().max()) + 1 if mask.any() else 0)
    return tokens[:, :longest], mask[:, :longest]


class Words(nn.Module):
    """Projects token states and mixes neighbouring words; padding stays zero."""

    def __init__(self, token_dim: int, width: int, layers: int, max_tokens: int) -> None:
        super().__init__()
        self.embed = nn.Linear(token_dim, width, bias=False)
        nn.init.normal_(self.embed.weight)
        self.positions = nn.Parameter(torch.randn(max_tokens, width) * 0.3)
        self.mix = nn.ModuleList(nn.Conv1d(width, width, WINDOW, padding=WINDOW // 2) for _ in range(layers))
        for layer in self.mix:
            # not zero, so that neighbours are mixed from the first step on
            nn.init.normal_(layer.weight, std=1.5 / math.sqrt(WINDOW * width))  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, tokens_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        real = mask_BT[..., None].float()
        # unit length, so that the embedding of a word learns as fast as a row of an embedding table, whatever token_dim is
        x = (self.embed(F.normalize(tokens_BTD, dim=-1)) + self.positions[: tokens_BTD.shape[1]]) * real
        for layer in self.mix:
            mixed = layer((normalize(x) * real).transpose(1, 2)).transpose(1, 2)
            x = x + F.silu(mixed) * real
        return x.float()


def rotation(grid: int, head_dim: int) -> Tensor:
    """Returns cosines and sines [L, head_dim / 2, 2]; half of the pairs rotate with the row of a place, half with its column."""
    place = torch.arange(grid**2)
    pairs = head_dim // 4
    # grids are short, so wavelengths range from 2 pi to a few grids; language models use a base of 10,000
    frequency = 100.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    angle = torch.cat([(place // grid)[:, None] * frequency, (place % grid)[:, None] * frequency], dim=1)
    return torch.view_as_real(torch.polar(torch.ones_like(angle), angle).to(torch.complex64))


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotates pairs of neighbouring channels (2-D RoPE)."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_exporting():  # ONNX has no complex numbers
        (even, odd), (cos, sin) = pairs.unbind(-1), turn.unbind(-1)
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    turned = torch.view_as_complex(pairs.contiguous()) * torch.view_as_complex(turn)
    return torch.view_as_real(turned).flatten(-2)


class Block(nn.Module):
    """Attention and SwiGLU. A modulation shared by all blocks, plus a learned table of the block, scales and shifts their inputs.

    With a separate modulation for each block, words bind to objects later: after 32,000 captions the colours of two objects
    were right in .23 of images, against .94 (LOG.md).
    """

    turn: Tensor

    def __init__(self, width: int, heads: int, depth: int, grid: int) -> None:
        super().__init__()
        self.heads, hidden, gain = heads, width * 8 // 3 // 16 * 16, 1 / math.sqrt(2 * depth)
        self.register_buffer("turn", rotation(grid, width // heads), persistent=False)
        self.sharpness = nn.Parameter(torch.ones(width // heads))
        self.qkv, self.out = linear(width, 3 * width), linear(width, width, gain)
        self.gate_up, self.down = linear(width, 2 * hidden), linear(hidden, width, gain)
        self.table = nn.Parameter(torch.zeros(4 * width))

    def forward(self, x_BND: Tensor, modulation_BM: Tensor, mask_BN: Tensor) -> Tensor:
        words = x_BND.shape[1] - len(self.turn)
        identity = F.pad(self.turn.new_ones(words, self.turn.shape[1], 1), (0, 1))  # words are not rotated
        turn = torch.cat([identity, self.turn])
        scale_1, shift_1, scale_2, shift_2 = (modulation_BM + self.table)[:, None].chunk(4, dim=-1)
        h = torch.addcmul(shift_1, normalize(x_BND), 1 + scale_1)
        q, k, v = rearrange(self.qkv(h), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        # normalised queries and keys keep attention from saturating at high learning rates
        q, k = (rotate(normalize(x) * self.sharpness, turn).type_as(v) for x in (q, k))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BN[:, None, None, :])
        x_BND = x_BND + self.out(rearrange(attended, "b h n d -> b n (h d)"))
        h = torch.addcmul(shift_2, normalize(x_BND), 1 + scale_2)
        gate, up = self.gate_up(h).chunk(2, dim=-1)
        return x_BND + self.down(F.silu(gate) * up)


class Generator(nn.Module):
    """Maps words and noise to the latents of all places in one pass."""

    def __init__(self, config: NetworkConfig, shape: Shape, token_dim: int, max_tokens: int) -> None:
        super().__init__()
        width = config.width
        self.words = Words(token_dim, width, config.word_layers, max_tokens)
        self.noise = nn.Sequential(linear(config.z_dim, width), nn.SiLU(), linear(width, width))
        self.no_noise = nn.Parameter(torch.zeros(width))
        self.pooled, self.place_noise = linear(width, width), linear(width, width, 0.3)
        self.modulation = linear(width, 4 * width, 0)
        self.rows = nn.Parameter(torch.randn(shape.grid, width) * 0.5)
        self.columns = nn.Parameter(torch.randn(shape.grid, width) * 0.5)
        self.blocks = nn.ModuleList(Block(width, config.heads, config.depth, shape.grid) for _ in range(config.depth))
        self.head = linear(width, shape.channels, 0)

    def forward(self, text: TextFeatures, z_BZ: Tensor, hidden_B: Tensor | None = None) -> Tensor:
        """Returns latents_BLC of unit mean square; for rows of `hidden_B`, a learned vector replaces the encoded noise."""
        tokens, mask = trimmed(text)
        words = self.words(tokens, mask)
        noise = self.noise(z_BZ).float()
        if hidden_B is not None:
            noise = torch.where(hidden_B[:, None], self.no_noise, noise)
        summary = words.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1).sqrt()
        modulation = self.modulation(F.silu(noise + self.pooled(normalize(summary)).float())).float()
        places = (self.rows[:, None] + self.columns).flatten(0, 1) + self.place_noise(noise).float()[:, None]
        x = torch.cat([words, places], dim=1)
        visible = F.pad(mask, (0, places.shape[1]), value=True)
        for block in self.blocks:
            x = block(x, modulation, visible)
        return self.head(normalize(x[:, words.shape[1] :])).float()


class Posterior(nn.Module):
    """Maps latents and the bag of words to mean and log variance of the noise.

    Without the words, the noise would encode what they already determine, and the generator would ignore them.
    """

    def __init__(self, config: NetworkConfig, shape: Shape, pooled_dim: int) -> None:
        super().__init__()
        self.grid, width = shape.grid, config.posterior_width
        self.conv_1 = nn.Conv2d(shape.channels, width, 3, padding=1)
        self.conv_2 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.text = nn.Linear(pooled_dim, 2 * width, bias=False)
        nn.init.normal_(self.text.weight)
        self.hidden = nn.Linear(width * ((shape.grid + 1) // 2) ** 2 + 2 * width, 2 * width)
        self.out = nn.Linear(2 * width, 2 * config.z_dim)

    def forward(self, latents_BLC: Tensor, pooled_BP: Tensor) -> tuple[Tensor, Tensor]:
        x = rearrange(latents_BLC, "b (h w) c -> b c h w", h=self.grid)
        x = F.silu(self.conv_2(F.silu(self.conv_1(x)))).flatten(1)
        x = torch.cat([x, self.text(F.normalize(pooled_BP, dim=-1))], dim=1)
        mean, log_variance = self.out(F.silu(self.hidden(x))).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-8, 4)


def contrast(latents_BLC: Tensor, grid: int) -> Tensor:
    """Returns [B, L], the distance of each place from the mean of its 3 x 3 neighbourhood; the mean over an image is 1."""
    x = rearrange(latents_BLC, "b (h w) c -> b c h w", h=grid)
    near = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    distance = (x - near).square().mean(dim=1).sqrt().flatten(1)
    return distance / distance.mean(dim=1, keepdim=True).clamp(min=EPS)


class ConditionalVAE(nn.Module):
    """Generator and posterior, initialised from torch's global generator."""

    # meaning of the rows and columns of weights, for runs that start from other weights (t2i.training.initialise)
    roles: ClassVar[dict[str, str]] = {
        "generator.words.embed.weight": "tokens", "generator.words.positions": "order", "generator.rows": "line",
        "generator.columns": "line", "generator.head.weight": "codes", "posterior.conv_1.*": "codes",
        "posterior.text.weight": "pooled",
    }  # fmt: skip

    def __init__(self, config: Config, shape: Shape, token_dim: int, pooled_dim: int, max_tokens: int) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.generator = Generator(config.model, shape, token_dim, max_tokens)
        self.posterior = Posterior(config.model, shape, pooled_dim)

    def forward(
        self, latents_BLC: Tensor, text: TextFeatures, draws: Draws, free: bool = False
    ) -> tuple[Terms, Tensor | None]:
        """Computes the loss of one micro-batch.

        Args:
            latents_BLC: latents of real images, of unit mean square.
            free: also returns latents_BLC generated for the same captions from standard normal noise, otherwise None.
        """
        loss, batch = self.config.loss, len(latents_BLC)
        mean, log_variance = self.posterior(latents_BLC, text.pooled_BP)
        z_BZ = mean + draws.noise_BZ * (log_variance / 2).exp()
        hidden_B = draws.hidden_B < loss.without_noise
        if free:
            double = TextFeatures(*(torch.cat([x, x]) for x in text))
            z_BZ = torch.cat([z_BZ, draws.free_BZ])
            generated = self.generator(double, z_BZ, F.pad(hidden_B, (0, batch), value=False))
        else:
            generated = self.generator(text, z_BZ, hidden_B)
        reconstructed, sampled = generated[:batch], generated[batch:] if free else None
        weight = 1 + loss.contrast * contrast(latents_BLC, self.shape.grid)
        weight = weight / weight.mean(dim=1, keepdim=True)
        error_B = ((reconstructed - latents_BLC).square().mean(dim=2) * weight).mean(dim=1)
        nats_B = (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2
        shown_B = (~hidden_B).float()
        total = error_B.mean() + loss.kl * (nats_B * shown_B).mean()
        with torch.no_grad():
            share = shown_B.mean()
            error = (error_B * shown_B).mean() / share.clamp(min=EPS)
            of_text = (error_B * (1 - shown_B)).mean() / (1 - share).clamp(min=EPS)
        return Terms(total, error, of_text, nats_B.detach().mean()), sampled


def parameter_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Returns AdamW's groups: weight decay for all matrices and kernels, none for gains, biases and the rest."""
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and name.endswith("weight")]
    decayed_ids = {id(p) for p in decayed}
    rest = [p for p in model.parameters() if id(p) not in decayed_ids]
    return [{"params": decayed, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
