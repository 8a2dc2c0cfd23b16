"""The arithmetic of one optimizer step of the tokenizer: the loss of the autoencoder and that of its discriminator.

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

ADAPTIVE_LIMIT = 10.0  # most that the adaptive weight of the adversarial term may be

Watched = dict[str, Tensor]  # scalars for the journal


class Judges(NamedTuple):
    """The networks that see reconstructions beside the pixel losses."""

    lpips: nn.Module | None  # frozen perceptual distance
    discriminator: nn.Module | None  # trained alongside


def autoencoder_loss(
    made: Reconstruction,
    real_BCHW: Tensor,
    judges: Judges,
    last_weight: Tensor,
    config: AutoencoderLossConfig,
    step: int,
    autocast: Callable[[], AbstractContextManager] = torch.enable_grad,
) -> tuple[Tensor, Watched]:
    """Returns the autoencoder's loss, and scalars to watch: pixels, perceptual distance, adversarial term, quantiser.

    Args:
        last_weight: of the decoder; the adversarial gradient is brought to the size of the others there.
        step: decides how far the adversarial term has faded in.
        autocast: the discriminator runs inside `autocast()`.
    """
    loss = losses.reconstruction(made.images_BCHW, real_BCHW, config)
    watch = {"reconstruction": loss.detach(), "quantizer_loss": made.loss.detach()}
    if judges.lpips:
        distance = judges.lpips(made.images_BCHW.float(), real_BCHW).mean()
        loss, watch["lpips"] = loss + config.lpips * distance, distance.detach()
    share = losses.ramp(step, config.adversarial_start, config.adversarial_ramp)
    if judges.discriminator and share:
        judges.discriminator.requires_grad_(False)
        with autocast():
            adversarial = losses.hinge_generator(judges.discriminator(made.images_BCHW).float())
        judges.discriminator.requires_grad_(True)
        weight = losses.adaptive_weight(loss, adversarial, last_weight, ADAPTIVE_LIMIT)
        loss = loss + share * config.adversarial * weight * adversarial
        watch |= {"adversarial": adversarial.detach(), "adaptive_weight": weight}
    loss = loss + made.loss
    return loss, watch | {"loss": loss.detach()}


def discriminator_loss(discriminator: nn.Module, real_BCHW: Tensor, fake_BCHW: Tensor) -> tuple[Tensor, Watched]:
    """Returns the hinge loss of the patch discriminator on real and reconstructed images, and scalars to watch."""
    on_real, on_fake = discriminator(torch.cat([real_BCHW, fake_BCHW])).float().chunk(2)
    loss = losses.hinge_discriminator(on_real, on_fake)
    return loss, {"d_loss": loss.detach(), "d_real": on_real.detach().mean(), "d_fake": on_fake.detach().mean()}
