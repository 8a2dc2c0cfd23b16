"""DINOv2 as an extractor (Oquab et al., 2023), for `fd-dinov2` (Stein et al., 2023): the normalised class token.

Images are resized to 224x224 without cropping and normalised like ImageNet. The folder's own preprocessor, which crops, is not
used.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from t2i.extractors import Resize
from t2i.extractors.batches import (
    batch_size,
    check_images,
    check_resize,
    exact_float32,
    in_fixed_batches,
    resize_images,
)
from t2i.images import ImageArray
from t2i.metrics import Features
from t2i.pretrained import ModelFolder, load_model, open_folder

IMAGE_SIZE = 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIZES = {384: "s", 768: "b", 1024: "l", 1536: "g"}


def open_dinov2(path: str, resize: Resize = "clean", device: str = "cpu") -> "DINOv2Extractor":
    """Opens `dinov2:FOLDER` or `dinov2:facebook/dinov2-large` for `EXTRACTORS`."""
    folder = open_folder(path, f"DINOv2 folder {path}", ["dinov2"], lambda found: "not DINOv2; name a DINOv2 model")
    return DINOv2Extractor(folder, resize, device)


class DINOv2Extractor:
    """The class token after the last normalisation; ViT-L/14 has 1024 features."""

    clip_name: str | None = None
    classes: NDArray[np.float32] | None = None

    def __init__(self, folder: ModelFolder, resize: Resize = "clean", device: str = "cpu") -> None:
        """Raises InputError if weights are missing, or the resize is unknown."""
        self._how: Resize = check_resize(resize)
        self.resize = f"{resize} to {IMAGE_SIZE}x{IMAGE_SIZE}"
        self._device = device
        self._model: Any = load_model(folder, "Dinov2Model")[0].to(device)
        config = self._model.config
        self.dim: int = config.hidden_size
        self._digest = folder.digest()
        self.name = f"dinov2-vit-{_SIZES.get(self.dim, self.dim)}-{config.patch_size}-{self._digest[:8]}"

    def digest(self) -> str:
        return self._digest

    def features(self, images_BHWC: ImageArray) -> Features:
        """Maps uint8 [B, H, W, 3] of any size to float32 [B, D]."""
        return in_fixed_batches(self._run, check_images(images_BHWC), batch_size(self._device), self.dim)

    def _run(self, images_BHWC: ImageArray) -> Features:
        pixels_BCHW = resize_images(images_BHWC, IMAGE_SIZE, self._how) / 255
        mean, deviation = (torch.tensor(x)[:, None, None] for x in (MEAN, DEVIATION))
        with exact_float32(self._device):
            output = self._model(pixel_values=((pixels_BCHW - mean) / deviation).to(self._device))
            return output.last_hidden_state[:, 0].cpu().numpy()
