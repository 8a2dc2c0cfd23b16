"""Random draws and losses of one optimizer step of the GAN.

Axes: B batch, C channels, H W image, Z noise, N candidate images.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from t2i import seeding
from t2i.cgan import rules
from t2i.cgan.config import Config
from t2i.cgan.diffaugment import DRAWS, augment, flip
from t2i.extractors import ImageTextExtractor
from t2i.text import TextFeatures

CANDIDATES = 4  # noise vectors tried per caption; the one whose image is nearest to the real one is used

Watched = dict[str, Tensor]  # scalars for the journal


class GanMicro(NamedTuple):
    """One micro-batch on the device, with all random numbers of its step."""

    sample_ids: NDArray[np.int64]
    real: Tensor
    real_shown: Tensor  # augmented, for the discriminator
    text: TextFeatures
    captions: rules.CaptionPool
    guide: tuple[Tensor, Tensor] | None  # the guide's embeddings of the captions and of the pool
    z: Tensor
    fake_draws: Tensor  # uniform numbers for the augmentation of generated images
    probes: tuple[Tensor, Tensor] | None  # normal numbers for the finite-difference penalties


def draw_micro(
    config: Config,
    real_BCHW: Tensor,
    text: TextFeatures,
    captions: rules.CaptionPool,
    guide: tuple[Tensor, Tensor] | None,
    sample_ids: NDArray[np.int64],
) -> GanMicro:
    """Draws noise, augmentations and probes for a micro-batch of real images, by sample id."""
    device, seed = real_BCHW.device, config.seed
    real_draws, fake_draws = (
        torch.from_numpy(seeding.uniform(seed, f"augment/{who}", sample_ids, DRAWS)).float().to(device)
        for who in ("real", "fake")
    )
    real = flip(real_BCHW, real_draws) if config.flip else real_BCHW
    probes = None
    if rules.has_probes(config.loss):
        probed = real[: rules.penalised(config.loss, len(real))]
        probes = torch.randn_like(probed), torch.randn_like(probed)
    return GanMicro(
        sample_ids=sample_ids,
        real=real,
        real_shown=augment(real, config.augment, real_draws),
        text=text,
        captions=captions,
        guide=guide,
        z=torch.from_numpy(seeding.normal(seed, "train/z", sample_ids, config.generator.z_dim)).to(device),
        fake_draws=fake_draws,
        probes=probes,
    )


@torch.no_grad()
def nearest_noise(generator: nn.Module, config: Config, micro: GanMicro) -> Tensor:
    """Returns z_BZ: of `CANDIDATES` noise vectors per caption, the one whose image is nearest to the real image.

    This is conditional IMLE (Li et al., IJCV 2020). Since only the nearest image is pulled towards the real one, the noise can
    decide what the caption does not determine; pulling all of them would yield the mean. Images are compared at half size, as
    the noise should not decide finer details.
    """
    others = [
        torch.from_numpy(seeding.normal(config.seed, f"train/z/{k}", micro.sample_ids, config.generator.z_dim))
        for k in range(1, CANDIDATES)
    ]
    z_NZ = torch.cat([micro.z, *(z.to(micro.z.device) for z in others)])
    text = TextFeatures(*(x.repeat(CANDIDATES, *[1] * (x.ndim - 1)) for x in micro.text))
    candidates = F.avg_pool2d(generator(z_NZ, text).float(), 2).flatten(1).view(CANDIDATES, len(micro.z), -1)
    nearest_B = (candidates - F.avg_pool2d(micro.real, 2).flatten(1)).square().mean(dim=2).argmin(dim=0)
    return z_NZ.view(CANDIDATES, len(micro.z), -1)[nearest_B, torch.arange(len(micro.z), device=nearest_B.device)]


def discriminate(
    discriminator: nn.Module, micro: GanMicro, fake_BCHW: Tensor, config: Config, gamma: float, condition: float
) -> tuple[Tensor, Watched]:
    """Returns the discriminator's loss on real and generated images, and scalars to watch.

    Args:
        fake_BCHW: generated images; no gradient flows into them.
        gamma: weight of R1 and R2 at this step.
        condition: 0 ignores the captions, 1 uses them.
    """
    shown = augment(fake_BCHW.detach(), config.augment, micro.fake_draws)
    loss, watch = rules.discriminator_loss(
        discriminator, micro.real_shown, shown, micro.captions, micro.probes, config.loss, gamma, condition
    )
    return loss, {name: value.detach() for name, value in watch.items()} | {"d_loss": loss.detach()}


def generate(
    discriminator: nn.Module,
    micro: GanMicro,
    fake_BCHW: Tensor,
    config: Config,
    condition: float,
    guide: ImageTextExtractor | None = None,
    autocast: Callable[[], AbstractContextManager] = torch.enable_grad,
) -> tuple[Tensor, Watched]:
    """Returns the generator's loss on its images, and scalars to watch: adversarial, reconstruction and guidance terms.

    Args:
        guide: a frozen image-text encoder, run inside `autocast()`.
    """
    shown = augment(fake_BCHW, config.augment, micro.fake_draws)
    loss = rules.generator_loss(discriminator, micro.real_shown, shown, micro.captions, config.loss, condition)
    watch = {"g_loss": loss.detach()}
    if config.loss.reconstruction:
        distance = (fake_BCHW.float() - micro.real).square()
        labelled_B = micro.captions.labelled_B  # other images only have a borrowed caption
        distance = distance.mean() if labelled_B is None else (distance.mean(dim=(1, 2, 3)) * labelled_B).mean()
        watch["reconstruction"] = distance.detach()
        loss = loss + config.loss.reconstruction * distance
    if guide and micro.guide:
        with autocast():
            embedding = guide.embed_images(fake_BCHW)
        guided = rules.guidance_loss(embedding, *micro.guide, micro.captions.same_BM, guide.scale)
        watch["guidance"] = guided.detach()
        loss = loss + config.guidance.weight * guided
    return loss, watch


@torch.no_grad()
def track_mean_latent(generator: nn.Module, micro: GanMicro, step: int) -> None:
    """Updates the buffer `w_average`, the mean latent over captions that guidance in sampling moves away from."""
    mean = generator.mapping(micro.z, micro.text.pooled_BP).mean(dim=0)  # type: ignore[operator]
    generator.w_average.lerp_(mean, max(0.02, 1 / step))  # type: ignore[union-attr,operator]
