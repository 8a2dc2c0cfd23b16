"""Samples images from text and noise, with truncation and guidance in the GAN's latent space.

Axes: B batch, Z noise, W latent, P pooled text.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from t2i import checkpoint, seeding
from t2i.cgan.architectures import build
from t2i.cgan.config import Config
from t2i.cgan.resnet import Generator
from t2i.errors import InputError
from t2i.families import Components
from t2i.hardware import one_by_one
from t2i.images import ImageArray, to_uint8
from t2i.seeding import noise
from t2i.text import TextEncoder, TextFeatures
from t2i.trained import TrainedRun

MEAN_DRAWS = 16  # number of noise vectors that the mean latent of a caption is taken over


@torch.no_grad()
def latents(
    generator: Generator, z_BZ: Tensor, pooled_BP: Tensor, truncation: float = 1.0, guidance: float = 1.0
) -> Tensor:
    """Returns w_BW for noise and text.

    Args:
        truncation: 1 does not change w; 0 replaces it by the mean latent of its caption (less variety, safer images).
        guidance: 1 does not change w; above 1 moves it away from the mean latent of all captions (GAT, 2025).
    """
    w = generator.mapping(z_BZ, pooled_BP)
    if truncation != 1:
        draws = torch.from_numpy(seeding.normal(0, "mean/z", np.arange(MEAN_DRAWS), z_BZ.shape[1])).to(z_BZ.device)
        repeated = pooled_BP.repeat_interleave(MEAN_DRAWS, dim=0)
        every = generator.mapping(draws.repeat(pooled_BP.shape[0], 1), repeated)
        mean = every.unflatten(0, (-1, MEAN_DRAWS)).mean(dim=1)
        w = mean + truncation * (w - mean)
    if guidance != 1:
        w = generator.w_average + guidance * (w - generator.w_average)
    return w


@torch.no_grad()
def sample(
    generator: Generator, z_BZ: Tensor, text: TextFeatures, truncation: float = 1.0, guidance: float = 1.0
) -> Tensor:
    """Returns images_BCHW, roughly in [-1, 1]."""
    return generator.synthesis(latents(generator, z_BZ, text.pooled_BP, truncation, guidance), text)


def sample_uint8(
    generator: Generator,
    z_BZ: Tensor,
    text: TextFeatures,
    truncation: float = 1.0,
    guidance: float = 1.0,
    on_step: Callable[[float], None] | None = None,
) -> ImageArray:
    """Samples images, uint8 [B, H, W, 3], from noise and text on any device.

    On a CPU the images are sampled one by one (`one_by_one`). On two cores this gives 220 images/s at 64 px, where batches of
    64 do not fit into the caches and give 187, but 462 instead of 1,168 at 32 px. On other devices, all B images are one
    batch, and their rounding may depend on B.

    Args:
        on_step: called with the share of images that are done.
    """
    device = generator.w_average.device

    def images_of(rows: list[int] | slice) -> ImageArray:
        features = TextFeatures(*(x[rows].to(device) for x in text))
        return to_uint8(sample(generator, z_BZ[rows].to(device), features, truncation, guidance))

    if device.type == "cpu":
        return np.concatenate(one_by_one(images_of, len(z_BZ), on_step))
    images = images_of(slice(None))
    if on_step is not None:
        on_step(1.0)
    return images


class CganSampler:
    """The averaged generator of a run; the methods are documented in `t2i.families.Sampler`."""

    parts = ("generator",)
    guidance = 1.0

    def __init__(self, config: Config, generator: Generator) -> None:
        self.config, self.generator = config, generator.eval().requires_grad_(False)
        self.z_dim = config.generator.z_dim

    @classmethod
    def components_of(cls, run: TrainedRun) -> Components:
        return {"generator": (run.manifest["config"], run.weights)}

    @classmethod
    def load(cls, components: Components, text: TextEncoder) -> Self:
        values, tensors = components["generator"]
        config = Config.kept(values)
        with torch.random.fork_rng(devices=[]):  # initialising weights must not use the caller's generator
            generator, _ = build(config, text.pooled_dim, text.token_dim)
        checkpoint.load_module(generator, tensors, "generator")
        return cls(config, cast(Generator, generator))

    def components(self) -> Components:
        return {"generator": (self.config.model_dump(mode="json"), self.generator.state_dict())}

    def to(self, device: torch.device) -> None:
        self.generator.to(device)

    def tuned(self, settings: Mapping[str, Any]) -> Self:
        if settings:
            raise InputError(f"a GAN has no setting {min(settings)!r}; it only has guidance and truncation")
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
        if guidance != 1 and not self.generator.w_average.any():
            raise InputError(
                f"guidance {guidance:g} needs the mean latent, which this early checkpoint does not have; use guidance 1, or "
                "train until the next checkpoint"
            )
        return sample_uint8(self.generator, z_BZ, text, truncation, guidance, on_step)
