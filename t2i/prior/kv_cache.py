"""Runs steps of the transformer with cached keys and values.

Axes: B images, R rows (B, or 2B with the null branch), S slots, n tokens of a step, D width, K codes, N cache positions.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.prior.kernels import onednn, onednn_available
from t2i.prior.transformer import EPS, Prior, PriorPrefix, rotate, rotation
from t2i.text import TextFeatures

Product = Callable[[Tensor, Tensor], Tensor]  # x, weight -> x @ weight.T


class Layer(NamedTuple):
    """Weights, modulation by the caption and cache of one block."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor
    gain: Tensor
    scale_1: Tensor
    shift_1: Tensor
    scale_2: Tensor
    shift_2: Tensor
    keys: Tensor  # [R, heads, N, head_dim]
    values: Tensor


class Weights(NamedTuple):
    """The matrices of a model in the layout that a step uses."""

    blocks: list[tuple[Tensor, Tensor, Tensor, Tensor]]
    head: Tensor
    product: Product


_packed: WeakKeyDictionary[Prior, tuple[Tensor, Weights]] = WeakKeyDictionary()


def weights_of(model: Prior, packed: bool = True) -> Weights:
    """Returns the model's matrices or, if `packed` and on a CPU, cached copies in oneDNN's blocked layout.

    With that layout, one core multiplies all matrices of a prior with 5 M parameters by 1 / 2 / 16 rows in 0.70 / 0.90 / 1.67
    ms; `F.linear` takes 1.5 / 2.0 / 3.4 ms. Packing takes 15 ms and is repeated if the sums of the weights have changed.
    """
    names = ("qkv", "out", "gate_up", "down")
    blocks = [tuple(block.get_submodule(name).weight for name in names) for block in model.blocks]
    head = model.head.weight
    plain = head.device.type != "cpu" or head.dtype != torch.float32
    if plain or not packed or not onednn_available():
        return Weights(blocks, head, F.linear)  # type: ignore[arg-type]
    sums = torch.stack([w.detach().sum() for block in (*blocks, (head,)) for w in block])  # type: ignore[union-attr]
    if model not in _packed or not torch.equal(_packed[model][0], sums):

        def pack(weight: Any) -> Tensor:
            return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 16)  # for 16 rows; works well for 1 to 64

        copies = [tuple(map(pack, block)) for block in blocks]
        _packed[model] = sums, Weights(copies, pack(head), onednn)  # type: ignore[arg-type]
    return _packed[model][1]


def step(
    layers: Sequence[Layer], product: Product, x: Tensor, turn: Tensor, at: int, content: int, bias: Tensor | None
) -> Tensor:
    """Runs all blocks, and writes keys and values to cache positions from `at` on, over former queries.

    Returns x of the queries only, as nothing reads x of codes whose keys and values are cached; x of the codes if there are no
    queries.

    Args:
        turn: complex, [R, n, 1, head_dim / 2].
        content: number of leading tokens, codes, which do not attend to the others, queries; those attend to all.
        bias: [R, 1, 1, N], added to the attention logits; None: no padding.
    """
    rows, n, width = x.shape
    heads, head_dim = layers[0].keys.shape[1], layers[0].keys.shape[3]
    end, mixed, last = at + n, 0 < content < n, layers[-1].keys
    if bias is not None:
        bias = bias[:, 0, :, :end].repeat_interleave(heads, dim=0)
    scale = turn.new_tensor([1 / math.sqrt(head_dim), 1.0])  # of queries and keys
    turn = turn * scale.repeat_interleave(heads)[:, None]
    for w_qkv, w_out, w_gate_up, w_down, gain, scale_1, shift_1, scale_2, shift_2, keys, values in layers:
        h = torch.addcmul(shift_1, F.layer_norm(x, (width,), None, None, EPS), scale_1)
        q, keys[:, :, at:end], values[:, :, at:end] = _split(product(h, w_qkv), gain, turn, heads)
        # with keys stored as columns, two batched products take 0.6 of the time of torch's fused kernel for a few queries
        columns = keys.flatten(0, 1).transpose(1, 2)[..., :end]
        scores = torch.bmm(q.reshape(rows * heads, n, head_dim), columns)
        if bias is not None:
            scores += bias
        if mixed:
            scores[:, :content, at + content :] = -math.inf
        attended = torch.bmm(scores.softmax(dim=-1), values.flatten(0, 1)[:, :end])
        attended = attended.view(rows, heads, n, head_dim).transpose(1, 2)
        if mixed and keys is last:
            attended, x = attended[:, content:], x[:, content:]
        x = x + product(attended.flatten(2), w_out)
        h = torch.addcmul(shift_2, F.layer_norm(x, (width,), None, None, EPS), scale_2)
        gate, up = product(h, w_gate_up).chunk(2, dim=-1)
        x = x + product(F.silu(gate).mul_(up), w_down)
    return x


def _split(qkv: Tensor, gain: Tensor, turn: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries and keys, normalised and turned, and values [R, heads, n, head_dim]."""
    rows, n, head_dim = *qkv.shape[:2], qkv.shape[2] // (3 * heads)
    qk, v = qkv.unflatten(-1, (3 * heads, head_dim)).split((2 * heads, heads), dim=2)
    qk = F.layer_norm(qk, (head_dim,), gain, None, EPS).view(rows, n, 2 * heads, head_dim // 2, 2)
    qk = torch.view_as_real(torch.view_as_complex(qk) * turn).view(rows, n, 2, heads, head_dim)
    q, k = qk.permute(2, 0, 3, 1, 4)
    return q, k, v.transpose(1, 2)


def static_step(layers: Sequence[Layer], x: Tensor, turn: Tensor, places: Tensor, bias: Tensor) -> Tensor:
    """Does the same as `step` with constant shapes, for CUDA graphs: attention covers the whole cache.

    Args:
        places: int64 [n], cache positions of the keys and values.
        bias: [R, 1, n, N], -inf at each position that a token does not attend to.
    """
    rows, n, width = x.shape
    heads, head_dim = layers[0].keys.shape[1], layers[0].keys.shape[3]
    for layer in layers:
        h = torch.addcmul(layer.shift_1, F.layer_norm(x, (width,), None, None, EPS), layer.scale_1)
        qk, v = F.linear(h, layer.qkv).split((2 * width, width), dim=-1)
        qk = F.layer_norm(qk.unflatten(-1, (2 * heads, head_dim)), (head_dim,), layer.gain, None, EPS)
        q, k = rotate(qk, turn).type_as(v).unflatten(2, (2, heads)).permute(2, 0, 3, 1, 4)
        layer.keys.index_copy_(2, places, k)
        layer.values.index_copy_(2, places, v.unflatten(-1, (heads, head_dim)).transpose(1, 2))
        attended = F.scaled_dot_product_attention(q, layer.keys, layer.values, attn_mask=bias)
        x = x + F.linear(attended.transpose(1, 2).reshape(rows, n, width), layer.out)
        h = torch.addcmul(layer.shift_2, F.layer_norm(x, (width,), None, None, EPS), layer.scale_2)
        gate, up = F.linear(h, layer.gate_up).chunk(2, dim=-1)
        x = x + F.linear(F.silu(gate) * up, layer.down)
    return x


def _times(product: Product, weight: Tensor, x: Tensor) -> Tensor:
    return product(x, weight)


class CachedDecoder:
    """Decodes a few images with cached keys and values, with and without their captions.

    `run` processes final codes and queries for the next slots; `guide` computes logits from the result.
    """

    def __init__(self, model: Prior, text: TextFeatures, guided: bool, weights: Weights, static: bool = False) -> None:
        """Computes keys and values of the prefix.

        Args:
            guided: also decode a null branch for each caption.
            weights: those of `weights_of`; packed ones only without `static`.
            static: use `static_step`.
        """
        self.model, self.static = model, static
        self.images, self.guided = len(text.pooled_BP), guided
        self._stepper = _compiled() if static and text.pooled_BP.is_cuda else static_step
        branches = self._branches(text)
        self.length = self.used = branches[0][1].x_BPD.shape[1]
        self.turns = rotation(model.grid, model.config.model.width // model.config.model.heads, text.pooled_BP.device)
        self.positions = model.positions()
        self.weights = weights
        self.layers = self._empty_layers(branches)
        self.first_RD, bias = self._run_prefix(branches)
        self.bias = bias if static or bias.any() else None

    def _branches(self, text: TextFeatures) -> list[tuple[slice, PriorPrefix]]:
        """Returns the prefixes with the rows that they belong to: the captions and, with guidance, the null caption.

        The null caption is a single token, which is computed once and placed at the end of the prefix.
        """
        branches = [(slice(0, self.images), self.model.prefix(text))]
        if self.guided:
            first = TextFeatures(*(x[:1, :1] if x.dim() > 2 else x[:1] for x in text))._replace(
                mask_BT=text.mask_BT[:1, :1]
            )
            null_B = torch.ones(1, dtype=torch.bool, device=text.pooled_BP.device)
            branches.append((slice(self.images, 2 * self.images), self.model.prefix(first, null_B)))
        return branches

    def _empty_layers(self, branches: list[tuple[slice, PriorPrefix]]) -> list[Layer]:
        """Returns the layers with modulation and an empty cache for all rows."""
        config, capacity = self.model.config.model, self.length + self.model.grid.slots
        rows, heads, head_dim = self.images * len(branches), config.heads, config.width // config.heads
        modulation = torch.cat([b.modulation_MB1D.expand(-1, self.images, -1, -1) for _, b in branches], dim=1)
        layers = []
        for block, weights in zip(self.model.blocks, self.weights.blocks, strict=True):
            scales = (modulation + block.table[:, None]).unbind(0)  # type: ignore[operator,index]
            keys, values = branches[0][1].x_BPD.new_zeros(2, rows, heads, capacity, head_dim).unbind(0)
            if not self.static:
                keys = keys.view(rows, heads, head_dim, capacity).transpose(2, 3)
            layers.append(Layer(*weights, block.qk_gain, *scales, keys, values))  # type: ignore[arg-type]
        return layers

    def _run_prefix(self, branches: list[tuple[slice, PriorPrefix]]) -> tuple[Tensor, Tensor]:
        """Fills the cache with keys and values of the prefixes.

        Returns:
            (hidden states [R, D] of the start token, bias [R, 1, 1, N] of the attention logits, which hides padding).
        """
        capacity, last = self.length + self.model.grid.slots, []
        bias = branches[0][1].x_BPD.new_zeros(self.images * len(branches), 1, 1, capacity)
        for rows, branch in branches:
            x, here = branch.x_BPD, branch.x_BPD.shape[1]
            bias[rows, ..., : self.length - here] = -math.inf
            mask = None
            if branch.visible_BP is not None:
                mask = branch.visible_BP[:, None, None, :]
                bias[rows, ..., self.length - here : self.length].masked_fill_(~mask, -math.inf)
            turn = self.turns.new_ones(here, 1, self.turns.shape[1])
            for i, (block, layer) in enumerate(zip(self.model.blocks, self.layers, strict=True)):
                start = here - 1 if i == len(self.layers) - 1 else 0
                products = [partial(_times, self.weights.product, weight) for weight in self.weights.blocks[i]]
                x, k, v = block(x, branch.modulation_MB1D, turn, mask, start, products=products)
                layer.keys[rows, :, self.length - here : self.length] = k
                layer.values[rows, :, self.length - here : self.length] = v
            last.append(x.expand(self.images, -1, -1))
        return torch.cat(last)[:, -1], bias

    def drop_null(self) -> None:
        """Stops guidance; the null branch is no longer computed."""
        count, self.guided = self.images, False
        self.layers = [Layer(*x[:5], *(y[:count] for y in x[5:])) for x in self.layers]
        self.bias = None if self.bias is None else self.bias[:count]

    def embed(self, codes: Tensor, slots: Tensor) -> Tensor:
        return self.model.contents(codes, slots) + self.positions[slots]

    def run(self, x_BnD: Tensor, slots: Tensor, content: int) -> Tensor:
        """Runs one step of tokens at `slots` [B, n], of which the first `content` are codes and the others queries.

        Returns x of the queries [R, n - content, D]; of the codes if there are no queries.
        """
        turn = self.turns[slots][:, :, None]
        if self.guided:
            x_BnD, turn = x_BnD.repeat(2, 1, 1), turn.repeat(2, 1, 1, 1)
        n = x_BnD.shape[1]
        if self.static:
            assert self.bias is not None
            end, bias = self.used + n, self.bias.expand(-1, -1, n, -1).clone()
            bias[..., end:] = -math.inf
            bias[:, :, :content, self.used + content : end] = -math.inf
            places = torch.arange(self.used, end, device=x_BnD.device)
            x = self._stepper(self.layers, x_BnD, torch.view_as_real(turn), places, bias)
            x = x[:, content:] if content < n else x
        else:
            x = step(self.layers, self.weights.product, x_BnD, turn, self.used, content, self.bias)
        self.used += content
        return x

    def guide(self, x_RnD: Tensor, guidance: float) -> Tensor:
        """Returns guided logits [B, n, K] from the hidden states of all rows."""
        if not self.guided or guidance == 1:
            return self._read_out(x_RnD[: self.images])
        caption, null = self._read_out(x_RnD).chunk(2)
        return torch.lerp(null, caption, guidance)

    def _read_out(self, x: Tensor) -> Tensor:
        h = F.layer_norm(x, x.shape[-1:], self.model.gain, None, EPS)
        return self.weights.product(h, self.weights.head).float()


_COMPILED: dict[str, Callable[..., Tensor]] = {}


def _compiled() -> Callable[..., Tensor]:
    if not _COMPILED:
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # one shape per group
        _COMPILED["step"] = torch.compile(static_step, mode="reduce-overhead", dynamic=False, fullgraph=True)
    return _COMPILED["step"]
