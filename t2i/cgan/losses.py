"""The adversarial rules, one small function an equation. Pure: no models' internals, no optimisers, no logging.

A relativistic critic scores pairs: it asks whether a real image looks more real than a generated one (Jolicoeur-Martineau,
ICLR 2019; Huang et al., "The GAN is dead; long live the GAN!", NeurIPS 2024, equations 1-4).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def relativistic(better_B: Tensor, worse_B: Tensor) -> Tensor:
    """softplus(-(better - worse)): ln 2 when the two are equal."""
    return F.softplus(worse_B - better_B).mean()


def hinge_discriminator(real_B: Tensor, fake_B: Tensor, mismatched: Tensor, mismatched_weight: float) -> Tensor:
    """DF-GAN (Tao et al., CVPR 2022, equation 1): generated and mismatched pairs share the negative weight.

    Args:
        mismatched: mean of max(0, 1 + D) over mismatched pairs.
    """
    negative = (1 - mismatched_weight) * F.relu(1 + fake_B).mean() + mismatched_weight * mismatched
    return F.relu(1 - real_B).mean() + negative


def hinge_generator(fake_B: Tensor) -> Tensor:
    return -fake_B.mean()


def centering(real_B: Tensor, fake_B: Tensor) -> Tensor:
    """(D(real) + D(fake))^2: a relativistic loss leaves the common level of the logits free (Lin et al., AFM, 2025)."""
    return (real_B + fake_B).square().mean()


def gradient_penalty_autograd(logit_B: Tensor, images_BCHW: Tensor) -> Tensor:
    """E ||grad_x D(x)||^2 (R1 on reals, R2 on fakes; Mescheder et al., ICML 2018), by double backward: the reference.

    Args:
        logit_B: of the first images, or of all.
    """
    (gradient,) = torch.autograd.grad(logit_B.sum(), images_BCHW, create_graph=True)
    return gradient[: len(logit_B)].square().sum(dim=(1, 2, 3)).mean()


def gradient_penalty_finite_difference(base_B: Tensor, probed_B: Tensor, sigma: float) -> Tensor:
    """((D(x + sigma e) - D(x)) / sigma)^2 with e ~ N(0, 1): its mean is ||grad_x D||^2 up to sigma^2 (GAT, 2025; AFM, 2025).

    No double backward, so it compiles, runs in bf16 and under DistributedDataParallel.

    Args:
        base_B: D(x).
        probed_B: D(x + sigma e).
    """
    return ((probed_B - base_B) / sigma).square().mean()


def matching_aware_penalty(logit_B: Tensor, images_BCHW: Tensor, text_BP: Tensor) -> Tensor:
    """MA-GP: (||grad_x D||^2 + ||grad_t D||^2)^(6/2) on matching real pairs (DF-GAN, equation 2, with p = 6)."""
    grad_x, grad_t = torch.autograd.grad(logit_B.sum(), (images_BCHW, text_BP), create_graph=True)
    return torch.cat([grad_x.flatten(1), grad_t.flatten(1)], dim=1).square().sum(dim=1).pow(3).mean()
