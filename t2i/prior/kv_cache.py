"""A step of the transformer with cached keys and values.

Axes: B images, R rows (B, or 2B with the null branch), S slots, n tokens of a step, D width, K codes, N places of the
cache.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.prior.kernels import onednn, onednn_available
from t2i.prior.transformer import EPS, Prior, rotate, rotation
from t2i.text import TextFeatures


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
    """The matrices of a model, in the layout that a step multiplies with."""

    blocks: list[tuple[Tensor, Tensor, Tensor, Tensor]]
    head: Tensor
    product: Callable[[Tensor, Tensor], Tensor]  # x, weight -> x @ weight.T


_packed: WeakKeyDictionary[Prior, tuple[Tensor, Weights]] = WeakKeyDictionary()


def weights_of(model: Prior, packed: bool = True) -> Weights:
    """Returns the model's own matrices or, if `packed` and on a CPU, copies in the blocked layout of oneDNN, kept between calls.

    In that layout one core multiplies all matrices of a 5 M prior with 1 / 2 / 16 rows in 0.70 / 0.90 / 1.67 ms, where
    `F.linear` takes 1.5 / 2.0 / 3.4. Packing takes 15 ms; the sums of the weights show that they have changed since.
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
            return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 16)  # for 16 rows: good for 1 to 64

        copies = [tuple(map(pack, block)) for block in blocks]
        _packed[model] = sums, Weights(copies, pack(head), onednn)  # type: ignore[arg-type]
    return _packed[model][1]


def step(
    layers: Sequence[Layer],
    product: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    turn: Tensor,
    at: int,
    content: int,
    bias: Tensor | None,
) -> Tensor:
    """Returns x_RnD after all blocks. Its keys and values go to places `at`... of the cache, over those of former queries.

    Attention is two batched products: with keys stored as columns they take 0.6 of the time of torch's fused kernel for a
    query or a few.

    Args:
        turn: complex, [R, n, 1, head_dim / 2].
        content: the first rows, which do not see the others; these see everything.
        bias: [R, 1, 1, N], added to the attention logits; None: nothing is padded.
    """
    rows, n, width = x.shape
    heads, head_dim = layers[0].keys.shape[1], layers[0].keys.shape[3]
    end, middle = at + n, at + content
    shape, scale = (rows, n, 2 * heads, head_dim // 2, 2), 1 / math.sqrt(head_dim)
    if bias is not None:
        bias = bias[:, 0, :, :end].repeat_interleave(heads, dim=0)
    turn = turn * turn.new_tensor([scale, 1.0]).repeat_interleave(heads)[:, None]  # the queries' part scaled
    for w_qkv, w_out, w_gate_up, w_down, gain, scale_1, shift_1, scale_2, shift_2, keys, values in layers:
        h = torch.addcmul(shift_1, F.layer_norm(x, (width,), None, None, EPS), scale_1)
        qkv = product(h, w_qkv)
        qk = qkv[..., : 2 * width].unflatten(-1, (2 * heads, head_dim))
        qk = torch.view_as_complex(F.layer_norm(qk, (head_dim,), gain, None, EPS).view(shape)) * turn
        q, k = torch.view_as_real(qk).view(rows, n, 2, heads, head_dim).permute(2, 0, 3, 1, 4)
        keys[:, :, at:end] = k
        values[:, :, at:end] = qkv[..., 2 * width :].unflatten(-1, (heads, head_dim)).transpose(1, 2)
        columns = keys.flatten(0, 1).transpose(1, 2)[..., :end]
        scores = torch.bmm(q.reshape(rows * heads, n, head_dim), columns)
        if bias is not None:
            scores += bias
        if 0 < content < n:
            scores[:, :content, middle:] = -math.inf
        attended = torch.bmm(scores.softmax(dim=-1), values.flatten(0, 1)[:, :end])
        attended = attended.view(rows, heads, n, head_dim).transpose(1, 2).reshape(rows, n, width)
        x = x + product(attended, w_out)
        h = torch.addcmul(shift_2, F.layer_norm(x, (width,), None, None, EPS), scale_2)
        gate, up = product(h, w_gate_up).chunk(2, dim=-1)
        x = x + product(F.silu(gate).mul_(up), w_down)
    return x


def static_step(layers: Sequence[Layer], x: Tensor, turn: Tensor, places: Tensor, bias: Tensor) -> Tensor:
    """`step` with shapes that do not change from step to step, for CUDA graphs: attention over the whole cache.

    Args:
        places: int64 [n], where keys and values go.
        bias: [R, 1, n, N], -inf at every place that a row does not see.
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


class CachedDecoder:
    """Decodes a few images with cached keys and values, with and without their captions.

    `run` feeds codes that are final and queries for the slots that come next; `guide` turns the result into logits.
    """

    def __init__(self, model: Prior, text: TextFeatures, guided: bool, static: bool = False) -> None:
        """Runs the prefix.

        Args:
            guided: keep a null branch beside each caption.
            static: run `static_step`.
        """
        self.model, self.static = model, static
        self.images, self.guided = len(text.pooled_BP), guided
        self._stepper = _compiled() if static and text.pooled_BP.is_cuda else static_step
        config = model.config.model
        caption = model.prefix(text)
        rows, self.length, width = caption.x_BPD.shape
        capacity, head_dim = self.length + model.grid.slots, width // config.heads
        every = rows * (2 if guided else 1)
        zeros = caption.x_BPD.new_zeros
        self.turns = rotation(model.grid, head_dim, caption.x_BPD.device)
        self.positions = model.positions()
        self._bias: Tensor | None = None
        branches = [(slice(0, rows), caption)]
        if guided:  # the null caption is one token: it is run once, and goes to the end of the prefix
            null = model.prefix(
                TextFeatures(*(x[:1, :1] if x.dim() > 2 else x[:1] for x in text))._replace(
                    mask_BT=text.mask_BT[:1, :1]
                ),
                torch.ones(1, dtype=torch.bool, device=self.positions.device),
            )
            branches.append((slice(rows, every), null))
        seen = zeros(every, 1, 1, capacity)
        modulation = torch.cat([b.modulation_MB1D.expand(-1, rows, -1, -1) for _, b in branches], dim=1)
        self.layers = []
        self.weights = weights_of(model, packed=not static)
        for block, weights in zip(model.blocks, self.weights.blocks, strict=True):
            scales = (modulation + block.table[:, None]).unbind(0)  # type: ignore[operator,index]
            keys, values = zeros(2, every, config.heads, capacity, head_dim).unbind(0)
            if not static:
                keys = keys.view(every, config.heads, head_dim, capacity).transpose(2, 3)
            self.layers.append(Layer(*weights, block.qk_gain, *scales, keys, values))  # type: ignore[arg-type]
        last = []
        for where, branch in branches:
            x, here = branch.x_BPD, branch.x_BPD.shape[1]
            seen[where, ..., : self.length - here] = -math.inf
            mask = None
            if branch.visible_BP is not None:
                mask = branch.visible_BP[:, None, None, :]
                seen[where, ..., self.length - here : self.length].masked_fill_(~mask, -math.inf)
            turn = self.turns.new_ones(here, 1, head_dim // 2)
            for i, (block, layer) in enumerate(zip(model.blocks, self.layers, strict=True)):
                start = here - 1 if i == len(self.layers) - 1 else 0
                x, k, v = block(x, branch.modulation_MB1D, turn, mask, start)
                layer.keys[where, :, self.length - here : self.length] = k
                layer.values[where, :, self.length - here : self.length] = v
            last.append(x.expand(rows, -1, -1))
        self.first_RD = torch.cat(last)[:, -1]
        self.used = self.length
        self.bias = seen if static or seen.any() else None

    def drop_null(self) -> None:
        """Stops guidance: the null branch is no longer computed."""
        count, self.guided = self.images, False
        self.layers = [Layer(*x[:5], *(y[:count] for y in x[5:])) for x in self.layers]
        self.bias = None if self.bias is None else self.bias[:count]

    def embed(self, codes: Tensor, slots: Tensor) -> Tensor:
        return self.model.contents(codes, slots) + self.positions[slots]

    def run(self, x_BnD: Tensor, slots: Tensor, content: int) -> Tensor:
        """Runs one step of tokens at `slots` [B, n], the first `content` of them codes to keep, the others queries."""
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
        else:
            x = step(self.layers, self.weights.product, x_BnD, turn, self.used, content, self.bias)
        self.used += content
        return x

    def guide(self, x_RnD: Tensor, guidance: float) -> Tensor:
        """Returns guided logits [B, n, K] of hidden states of all rows."""
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
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # a shape for each group
        _COMPILED["step"] = torch.compile(static_step, mode="reduce-overhead", dynamic=False, fullgraph=True)
    return _COMPILED["step"]
