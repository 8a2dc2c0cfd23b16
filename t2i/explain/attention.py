"""Attention of the places of an image to the words of its prompt, for networks that attend to words.

The attention is averaged over blocks and heads, as in DAAM (Tang et al., ACL 2023), and divided by the total attention of a place
to the prompt, since some places attend more to other places. It shows where a word is read; the maps of `t2i.explain.maps` show
what the word changes.

Axes: S slots or places, T text tokens.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from t2i import seeding
from t2i.cgan.sampling import CganSampler, sample
from t2i.cvae.sampling import CvaeSampler
from t2i.explain.words import Word
from t2i.pipeline import TextToImagePipeline
from t2i.prior.sampling import PriorSampler
from t2i.text import TextEncoder, TextFeatures

Codes = NDArray[np.int64]
# special tokens before and after those of a caption; other encoders have none
FRAMES = {"aligned": (1, 1), "clip": (1, 1), "bert": (1, 1), "t5": (0, 1)}


class AttentionRecorder(TorchFunctionMode):
    """Records the weights [rows, columns] of each attention that this thread computes, averaged over heads."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func is F.scaled_dot_product_attention:
            q, k, mask = args[0], args[1], named.get("attn_mask")
            scores = q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
            scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
            self.weights.append(scores.softmax(dim=-1)[0].mean(dim=0).cpu())
        return func(*args, **named)


def attention_maps(
    pipe: TextToImagePipeline, prompt: str, words: Sequence[Word], seed: int, codes: Codes | None
) -> list[NDArray[np.float64]] | None:
    """Returns a map [rows, columns] for each word, its share of the attention of each place to the prompt.

    Args:
        seed: seed of the image's noise.
        codes: codes of the image, for a prior.

    Returns:
        The maps; None if the network does not attend to words.
    """
    if pipe.family not in ATTENDING:
        return None
    text = TextFeatures(*(part.to(pipe.device) for part in pipe.text_encoder.encode([prompt])))
    with torch.no_grad(), AttentionRecorder() as recorder:
        weights_hwT = ATTENDING[pipe.family](pipe, text, seed, codes, recorder)
    if weights_hwT is None:
        return None
    weights_hwT = weights_hwT[:, :, : int(text.mask_BT.sum())]  # on a CPU, columns of other tokens follow, not padding
    weights_hwT = weights_hwT / weights_hwT.sum(dim=2, keepdim=True)
    spans = [tokens_of(pipe.text_encoder, prompt, word) for word in words]
    return [weights_hwT[:, :, start:end].sum(dim=2).double().numpy() for start, end in spans]


def tokens_of(encoder: TextEncoder, prompt: str, word: Word) -> tuple[int, int]:
    """Returns the first token of a word and the one after its last; both are equal if it has no token."""
    first, last = FRAMES.get(encoder.name, (0, 0))

    def count(text: str) -> int:
        return int(encoder.encode([text]).mask_BT.sum()) - first - last if text else 0

    end = first + count(prompt[: word.end])
    return (first + count(prompt[: word.start].rstrip()) if word.start else first), end


def _gan(
    pipe: TextToImagePipeline, text: TextFeatures, seed: int, codes: Codes | None, recorder: AttentionRecorder
) -> Tensor | None:
    sampler = cast(CganSampler, pipe.sampler)
    if not sampler.config.generator.cross_attention:
        return None
    noise = seeding.noise([seed], sampler.config.generator.z_dim).to(pipe.device)
    sample(sampler.generator, noise, text, pipe.truncation, pipe.guidance_scale)
    side = max(math.isqrt(len(weights)) for weights in recorder.weights)
    maps = [_grid(weights).movedim(2, 0)[None] for weights in recorder.weights]
    return torch.cat([F.interpolate(one, size=side) for one in maps]).mean(dim=0).movedim(0, 2)


def _cvae(
    pipe: TextToImagePipeline, text: TextFeatures, seed: int, codes: Codes | None, recorder: AttentionRecorder
) -> Tensor:
    sampler = cast(CvaeSampler, pipe.sampler)
    noise = seeding.noise([seed], sampler.config.model.z_dim).to(pipe.device)
    sampler.model.generator(text, noise * pipe.truncation)
    places = sampler.latents.shape.grid**2  # places come after the words
    return _grid(torch.stack([weights[-places:, :-places] for weights in recorder.weights]).mean(dim=0))


def _prior(
    pipe: TextToImagePipeline, text: TextFeatures, seed: int, codes: Codes | None, recorder: AttentionRecorder
) -> Tensor:
    """Averages the rows that predict slots, which are the last ones, over orders of decoding and over the codes of a cell."""
    sampler = cast(PriorSampler, pipe.sampler)
    grid, codes_BS = sampler.prior.grid, torch.from_numpy(codes)[None].to(pipe.device)
    tokens = text.mask_BT.shape[1]
    total = torch.zeros(grid.slots, tokens)
    orders = sampler.orders(1)
    for order in orders:
        recorder.weights.clear()
        sampler.prior.logits(codes_BS, text, order)
        mean = torch.stack([weights[-grid.slots :, :tokens] for weights in recorder.weights]).mean(dim=0)
        slots = torch.arange(grid.slots) if order is None else order.permutation_BS[0].cpu()
        total[slots] += mean / len(orders)
    return total.view(grid.height, grid.width, grid.depth, tokens).mean(dim=2)


def _grid(weights_ST: Tensor) -> Tensor:
    """Reshapes the places of a square image to [rows, columns, T]."""
    side = math.isqrt(len(weights_ST))
    return weights_ST.view(side, side, -1)


# family -> function that returns the attention [rows, columns, T], or None
ATTENDING: dict[
    str, Callable[[TextToImagePipeline, TextFeatures, int, Codes | None, AttentionRecorder], Tensor | None]
] = {
    "cgan": _gan,
    "cvae": _cvae,
    "prior": _prior,
}
