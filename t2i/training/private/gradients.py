"""Gradients of DP-SGD (Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1)."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

_EPS = 1e-6  # keeps clipped gradients below the limit in spite of rounding


def put_private_gradients(
    parameters: Sequence[nn.Parameter],
    losses: Iterable[Tensor],
    max_norm: float,
    noise_multiplier: float,
    expected: float,
    generator: torch.Generator,
) -> None:
    """Sets `grad` to the sum of clipped gradients plus noise, divided by the expected number of images.

    A gradient that is not finite is left out. With a large max_norm and no noise, these are the gradients of the mean loss.

    Args:
        losses: the scalar loss of each image; an iterator, so that one graph at a time is in memory.
        max_norm: length to which the gradient of each image is clipped.
        noise_multiplier: standard deviation of the noise, in units of `max_norm`.
        expected: expected number of images in a step; the actual number is private.
        generator: generator of the noise, on the device of the parameters.
    """
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        norm = float(nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None]))
        if not math.isfinite(norm):
            continue
        for sum_, gradient in zip(total, gradients, strict=True):
            if gradient is not None:
                sum_.add_(gradient, alpha=min(1.0, max_norm / (norm + _EPS)))
    deviation = noise_multiplier * max_norm
    for parameter, sum_ in zip(parameters, total, strict=True):
        noise = torch.randn(sum_.shape, generator=generator, device=sum_.device, dtype=sum_.dtype)
        parameter.grad = sum_.add_(noise, alpha=deviation).div_(expected)
