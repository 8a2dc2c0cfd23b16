"""Samples images in one pass from text and noise, for runs of `t2i train cvae`.

Axes: B batch, L places, C channels of a latent, K codes, Z noise.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from pydantic import TypeAdapter
from torch import Tensor

from t2i import checkpoint
from t2i.cvae.config import Config
from t2i.cvae.network import ConditionalVAE, Shape
from t2i.errors import InputError
from t2i.families import Components, ImageTokenizer
from t2i.families.tokenizers import built_tokenizer, tokenizer_beside
from t2i.hardware import one_by_one
from t2i.images import ImageArray
from t2i.seeding import noise
from t2i.text import TextEncoder, TextFeatures
from t2i.trained import TrainedRun


class Latents:
    """Converts a tokenizer's points, its features before quantisation, to latents of unit mean square, and latents to codes."""

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        if tokenizer.codebooks > 1:
            raise InputError(
                f"this tokenizer has {tokenizer.codebooks} codes per place, but a cvae needs one; train one with another "
                "quantizer.kind than residual"
            )
        vectors_KC = tokenizer.codebook()
        self.scale = 1 / float(vectors_KC.square().mean().sqrt())
        self.vectors_KC = vectors_KC * self.scale
        self.shape = Shape(tokenizer.grid, vectors_KC.shape[1])

    def of(self, points_BLC: Tensor) -> Tensor:
        """Returns latents_BLC of a tokenizer's points, on its device."""
        return points_BLC.to(self.vectors_KC.device) * self.scale

    def nearest(self, latents_BLC: Tensor) -> Tensor:
        """Returns indices_BL of the nearest codes by Euclidean distance."""
        codes = self.vectors_KC
        flat = latents_BLC.flatten(0, 1).float()
        return torch.addmm(codes.square().sum(dim=1), flat, codes.T, alpha=-2).argmin(dim=1).view(latents_BLC.shape[:2])


@torch.no_grad()
def sample_codes(
    model: ConditionalVAE,
    latents: Latents,
    z_BZ: Tensor,
    text: TextFeatures,
    on_step: Callable[[float], None] | None = None,
) -> Tensor:
    """Returns indices_BL for noise and text on any device.

    On a CPU the images are sampled one by one (`one_by_one`), on other devices as one batch.

    Args:
        on_step: called with the share of images that are done.
    """
    device = latents.vectors_KC.device

    @torch.no_grad()  # applies to the present thread only
    def indices_of(rows: list[int] | slice) -> Tensor:
        features = TextFeatures(*(x[rows].to(device) for x in text))
        return latents.nearest(model.generator(features, z_BZ[rows].to(device)))

    if device.type == "cpu":
        return torch.cat(one_by_one(indices_of, len(z_BZ), on_step))
    indices_BL = indices_of(slice(None))
    if on_step is not None:
        on_step(1.0)
    return indices_BL


class CvaeSampler:
    """The averaged generator of a run and its tokenizer; the methods are documented in `t2i.families.Sampler`."""

    parts = ("generator", "tokenizer")
    guidance = 1.0

    def __init__(self, config: Config, model: ConditionalVAE, tokenizer: ImageTokenizer) -> None:
        self.config, self.model, self.tokenizer = config, model.eval().requires_grad_(False), tokenizer
        self.latents, self.z_dim = Latents(tokenizer), config.model.z_dim

    @classmethod
    def components_of(cls, run: TrainedRun) -> Components:
        (component,) = tokenizer_beside(run).components().values()
        values = run.manifest["config"] | {"shape": run.manifest.get("shape")}
        return {"generator": (values, run.weights), "tokenizer": component}

    @classmethod
    def load(cls, components: Components, text: TextEncoder) -> Self:
        values, tensors = components["generator"]
        config = Config.kept({key: value for key, value in values.items() if key != "shape"})
        shape = TypeAdapter(Shape).validate_python(values.get("shape"))
        with torch.random.fork_rng(devices=[]):  # initialising weights must not use the caller's generator
            model = ConditionalVAE(config, shape, text.token_dim, text.pooled_dim, text.max_tokens)
        checkpoint.load_module(model, tensors, "generator")
        tokenizer = built_tokenizer(components["tokenizer"])
        sampler = cls(config, model, tokenizer)
        if sampler.latents.shape != shape:
            raise InputError(
                "this model's tokenizer has latents of another shape than the generator was trained on; save the model again"
            )
        return sampler

    def components(self) -> Components:
        (tokenizer,) = self.tokenizer.components().values()
        values = self.config.model_dump(mode="json") | {"shape": list(self.latents.shape)}
        return {"generator": (values, self.model.state_dict()), "tokenizer": tokenizer}

    def to(self, device: torch.device) -> None:
        self.model.to(device)
        self.tokenizer.to(device)
        self.latents = Latents(self.tokenizer)

    def tuned(self, settings: Mapping[str, Any]) -> Self:
        if settings:
            raise InputError(f"a cvae has no setting {min(settings)!r}; its only setting is truncation")
        return self

    def settings(self) -> dict[str, Any]:
        return {}

    def sample(
        self,
        text: TextFeatures,
        seeds: Sequence[int],
        truncation: float = 1.0,
        guidance: float = 1.0,
        on_step: Callable[[float], None] | None = None,
    ) -> ImageArray:
        return self.sample_noise(text, noise(seeds, self.z_dim), truncation, guidance, on_step)

    def sample_noise(
        self,
        text: TextFeatures,
        z_BZ: Tensor,
        truncation: float = 1.0,
        guidance: float = 1.0,
        on_step: Callable[[float], None] | None = None,
    ) -> ImageArray:
        """Samples with the noise multiplied by `truncation`; 0 gives the most typical image of a caption for any seed."""
        if guidance != 1:
            raise InputError(f"a cvae has no guidance, got {guidance:g}; its only setting is truncation")
        indices = sample_codes(self.model, self.latents, z_BZ * truncation, text, on_step)
        return self.tokenizer.decode(indices.cpu()[..., None])

    def reconstruct(self, images_BHWC: ImageArray) -> ImageArray:
        return self.tokenizer.decode(self.tokenizer.encode(images_BHWC))
