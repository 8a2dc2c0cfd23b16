"""Splits samplers into modules of plain tensors that can be exported, with example inputs.

Sizes of `free` axes may differ from those of the examples; all other sizes are fixed. Axes: B images (rows of the prior:
captions, and null captions for guidance), T text tokens, D width of a token, P pooled text, Z noise, S slots of an image, C codes
that are added to the cache, Q queried slots, N places of the cache, K codes, H heads.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.cgan.resnet import Generator
from t2i.cgan.sampling import CganSampler, sample
from t2i.cvae.sampling import CvaeSampler
from t2i.errors import InputError
from t2i.families import ImageTokenizer
from t2i.pipeline import TextToImagePipeline
from t2i.prior.decoding import guidance_at
from t2i.prior.orders import group_sizes
from t2i.prior.sampling import PriorSampler
from t2i.prior.transformer import Prior, rotation
from t2i.text import TextFeatures
from t2i.vqvae.frozen import FrozenTokenizer
from t2i.vqvae.quantizers.contract import Quantizer

EXAMPLES = 3  # rows of each example


class Graph(NamedTuple):
    """A module with its inputs and outputs; axis 0 of all of them is the batch."""

    module: nn.Module
    inputs: dict[str, Tensor]  # examples, EXAMPLES rows each
    outputs: tuple[str, ...]
    free: dict[str, dict[int, str]] = {}  # input -> axis -> name of a free size, in addition to the batch


class SamplerGraphs(NamedTuple):
    """The graphs of a sampler, and the settings for the program that runs them."""

    graphs: dict[str, Graph]
    sampling: dict[str, object]


def parts_of(pipe: TextToImagePipeline, text: TextFeatures) -> SamplerGraphs:
    """Returns the graphs that make images from text features.

    Args:
        text: features of EXAMPLES captions.

    Raises:
        InputError: this family cannot be exported.
    """
    if pipe.family not in PARTS:
        raise InputError(f"{pipe.home} is a {pipe.family}, which cannot be exported; {', '.join(PARTS)} can")
    return PARTS[pipe.family](pipe, text)


def text_inputs(text: TextFeatures) -> dict[str, Tensor]:
    return {"tokens": text.tokens_BTD, "mask": text.mask_BT, "pooled": text.pooled_BP}


# ---- one pass -------------------------------------------------------------------------------------------------------


class WholeGan(nn.Module):
    """Maps (text, noise) to images, with the truncation and guidance of the pipeline."""

    def __init__(self, generator: Generator, truncation: float, guidance: float) -> None:
        super().__init__()
        self.generator, self.knobs = generator, (truncation, guidance)

    def forward(self, tokens: Tensor, mask: Tensor, pooled: Tensor, noise: Tensor) -> Tensor:
        return sample(self.generator, noise, TextFeatures(tokens, mask, pooled), *self.knobs)


def _gan(pipe: TextToImagePipeline, text: TextFeatures) -> SamplerGraphs:
    sampler = cast(CganSampler, pipe.sampler)
    noise = torch.randn(EXAMPLES, sampler.config.generator.z_dim)
    module = WholeGan(sampler.generator, pipe.truncation, pipe.guidance_scale)
    graph = Graph(module, {**text_inputs(text), "noise": noise}, ("images",))
    built_in = {"truncation": pipe.truncation, "guidance": pipe.guidance_scale}
    return SamplerGraphs({"generator": graph}, {"noise": noise.shape[1], "built_in": built_in})


class WholeCvae(nn.Module):
    """Maps (text, noise) to images: generator, nearest codes, and the tokenizer's decoder."""

    def __init__(self, sampler: CvaeSampler, truncation: float) -> None:
        super().__init__()
        self.generator, self.latents = sampler.model.generator, sampler.latents
        self.decoder, self.truncation = CodeDecoder(sampler.tokenizer), truncation

    def forward(self, tokens: Tensor, mask: Tensor, pooled: Tensor, noise: Tensor) -> Tensor:
        latents = self.generator(TextFeatures(tokens, mask, pooled), noise * self.truncation)
        return self.decoder(self.latents.nearest(latents))


def _cvae(pipe: TextToImagePipeline, text: TextFeatures) -> SamplerGraphs:
    sampler = cast(CvaeSampler, pipe.sampler)
    noise = torch.randn(EXAMPLES, sampler.config.model.z_dim)
    graph = Graph(WholeCvae(sampler, pipe.truncation), {**text_inputs(text), "noise": noise}, ("images",))
    return SamplerGraphs({"generator": graph}, {"noise": noise.shape[1], "built_in": {"truncation": pipe.truncation}})


# ---- codes, one group after the other -------------------------------------------------------------------------------


class PriorPrefill(nn.Module):
    """Maps captions to keys and values of the prefix, for `PriorStep`; rows of `null` have the learned null caption.

    For a raster prior, also returns the logits of slot 0.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, tokens: Tensor, mask: Tensor, pooled: Tensor, null: Tensor) -> tuple[Tensor, ...]:
        prefix = self.prior.prefix(TextFeatures(tokens, mask, pooled), null, whole=True)
        x, visible = prefix.x_BPD, cast(Tensor, prefix.visible_BP)
        head_dim = self.prior.config.model.width // self.prior.config.model.heads
        turn = F.pad(x.new_ones(x.shape[1], 1, head_dim // 2, 1), (0, 1))  # text is not rotated
        keys, values = [], []
        for block in self.prior.blocks:
            x, k, v = block(x, prefix.modulation_MB1D, turn, visible[:, None, None, :])
            keys.append(k)
            values.append(v)
        state = (
            torch.stack(keys, dim=1),
            torch.stack(values, dim=1),
            prefix.modulation_MB1D[:, :, 0].movedim(1, 0),
            visible,
        )
        return state if self.prior.query is not None else (*state, self.prior.read_out(x[:, -1:]).float())


class PriorStep(nn.Module):
    """Adds settled codes to the cache, and returns logits of the next slots.

    For a prior with order random these are the logits of `queries`, any number of slots; for a raster prior, of the slot after
    each of `slots`.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior
        head_dim = prior.config.model.width // prior.config.model.heads
        self.register_buffer("turn", torch.view_as_real(rotation(prior.grid, head_dim, torch.device("cpu"))), False)

    def forward(
        self,
        codes: Tensor,
        slots: Tensor,
        keys: Tensor,
        values: Tensor,
        modulation: Tensor,
        visible: Tensor,
        queries: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        positions, content, past = self.prior.positions(), codes.shape[1], keys.shape[3]
        x, places = self.prior.contents(codes, slots) + positions[slots], slots
        if queries is not None:
            x = torch.cat([x, cast(Tensor, self.prior.query) + positions[queries]], dim=1)
            places = torch.cat([slots, queries], dim=1)
        n = places.shape[1]
        column, row, prefix = torch.arange(past + n), torch.arange(n), visible.shape[1]
        # by index: a concatenation along a free axis would restrict its sizes
        seen = visible[:, column.clamp(max=prefix - 1)] | (column >= prefix)
        unseen = (row < content)[:, None] & (column >= past + content)[None]  # codes do not attend to queries
        mask = seen[:, None, None, :] & ~unseen
        turn, scales = cast(Tensor, self.turn)[places][:, :, None], modulation.movedim(1, 0)[:, :, None]
        new_keys, new_values = [], []
        for i, block in enumerate(self.prior.blocks):
            x, k, v = block(x, scales, turn, mask, 0, (keys[:, i], values[:, i]))
            new_keys.append(k[:, :, : past + content])
            new_values.append(v[:, :, : past + content])
        logits = self.prior.read_out(x if queries is None else x[:, content:]).float()
        return logits, torch.stack(new_keys, dim=1), torch.stack(new_values, dim=1)


class CodeDecoder(nn.Module):
    """Maps the codes of an image, in the order of slots, to the image."""

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        if not isinstance(tokenizer, FrozenTokenizer):
            raise InputError(f"a tokenizer of the kind {type(tokenizer).__name__} cannot be exported; a VQ-VAE can")
        self.decoder, self.quantizer, self.codebooks = (
            tokenizer.model.decoder,
            tokenizer.model.quantizer,
            tokenizer.codebooks,
        )

    def forward(self, codes: Tensor) -> Tensor:
        codes_of = cast(Quantizer, self.quantizer).codes_of
        return self.decoder(codes_of(codes.unflatten(1, (-1, self.codebooks))))


def _prior(pipe: TextToImagePipeline, text: TextFeatures) -> SamplerGraphs:
    sampler = cast(PriorSampler, pipe.sampler)
    prior, grid = sampler.prior, sampler.prior.grid
    random = prior.query is not None
    null = torch.arange(EXAMPLES) == 0
    prefill = Graph(
        PriorPrefill(prior),
        {**text_inputs(text), "null": null},
        ("keys", "values", "modulation", "visible") + (() if random else ("logits",)),
    )
    with torch.no_grad():
        state = dict(zip(prefill.outputs, prefill.module(*prefill.inputs.values()), strict=True))
    state.pop("logits", None)
    codes = torch.arange(EXAMPLES * grid.slots).view(EXAMPLES, -1) % grid.codes
    slots = torch.arange(grid.slots).expand(EXAMPLES, -1)
    # keys and values of a few codes, so that no two sizes of the example are equal
    state |= {name: F.pad(state[name], (0, 0, 0, 5)) for name in ("keys", "values")}
    settled = 4 if random else 1
    inputs = {"codes": codes[:, :settled], "slots": slots[:, :settled], **state}
    free = {"keys": {3: "places"}, "values": {3: "places"}}
    if random:
        inputs["queries"] = slots[:, settled : settled + 2]
        free |= {"codes": {1: "codes"}, "slots": {1: "codes"}, "queries": {1: "queries"}}
    step = Graph(PriorStep(prior), inputs, ("logits", "new_keys", "new_values"), free)
    decoder = Graph(CodeDecoder(sampler.tokenizer), {"codes": codes}, ("images",))
    graphs = {"prefill": prefill, "step": step, "decoder": decoder}
    return SamplerGraphs(graphs, _prior_sampling(sampler, pipe.guidance_scale))


def _prior_sampling(sampler: PriorSampler, guidance: float) -> dict[str, object]:
    """Returns the settings of sampling for the manifest."""
    grid, settings = sampler.prior.grid, sampler.sampling.model_copy(update={"guidance": guidance})
    random = sampler.prior.query is not None
    sizes: Sequence[int] = (1,) * grid.slots
    if random:
        sizes = group_sizes(settings.steps or grid.slots, grid.slots, settings.group_schedule)
    starts = [sum(sizes[:i]) / grid.slots for i in range(len(sizes))]
    return {
        "slots": grid.slots,
        "codes": grid.codes,
        "order": settings.decoding_order if random else "raster",
        "queries": random,
        "groups": list(sizes),
        "guidance": [guidance_at(share, settings) for share in starts],
        "temperature": settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
    }


# family -> what makes its parts
PARTS: dict[str, Callable[[TextToImagePipeline, TextFeatures], SamplerGraphs]] = {
    "cgan": _gan,
    "cvae": _cvae,
    "prior": _prior,
}
