"""Similarity of a reconstruction to its image, one value an image: PSNR, SSIM (Wang et al., 2004), LPIPS."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from t2i.images import ImageArray, to_model

EXACT = 100.0  # decibels of an image that is equal: as a number, so that means stay finite


def psnr(made_NHWC: ImageArray, true_NHWC: ImageArray) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio [N] in decibels, of uint8 images, at most 100."""
    errors = np.square(made_NHWC.astype(np.float64) - true_NHWC).mean(axis=(1, 2, 3))
    return np.minimum(10 * np.log10(255.0**2 / np.maximum(errors, 1e-10)), EXACT)


def ssim(made_NHWC: ImageArray, true_NHWC: ImageArray) -> NDArray[np.float64]:
    """Structural similarity [N] in [-1, 1], of uint8 images, by a Gaussian window of 11x11 and mean over channels."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    made, true = (torch.from_numpy(x).permute(0, 3, 1, 2).float() for x in (made_NHWC, true_NHWC))
    found = structural_similarity_index_measure(made, true, data_range=255.0, reduction="none")
    assert isinstance(found, Tensor)
    return found.double().numpy()


@torch.no_grad()
def perceptual(network: nn.Module, made_NHWC: ImageArray, true_NHWC: ImageArray) -> NDArray[np.float64]:
    """LPIPS [N] of uint8 images by a network that compares batches in [-1, 1]; 0 for equal ones."""
    return network(to_model(made_NHWC), to_model(true_NHWC)).flatten().double().numpy()
