"""Turns text and noise into images, with the two knobs of a GAN's latent space.

Axes: B batch, Z noise, W latent, P pooled text.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from t2i.hardware import one_thread_each
from t2i.images import ImageArray, to_uint8
from t2i.seeding import noise, slerp
from t2i.text import TextEncoder, TextFeatures
from t2i.trained import TrainedRun

MEAN_DRAWS = 16  # noises that the mean latent of a caption is taken over


@torch.no_grad()
def latents(
    generator: Generator, z_BZ: Tensor, pooled_BP: Tensor, truncation: float = 1.0, guidance: float = 1.0
) -> Tensor:
    """w_BW of noise and text.

    Args:
        truncation: 1 leaves w alone, 0 gives every noise the mean latent of its caption (less variety, safer images).
        guidance: 1 leaves w alone; above 1 moves it away from the mean latent of all captions (GAT, 2025).
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
    """images_BCHW, roughly in [-1, 1]."""
    return generator.synthesis(latents(generator, z_BZ, text.pooled_BP, truncation, guidance), text)


def sample_uint8(
    generator: Generator,
    z_BZ: Tensor,
    text: TextFeatures,
    truncation: float = 1.0,
    guidance: float = 1.0,
    on_step: Callable[[float], None] | None = None,
) -> ImageArray:
    """uint8 [B, H, W, 3] of noise and text, both on any device.

    On a CPU each image is sampled alone, by one thread, as many at once as torch has threads. So it has the same bits
    whatever is sampled beside it, while a batch would round by its size and by the place of an image in it. On two cores
    that makes 220 images/s at 64 px, where batches of 64 fall out of the caches and give 187, but 462 at 32 px against
    1,168. Elsewhere all B images are one batch: enough work for a GPU, but they may differ by rounding with B.

    Args:
        on_step: is given the share that is done, after each image or after the batch.
    """
    count, device = len(z_BZ), generator.w_average.device
    if device.type != "cpu":
        z, features = z_BZ.to(device), TextFeatures(*(x.to(device) for x in text))
        images = to_uint8(sample(generator, z, features, truncation, guidance))
        if on_step is not None:
            on_step(1.0)
        return images

    def one(i: int) -> ImageArray:
        features = TextFeatures(*(x[[i]] for x in text))
        return to_uint8(sample(generator, z_BZ[[i]], features, truncation, guidance))

    images = []
    with one_thread_each() as workers, ThreadPoolExecutor(workers) as pool:
        for image in pool.map(one, range(count)):
            images.append(image)
            if on_step is not None:
                on_step(len(images) / count)
    return np.concatenate(images)


class CganSampler:
    """The averaged generator of a run; `t2i.families.Sampler` says what each method does."""

    parts = ("generator",)
    guidance = 1.0

    def __init__(self, config: Config, generator: Generator) -> None:
        self.config, self.generator = config, generator.eval().requires_grad_(False)

    @classmethod
    def components_of(cls, run: TrainedRun) -> Components:
        return {"generator": (run.manifest["config"], run.weights)}

    @classmethod
    def load(cls, components: Components, text: TextEncoder) -> Self:
        values, tensors = components["generator"]
        config = Config.kept(values)
        with torch.random.fork_rng(devices=[]):  # fresh weights come from the caller's generator, and are overwritten
            generator, _ = build(config, text.pooled_dim, text.token_dim)
        checkpoint.load_module(generator, tensors, "generator")
        return cls(config, cast(Generator, generator))

    def components(self) -> Components:
        return {"generator": (self.config.model_dump(mode="json"), self.generator.state_dict())}

    def to(self, device: torch.device) -> None:
        self.generator.to(device)

    def tuned(self, settings: Mapping[str, Any]) -> Self:
        if settings:
            raise InputError(f"a GAN has no setting {min(settings)!r}; it has guidance and truncation alone")
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
        z_BZ = noise(seeds, self.config.generator.z_dim)
        return self._sample(z_BZ, text, truncation, guidance, on_step)

    def sample_between(
        self,
        text: TextFeatures,
        seeds: tuple[int, int],
        weights: Sequence[float],
        truncation: float = 1.0,
        guidance: float = 1.0,
    ) -> ImageArray:
        a_Z, b_Z = noise(seeds, self.config.generator.z_dim)
        z_BZ = slerp(a_Z, b_Z, weights)
        return self._sample(z_BZ, text, truncation, guidance, None)

    def _sample(
        self,
        z_BZ: Tensor,
        text: TextFeatures,
        truncation: float,
        guidance: float,
        on_step: Callable[[float], None] | None,
    ) -> ImageArray:
        if guidance != 1 and not self.generator.w_average.any():
            raise InputError(
                f"guidance {guidance:g} has no mean latent to lead away from: this checkpoint was saved before one was "
                "measured; use guidance 1, or train on to the next checkpoint"
            )
        return sample_uint8(self.generator, z_BZ, text, truncation, guidance, on_step)
