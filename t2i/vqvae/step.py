"""Losses of one optimizer step of the tokenizer: those of the autoencoder and of its discriminator.

Axes: B batch, C channels, H W image.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from t2i.vqvae import losses
from t2i.vqvae.autoencoder import Reconstruction
from t2i.vqvae.config import AutoencoderLossConfig

ADAPTIVE_LIMIT = 10.0  # maximum of the adaptive weight of the adversarial term

Watched = dict[str, Tensor]  # scalars for the journal


class Judges(NamedTuple):
    """The networks that judge reconstructions in addition to the pixel losses."""

    lpips: nn.Module | None  # frozen perceptual distance
    discriminator: nn.Module | None  # trained together with the autoencoder


def autoencoder_loss(
    output: Reconstruction,
    real_BCHW: Tensor,
    judges: Judges,
    last_weight: Tensor,
    config: AutoencoderLossConfig,
    step: int,
    autocast: Callable[[], AbstractContextManager] = torch.enable_grad,
) -> tuple[Tensor, Watched]:
    """Returns the autoencoder's loss, and scalars to watch: pixels, perceptual distance, adversarial term, quantiser.

    Args:
        last_weight: last weight of the decoder, where the adversarial gradient is scaled to the norm of the others.
        step: determines the weight of the adversarial term during its ramp.
        autocast: the discriminator runs inside `autocast()`.
    """
    loss = losses.reconstruction(output.images_BCHW, real_BCHW, config)
    watch = {"reconstruction": loss.detach(), "quantizer_loss": output.loss.detach()}
    if judges.lpips:
        distance = judges.lpips(output.images_BCHW.float(), real_BCHW).mean()
        loss, watch["lpips"] = loss + config.lpips * distance, distance.detach()
    share = losses.ramp(step, config.adversarial_start, config.adversarial_ramp)
    if judges.discriminator and share:
        judges.discriminator.requires_grad_(False)
        with autocast():
            adversarial = losses.hinge_generator(judges.discriminator(output.images_BCHW).float())
        judges.discriminator.requires_grad_(True)
        weight = losses.adaptive_weight(loss, adversarial, last_weight, ADAPTIVE_LIMIT)
        loss = loss + share * config.adversarial * weight * adversarial
        watch |= {"adversarial": adversarial.detach(), "adaptive_weight": weight}
    loss = loss + output.loss
    return loss, watch | {"loss": loss.detach()}


def discriminator_loss(discriminator: nn.Module, real_BCHW: Tensor, fake_BCHW: Tensor) -> tuple[Tensor, Watched]:
    """Returns the hinge loss of the patch discriminator on real and reconstructed images, and scalars to watch."""
    on_real, on_fake = discriminator(torch.cat([real_BCHW, fake_BCHW])).float().chunk(2)
    loss = losses.hinge_discriminator(on_real, on_fake)
    return loss, {"d_loss": loss.detach(), "d_real": on_real.detach().mean(), "d_fake": on_fake.detach().mean()}
