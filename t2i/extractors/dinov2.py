"""DINOv2 as an extractor (Oquab et al., 2023), for `fd-dinov2` (Stein et al., 2023): the normalised class token.

Pictures are squashed to 224x224 by a named resize and normalised as ImageNet; the folder's own preprocessor, which
crops, is not asked.
"""

from pathlib import Path

import torch

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
from t2i.pretrained import digest_folder, load_model, local_folder

IMAGE_SIZE = 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIZES = {384: "s", 768: "b", 1024: "l", 1536: "g"}


def open_dinov2(path: str, resize: Resize = "clean", device: str = "cpu") -> "DINOv2Extractor":
    """For `EXTRACTORS`: `dinov2:folder` or `dinov2:facebook/dinov2-large`."""
    return DINOv2Extractor(local_folder(path, "DINOv2"), resize, device)


class DINOv2Extractor:
    """The class token after the last normalisation, 1024 features of ViT-L/14."""

    def __init__(self, path: Path, resize: Resize = "clean", device: str = "cpu") -> None:
        """Raises InputError: no such folder, another kind of model, or weights that do not fill the model."""
        from transformers import Dinov2Model

        self._how: Resize = check_resize(resize)
        self.resize = f"{resize} to {IMAGE_SIZE}x{IMAGE_SIZE}"
        self._device = device
        (self._model,) = load_model(path, "DINOv2", "dinov2", Dinov2Model.from_pretrained)
        self._model.requires_grad_(False).eval().to(device)
        config = self._model.config
        self.dim: int = config.hidden_size
        self._digest = digest_folder(path)
        self.name = f"dinov2-vit-{_SIZES.get(self.dim, self.dim)}-{config.patch_size}-{self._digest[:8]}"

    def digest(self) -> str:
        return self._digest

    def features(self, images_BHWC: ImageArray) -> Features:
        """uint8 [B, H, W, 3] of any size -> float32 [B, D]."""
        return in_fixed_batches(self._run, check_images(images_BHWC), batch_size(self._device), self.dim)

    def _run(self, images_BHWC: ImageArray) -> Features:
        pixels_BCHW = resize_images(images_BHWC, IMAGE_SIZE, self._how) / 255
        mean, deviation = (torch.tensor(x)[:, None, None] for x in (MEAN, DEVIATION))
        with exact_float32(self._device):
            output = self._model(pixel_values=((pixels_BCHW - mean) / deviation).to(self._device))
            return output.last_hidden_state[:, 0].cpu().numpy()
