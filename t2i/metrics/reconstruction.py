"""Similarity of each reconstruction to its image: PSNR, SSIM (Wang et al., 2004) and LPIPS."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from t2i.images import ImageArray, to_model

EXACT = 100.0  # decibels of an equal image, finite so that means are finite


def psnr(reconstructed_NHWC: ImageArray, true_NHWC: ImageArray) -> NDArray[np.float64]:
    """Computes the peak signal-to-noise ratio [N] of uint8 images in decibels, at most 100."""
    errors = np.square(reconstructed_NHWC.astype(np.float64) - true_NHWC).mean(axis=(1, 2, 3))
    return np.minimum(10 * np.log10(255.0**2 / np.maximum(errors, 1e-10)), EXACT)


def ssim(reconstructed_NHWC: ImageArray, true_NHWC: ImageArray) -> NDArray[np.float64]:
    """Computes the structural similarity [N] of uint8 images in [-1, 1], with an 11x11 Gaussian window, mean of channels."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    made, true = (torch.from_numpy(x).permute(0, 3, 1, 2).float() for x in (reconstructed_NHWC, true_NHWC))
    values = structural_similarity_index_measure(made, true, data_range=255.0, reduction="none")
    assert isinstance(values, Tensor)
    return values.double().numpy()


@torch.no_grad()
def perceptual(network: nn.Module, reconstructed_NHWC: ImageArray, true_NHWC: ImageArray) -> NDArray[np.float64]:
    """Computes the LPIPS [N] of uint8 images with a network that compares batches in [-1, 1]; 0 for equal images."""
    return network(to_model(reconstructed_NHWC), to_model(true_NHWC)).flatten().double().numpy()
