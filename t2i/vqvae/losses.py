"""Measures of a reconstruction, one small function an equation. Pure: no networks, no optimisers, no logging.

Axes: B batch, C channels, H W image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.vqvae.config import AutoencoderLossConfig

COARSEST = 4  # pixels a side where halving ends


def multi_scale(error_BCHW: Tensor) -> Tensor:
    """Sum over halved sizes of the mean absolute error: means over areas, which single pixels' errors do not see."""
    total = error_BCHW.new_zeros(())
    while error_BCHW.shape[-1] > COARSEST:
        error_BCHW = F.avg_pool2d(error_BCHW, 2)
        total = total + error_BCHW.abs().mean()
    return total


def gradient(error_BCHW: Tensor) -> Tensor:
    """Mean absolute error of differences of neighbouring pixels (Mathieu et al., ICLR 2016, equation 6): sharp edges."""
    return error_BCHW.diff(dim=-1).abs().mean() + error_BCHW.diff(dim=-2).abs().mean()


def contrast(images_BCHW: Tensor) -> Tensor:
    """[B, 1, H, W] in [0, 2]: the range of values within each 3x3 window, of the channel where it is widest."""
    highest, lowest = F.max_pool2d(images_BCHW, 3, 1, 1), -F.max_pool2d(-images_BCHW, 3, 1, 1)
    return (highest - lowest).amax(dim=1, keepdim=True)


def reconstruction(made_BCHW: Tensor, real_BCHW: Tensor, config: AutoencoderLossConfig) -> Tensor:
    """The weighted sum of all terms that need no network."""
    error = made_BCHW.float() - real_BCHW
    weight = 1 + config.edge * contrast(real_BCHW)
    loss = (weight * (config.l1 * error.abs() + config.l2 * error.square())).mean()
    return loss + config.multi_scale * multi_scale(error) + config.gradient * gradient(error)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """2 when real and fake get equal logits."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    return -fake.mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_weight: Tensor, limit: float) -> Tensor:
    """Brings the adversarial gradient at the decoder's last layer to the reconstruction's size (VQGAN, equation 7)."""
    (wanted,) = torch.autograd.grad(reconstruction, last_weight, retain_graph=True)
    (given,) = torch.autograd.grad(adversarial, last_weight, retain_graph=True)
    return (wanted.norm() / (given.norm() + 1e-4)).clamp(max=limit).detach()


def ramp(step: int, start: int, length: int) -> float:
    """0 before `start`, then linearly to 1 over `length` steps."""
    return min(1.0, max(0.0, (step - start + 1) / max(1, length))) if step >= start else 0.0
