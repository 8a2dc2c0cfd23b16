"""Gradients of DP-SGD (Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1)."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

_EPS = 1e-6  # keeps rounding from making a gradient longer than the limit


def put_private_gradients(
    parameters: Sequence[nn.Parameter],
    losses: Iterable[Tensor],
    max_norm: float,
    noise_multiplier: float,
    expected: float,
    generator: torch.Generator,
) -> None:
    """Writes to `grad` the sum of clipped per-image gradients plus noise, divided by the expected number of images.

    Gradients that are not finite are skipped, as clipping cannot bound them. With a large `max_norm` and without noise, the
    result is the gradient of the mean loss.

    Args:
        losses: one scalar per image, computed on demand, so that only one graph is in memory.
        max_norm: norm that the gradient of each image is clipped to.
        noise_multiplier: standard deviation of the noise, in units of `max_norm`.
        expected: expected number of images in a step; their number in this step is private.
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
