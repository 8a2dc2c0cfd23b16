"""Losses of a reconstruction, one small pure function per equation.

Axes: B batch, C channels, H W image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.vqvae.config import AutoencoderLossConfig

COARSEST = 4  # pixels per side of the smallest size


def multi_scale(error_BCHW: Tensor) -> Tensor:
    """Returns the sum over halved sizes of the mean absolute error, which penalises wrong means over areas."""
    total = error_BCHW.new_zeros(())
    while error_BCHW.shape[-1] > COARSEST:
        error_BCHW = F.avg_pool2d(error_BCHW, 2)
        total = total + error_BCHW.abs().mean()
    return total


def gradient(error_BCHW: Tensor) -> Tensor:
    """Returns the mean absolute error of differences of neighbouring pixels (Mathieu et al., ICLR 2016, equation 6), which
    favours sharp edges."""
    return error_BCHW.diff(dim=-1).abs().mean() + error_BCHW.diff(dim=-2).abs().mean()


def contrast(images_BCHW: Tensor) -> Tensor:
    """Returns the range of values within each 3x3 window, maximal over channels: [B, 1, H, W] in [0, 2]."""
    highest, lowest = F.max_pool2d(images_BCHW, 3, 1, 1), -F.max_pool2d(-images_BCHW, 3, 1, 1)
    return (highest - lowest).amax(dim=1, keepdim=True)


def reconstruction(decoded_BCHW: Tensor, real_BCHW: Tensor, config: AutoencoderLossConfig) -> Tensor:
    """Returns the weighted sum of all terms that need no network."""
    error = decoded_BCHW.float() - real_BCHW
    weight = 1 + config.edge * contrast(real_BCHW)
    loss = (weight * (config.l1 * error.abs() + config.l2 * error.square())).mean()
    return loss + config.multi_scale * multi_scale(error) + config.gradient * gradient(error)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Returns the hinge loss, which is 2 if real and fake logits are equal and small."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    return -fake.mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_weight: Tensor, limit: float) -> Tensor:
    """Returns the weight that scales the adversarial gradient at the decoder's last layer to the norm of the reconstruction's
    (VQGAN, equation 7)."""
    (target,) = torch.autograd.grad(reconstruction, last_weight, retain_graph=True)
    (gradient,) = torch.autograd.grad(adversarial, last_weight, retain_graph=True)
    return (target.norm() / (gradient.norm() + 1e-4)).clamp(max=limit).detach()


def ramp(step: int, start: int, length: int) -> float:
    """Returns 0 before `start`, then rises linearly to 1 over `length` steps."""
    return min(1.0, max(0.0, (step - start + 1) / max(1, length))) if step >= start else 0.0
