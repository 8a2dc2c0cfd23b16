"""A transformer over the slots of an image, in raster order or in any order, conditioned on a frozen text encoder.

Pre-norm blocks with SwiGLU, normalised queries and keys and 2-D rotary positions follow LlamaGen (Sun et al., 2024); adaptive
norms with one shared projection and a table per block PixArt-alpha (Chen et al., ICLR 2024); position queries and parallel
groups RandAR (Pang et al., CVPR 2025) and LPD (Zhang et al., ICLR 2026); two streams XLNet (2019).

The norms are layer norms without shift. On a centred residual stream they equal the RMS norm (Jiang et al., NeurIPS 2023), and
torch computes them with one kernel on every device: 2.5 ms instead of 12 ms for `rms_norm` on a CPU, forward and backward, for
4,608 tokens of 256 channels.

Axes: B batch, S slots, T text tokens, P prefix (text and a start token), N tokens of a sequence, D width, K codes.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from t2i.prior.config import Config, ModelConfig
from t2i.prior.kernels import Linear, SwiGLU
from t2i.prior.orders import Order, raster_mask, two_stream_mask
from t2i.text import TextFeatures

EPS = 1e-6
MODULATIONS = 4  # scale and shift before attention, scale and shift before the MLP


class Grid(NamedTuple):
    """The grid of an image's codes. Slot s is the code at depth s % depth of cell s // depth; cells are row by row."""

    height: int
    width: int
    depth: int  # number of codebooks: 1 except for residual tokenizers
    codes: int  # K

    @property
    def slots(self) -> int:
        return self.height * self.width * self.depth


class PriorDraws(NamedTuple):
    """Uniform numbers in [0, 1) that decide what a training step drops."""

    caption_B: Tensor  # below `caption_dropout` the caption is replaced by the null caption
    token_BS: Tensor  # below `token_dropout` a slot's code is hidden from the input


class PriorLoss(NamedTuple):
    loss: Tensor  # scalar: cross-entropy with label smoothing
    nll_B: Tensor  # nats per slot without smoothing; no gradient


class PriorPrefix(NamedTuple):
    """Captions as input of the blocks, before any code."""

    x_BPD: Tensor
    visible_BP: Tensor | None  # False at padding; None: no padding
    modulation_MB1D: Tensor  # M = MODULATIONS


@lru_cache(maxsize=32)
def rotation(grid: Grid, head_dim: int, device: torch.device) -> Tensor:
    """Returns complex rotations [S, head_dim / 2]: half of the pairs depend on the row of the slot's cell, half on its column."""
    cell = torch.arange(grid.slots) // grid.depth
    pairs = head_dim // 4
    # grids are short, so wavelengths range from 2 pi to a few grids instead of 10,000 as in language models
    frequency = 100.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    rows, columns = (cell // grid.width)[:, None] * frequency, (cell % grid.width)[:, None] * frequency
    angle = torch.cat([rows, columns], dim=1)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64).to(device)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotates neighbouring channels as pairs; `turn` is complex with half as many channels.

    A real `turn` has cosine and sine on its last axis, for compilers and for ONNX, which has no complex numbers.
    """
    if not turn.is_complex():
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = turn.unbind(-1)
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Computes attention; on a CPU always in float32, as torch's kernel takes 70 ms instead of 110 ms in bfloat16."""
    if q.device.type != "cpu" or torch.compiler.is_exporting():
        return F.scaled_dot_product_attention(q.type_as(v), k.type_as(v), v, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)


def linear(inputs: int, outputs: int, gain: float = 1.0) -> Linear:
    """Returns a linear layer initialised to scale the variance by gain squared."""
    layer = Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(inputs))
    return layer


def embedding(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * 0.5)


class PriorBlock(nn.Module):
    """Attention and SwiGLU, with norms that are scaled and shifted by the caption plus a learned table."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.heads, self.dropout = config.width, config.heads, config.dropout
        self.head_dim = width // config.heads
        gain = 1 / math.sqrt(2 * config.depth)
        self.qkv, self.out = linear(width, 3 * width), linear(width, width, gain)
        self.gate_up, self.down = linear(width, 2 * config.mlp_width), linear(config.mlp_width, width, gain)
        self.qk_gain = nn.Parameter(torch.ones(self.head_dim))
        self.table = nn.Parameter(torch.tensor([1.0, 0.0, 1.0, 0.0])[:, None, None].repeat(1, 1, width))

    def forward(
        self,
        x_BND: Tensor,
        modulation_MB1D: Tensor,
        turn: Tensor,
        mask: Tensor | None,
        start: int = 0,
        past: tuple[Tensor, Tensor] | None = None,
        products: Sequence[Callable[[Tensor], Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns x from row `start` on, and keys and values [B, heads, N, head_dim] of all rows.

        Args:
            turn: rotations for `rotate`, [N or B x N, 1, head_dim / 2].
            mask: bool, broadcast to [B, heads, N, N]; True if the row attends to the column.
            start: rows before it are attended to, but have no output (in the last block).
            past: keys and values of earlier rows, which the returned ones begin with.
            products: used in place of the layers `qkv`, `out`, `gate_up` and `down`, as with packed weights.
        """
        qkv, out, gate_up, down = products or (self.qkv, self.out, self.gate_up, self.down)
        scale_1, shift_1, scale_2, shift_2 = modulation_MB1D + self.table[:, None]
        width = x_BND.shape[-1]
        h = torch.addcmul(shift_1, F.layer_norm(x_BND, (width,), eps=EPS), scale_1)
        qk, v = qkv(h).split((2 * width, width), dim=-1)
        qk = F.layer_norm(qk.unflatten(-1, (2 * self.heads, self.head_dim)), (self.head_dim,), self.qk_gain, None, EPS)
        q, k = rotate(qk, turn).transpose(1, 2).chunk(2, dim=1)
        v = v.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        if start:
            x_BND, q = x_BND[:, start:], q[:, :, start:]
            mask = mask if mask is None or mask.shape[-2] == 1 else mask[..., start:, :]
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        attended = attend(q, k, v, mask).transpose(1, 2).flatten(2)
        x_BND = x_BND + F.dropout(out(attended), self.dropout, self.training)
        h = torch.addcmul(shift_2, F.layer_norm(x_BND, (width,), eps=EPS), scale_2)
        hidden: Tensor = SwiGLU.apply(gate_up(h))  # type: ignore[assignment]
        return x_BND + F.dropout(down(hidden), self.dropout, self.training), k, v


class Prior(nn.Module):
    """p(codes | caption) as a product over slots (raster) or over groups of slots in any order (random)."""

    # meaning of rows and columns, for starting from other weights (t2i.training.initialise)
    roles: ClassVar[dict[str, str]] = {
        "text.0.weight": "tokens", "pooled.0.weight": "pooled", "text_position": "order", "rows": "line", "columns": "line",
        "code": "codes", "head.weight": "codes",
    }  # fmt: skip

    def __init__(self, config: Config, grid: Grid, token_dim: int, pooled_dim: int, max_tokens: int) -> None:
        """
        Args:
            token_dim, pooled_dim, max_tokens: sizes of the text encoder's features.
        """
        super().__init__()
        width = config.model.width
        self.config, self.grid = config, grid
        self.text = nn.Sequential(linear(token_dim, width), nn.SiLU(), linear(width, width))
        self.pooled = nn.Sequential(linear(pooled_dim, width), nn.SiLU(), linear(width, width))
        self.modulation = Linear(width, MODULATIONS * width)
        self.text_position = embedding(max_tokens, width)
        self.null_token, self.null_pooled, self.start = embedding(width), embedding(width), embedding(width)
        self.rows, self.columns = embedding(grid.height, width), embedding(grid.width, width)
        self.depth = embedding(grid.depth, width) if grid.depth > 1 else None
        self.code = embedding(grid.depth * grid.codes, width)
        self.hidden_code = embedding(width)
        self.query = embedding(width) if config.order == "random" else None
        self.blocks = nn.ModuleList(PriorBlock(config.model) for _ in range(config.model.depth))
        self.gain = nn.Parameter(torch.ones(width))
        self.head = Linear(width, grid.codes)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.head.weight)  # the initial loss is ln K

    def forward(
        self, codes_BS: Tensor, text: TextFeatures, order: Order | None = None, draws: PriorDraws | None = None
    ) -> PriorLoss:
        """Returns the loss of one micro-batch.

        Args:
            codes_BS: int64 in [0, K), by slot.
            order: for a model of order `random`, see `t2i.prior.orders.training_order`; None for raster.
            draws: None: drop neither captions nor codes (validation). Dropout inside blocks uses torch's generator.
        """
        assert codes_BS.shape[1] == self.grid.slots, f"{codes_BS.shape[1]} slots, not {self.grid.slots}"
        loss = self.config.loss
        null_B = None if draws is None else draws.caption_B < loss.caption_dropout
        hidden_BS = None if draws is None else draws.token_BS < loss.token_dropout
        logits = self._logits(codes_BS, self.prefix(text, null_B), order, hidden_BS)
        targets = codes_BS if order is None else codes_BS.gather(1, order.permutation_BS)
        log_p = F.log_softmax(logits.float(), dim=-1)
        nll_BS = -log_p.gather(-1, targets[..., None])[..., 0]
        mean = (1 - loss.label_smoothing) * nll_BS.mean()
        if loss.label_smoothing:
            mean = mean - loss.label_smoothing * log_p.mean()
        return PriorLoss(mean, nll_BS.detach().mean(dim=1))

    def logits(
        self, codes_BS: Tensor, text: TextFeatures, order: Order | None = None, null_B: Tensor | None = None
    ) -> Tensor:
        """Returns logits_BSK by slot, each conditioned on the earlier slots of the order, without dropout."""
        logits = self._logits(codes_BS, self.prefix(text, null_B), order, None)
        if order is None:
            return logits
        return torch.empty_like(logits).scatter_(1, order.permutation_BS[..., None].expand_as(logits), logits)

    def prefix(self, text: TextFeatures, null_B: Tensor | None = None, whole: bool = False) -> PriorPrefix:
        """Returns captions as prefix and modulation; captions in `null_B` are replaced by the learned null caption.

        Args:
            whole: keep the padding after the longest caption, as on devices other than a CPU.
        """
        tokens, mask, pooled = text
        whole = whole or mask.device.type != "cpu"
        if not whole:  # on other devices this would cost a synchronisation and variable shapes
            longest = max(1, int(mask.any(dim=0).nonzero().max()) + 1 if mask.any() else 0)
            tokens, mask = tokens[:, :longest], mask[:, :longest]
        x = self.text(F.layer_norm(tokens, tokens.shape[-1:])) + self.text_position[: tokens.shape[1]]
        caption = self.pooled(F.layer_norm(pooled, pooled.shape[-1:]))
        if null_B is not None:
            x = torch.where(null_B[:, None, None], self.null_token.to(x.dtype), x)
            first = torch.arange(mask.shape[1], device=mask.device) == 0
            mask = null_B[:, None] & first | ~null_B[:, None] & mask
            caption = torch.where(null_B[:, None], self.null_pooled.to(caption.dtype), caption)
        x = torch.cat([x.float(), self.start.float().expand(x.shape[0], 1, -1)], dim=1)
        visible = F.pad(mask, (0, 1), value=True)
        padded = whole or not visible.all()
        modulation = self.modulation(F.silu(caption)).float().unflatten(-1, (MODULATIONS, 1, -1)).movedim(1, 0)
        return PriorPrefix(x, visible if padded else None, modulation)

    def positions(self) -> Tensor:
        """Returns position_SD, which is added to content and queries of each slot."""
        cells = (self.rows[:, None] + self.columns).flatten(0, 1)
        return cells if self.depth is None else (cells[:, None] + self.depth).flatten(0, 1)

    def contents(self, codes_BN: Tensor, slots: Tensor) -> Tensor:
        """Returns embeddings of the codes of these slots, without position; each depth has its own table."""
        return F.embedding(codes_BN + slots % self.grid.depth * self.grid.codes, self.code)

    def read_out(self, x: Tensor) -> Tensor:
        return self.head(F.layer_norm(x, x.shape[-1:], self.gain, None, EPS))

    def _logits(self, codes_BS: Tensor, prefix: PriorPrefix, order: Order | None, hidden_BS: Tensor | None) -> Tensor:
        """Returns logits_BSK in decoding order."""
        assert (order is None) == (self.query is None), f"a model of order {self.config.order} got order={order}"
        slots, device, length = self.grid.slots, codes_BS.device, prefix.x_BPD.shape[1]
        if order is None:
            ranked, content = torch.arange(slots, device=device).expand(codes_BS.shape[0], -1), slots - 1
            mask = raster_mask(length, content, device)
        else:
            ranked, content = order.permutation_BS, slots - order.sizes[-1]
            mask = two_stream_mask(length, order.sizes, device)
        turns = rotation(self.grid, self.config.model.width // self.config.model.heads, device)
        where, positions = ranked[:, :content], self.positions()
        codes = self.contents(codes_BS.gather(1, where), where)
        if hidden_BS is not None:
            codes = torch.where(hidden_BS.gather(1, where)[..., None], self.hidden_code, codes)
        sequence = [prefix.x_BPD, codes + positions[where]]
        turn = [turns.new_ones(codes_BS.shape[0], length, turns.shape[1]), turns[where]]
        if self.query is not None:
            sequence.append(self.query + positions[ranked])
            turn.append(turns[ranked])
        x, turn_BN = torch.cat(sequence, dim=1), torch.cat(turn, dim=1)[:, :, None]
        if prefix.visible_BP is not None:
            seen = F.pad(prefix.visible_BP, (0, x.shape[1] - length), value=True)
            mask = mask & seen[:, None, None, :]
        return self.read_out(self._run(x, prefix.modulation_MB1D, turn_BN, mask, x.shape[1] - slots))

    def _run(self, x: Tensor, modulation: Tensor, turn: Tensor, mask: Tensor, start: int) -> Tensor:
        for i, block in enumerate(self.blocks):
            first = start if i == len(self.blocks) - 1 else 0
            if self.training and self.config.activation_checkpointing:
                x, _, _ = checkpoint(block, x, modulation, turn, mask, first, use_reentrant=False)
            else:
                x, _, _ = block(x, modulation, turn, mask, first)
        return x
