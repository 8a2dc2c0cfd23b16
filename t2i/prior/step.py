"""Random draws, parameter groups and validation likelihood for training a prior.

Axes: B batch, S slots.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from t2i import seeding
from t2i.prior.config import Config
from t2i.prior.orders import Order, training_order
from t2i.prior.transformer import Prior, PriorDraws
from t2i.text import TextFeatures

CHUNK = 50  # images whose likelihood is computed at a time
BITS = float(np.log2(np.e))  # bits per nat


class PriorMicro(NamedTuple):
    """One micro-batch on the device: the arguments of `Prior.forward`."""

    codes_BS: Tensor
    text: TextFeatures
    order: Order | None
    draws: PriorDraws


def draw_micro(
    config: Config, codes_BS: Tensor, text: TextFeatures, sample_ids: NDArray[np.int64], step: int
) -> PriorMicro:
    """Draws dropped captions, dropped tokens and the decoding order by sample id, and the groups by step."""
    device, seed, slots = codes_BS.device, config.seed, codes_BS.shape[1]
    caption_B = torch.from_numpy(seeding.uniform(seed, "caption_dropout", sample_ids, 1)[:, 0])
    token_BS = torch.from_numpy(seeding.uniform(seed, "token_dropout", sample_ids, slots))
    order = None
    if config.order == "random":
        uniforms = torch.from_numpy(seeding.uniform(seed, "order", sample_ids, slots))
        groups = seeding.uniform(seed, "groups", [step], 2)[0].tolist()
        order = training_order(uniforms.to(device), groups)
    text = blurred(text, config.loss.text_noise, seed, sample_ids)
    return PriorMicro(codes_BS, text, order, PriorDraws(caption_B.to(device), token_BS.to(device)))


def blurred(text: TextFeatures, share: float, seed: int, sample_ids: NDArray[np.int64]) -> TextFeatures:
    """Returns text features with noise of `share` of each vector's root mean square, keyed by sample."""
    if not share:
        return text
    length, device = text.tokens_BTD.shape[1:], text.pooled_BP.device
    of_tokens = torch.from_numpy(seeding.normal(seed, "text_noise/tokens", sample_ids, length.numel()))
    of_pooled = torch.from_numpy(seeding.normal(seed, "text_noise/pooled", sample_ids, text.pooled_BP.shape[1]))

    def noisy(x: Tensor, noise: Tensor) -> Tensor:
        return x + share * x.square().mean(dim=-1, keepdim=True).sqrt() * noise.view_as(x).to(device, x.dtype)

    return TextFeatures(noisy(text.tokens_BTD, of_tokens), text.mask_BT, noisy(text.pooled_BP, of_pooled))


def one_by_one(micro: PriorMicro) -> Iterator[PriorMicro]:
    """Yields micro-batches of one image each."""
    for k in range(len(micro.codes_BS)):
        row = slice(k, k + 1)
        text = TextFeatures(*(part[row] for part in micro.text))
        order = None if micro.order is None else Order(micro.order.permutation_BS[row], micro.order.sizes)
        yield PriorMicro(micro.codes_BS[row], text, order, PriorDraws(*(draw[row] for draw in micro.draws)))


def parameter_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Returns AdamW's parameter groups: weight decay for matrices of linear layers, none for gains and embeddings."""
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    decayed = [p for p in model.parameters() if id(p) in matrices]
    rest = [p for p in model.parameters() if id(p) not in matrices]
    return [{"params": decayed, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


@torch.no_grad()
def bits_per_token(model: Prior, codes_BS: Tensor, text: TextFeatures) -> float:
    """Returns the mean negative log likelihood of codes given their captions, in bits per slot.

    Each slot is conditioned on all earlier ones, in raster order or in a random order that depends on the row.
    """
    nll, device = [], next(model.parameters()).device
    for start in range(0, len(codes_BS), CHUNK):
        rows = slice(start, start + CHUNK)
        codes = codes_BS[rows].to(device)
        order = None
        if model.query is not None:
            uniforms = seeding.uniform(0, "validation/order", np.arange(start, start + len(codes)), codes.shape[1])
            order = Order(torch.from_numpy(uniforms).argsort(dim=1).to(device), (1,) * codes.shape[1])
        nll.append(model(codes, TextFeatures(*(x[rows].to(device) for x in text)), order).nll_B)
    return float(torch.cat(nll).mean()) * BITS
