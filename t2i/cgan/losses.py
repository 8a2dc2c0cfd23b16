"""Adversarial losses, one small pure function per equation.

A relativistic critic scores pairs: it estimates if a real image looks more real than a generated one (Jolicoeur-Martineau,
ICLR 2019; Huang et al., "The GAN is dead; long live the GAN!", NeurIPS 2024, equations 1-4).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def relativistic(better_B: Tensor, worse_B: Tensor) -> Tensor:
    """Returns the mean of softplus(-(better - worse)), which is ln 2 if the two are equal."""
    return F.softplus(worse_B - better_B).mean()


def hinge_discriminator(real_B: Tensor, fake_B: Tensor, mismatched: Tensor, mismatched_weight: float) -> Tensor:
    """Returns DF-GAN's loss (Tao et al., CVPR 2022, equation 1): generated and mismatched pairs share the negative weight.

    Args:
        mismatched: mean of max(0, 1 + D) over mismatched pairs.
    """
    negative = (1 - mismatched_weight) * F.relu(1 + fake_B).mean() + mismatched_weight * mismatched
    return F.relu(1 - real_B).mean() + negative


def hinge_generator(fake_B: Tensor) -> Tensor:
    return -fake_B.mean()


def centering(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """Returns the mean of (D(real) + D(fake))^2, since a relativistic loss does not determine the common level of the logits
    (Lin et al., AFM, 2025)."""
    return (real_B + fake_B).square().mean()


def gradient_penalty_autograd(logit_B: Tensor, images_BCHW: Tensor) -> Tensor:
    """Returns E ||grad_x D(x)||^2 by double backward (R1 on real, R2 on generated images; Mescheder et al., ICML 2018).

    It is the reference for the estimate by finite differences.

    Args:
        logit_B: logits of the first images, or of all.
    """
    (gradient,) = torch.autograd.grad(logit_B.sum(), images_BCHW, create_graph=True)
    return gradient[: len(logit_B)].square().sum(dim=(1, 2, 3)).mean()


def gradient_penalty_finite_difference(base_B: Tensor, probed_B: Tensor, sigma: float) -> Tensor:
    """Returns the mean of ((D(x + sigma e) - D(x)) / sigma)^2 with e ~ N(0, 1), which estimates ||grad_x D||^2 up to sigma^2
    (GAT, 2025; AFM, 2025).

    It needs no double backward, so it can be compiled and works in bf16 and under DistributedDataParallel.

    Args:
        base_B: D(x).
        probed_B: D(x + sigma e).
    """
    return ((probed_B - base_B) / sigma).square().mean()


def matching_aware_penalty(logit_B: Tensor, images_BCHW: Tensor, text_BP: Tensor) -> Tensor:
    """Returns MA-GP: (||grad_x D||^2 + ||grad_t D||^2)^(6/2) on matching real pairs (DF-GAN, equation 2, with p = 6)."""
    grad_x, grad_t = torch.autograd.grad(logit_B.sum(), (images_BCHW, text_BP), create_graph=True)
    return torch.cat([grad_x.flatten(1), grad_t.flatten(1)], dim=1).square().sum(dim=1).pow(3).mean()
