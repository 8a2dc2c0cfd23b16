"""The FID Inception as an extractor."""

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
from t2i.extractors.inception_network import DIM, IMAGE_SIZE, pack
from t2i.extractors.inception_weights import load_inception
from t2i.extractors.published import published_inception
from t2i.files import at_home
from t2i.images import ImageArray
from t2i.metrics import Features
from t2i.metrics.score import FID_INCEPTION_DIGEST


def open_inception(path: str, resize: Resize = "clean", device: str = "cpu") -> "InceptionExtractor":
    """Opens `inception:FILE` for `EXTRACTORS`; `inception:auto` is the published file, which is downloaded once."""
    return InceptionExtractor(published_inception() if path == "auto" else Path(path), resize, device)


class InceptionExtractor:
    """The 2048 features after the last pooling of the FID Inception."""

    dim = DIM
    clip_name: str | None = None

    def __init__(self, path: Path, resize: Resize = "clean", device: str = "cpu") -> None:
        self._how: Resize = check_resize(resize)
        self.resize: str = resize
        self._device = device
        self._network, self.classes, self._digest = load_inception(at_home(path), device)
        if torch.device(device).type == "cpu":
            self._network = pack(self._network, batch_size(device))
        self.name = "inception" if self._digest == FID_INCEPTION_DIGEST else f"inception-{self._digest[:8]}"

    def digest(self) -> str:
        return self._digest

    def features(self, images_BHWC: ImageArray) -> Features:
        """Maps uint8 [B, H, W, 3] of any size to float32 [B, 2048]."""
        return in_fixed_batches(self._run, check_images(images_BHWC), batch_size(self._device), self.dim)

    def _run(self, images_BHWC: ImageArray) -> Features:
        pixels_BCHW = resize_images(images_BHWC, IMAGE_SIZE, self._how)
        pixels_BCHW = pixels_BCHW.to(self._device, memory_format=torch.channels_last)
        # The TensorFlow graph subtracts 128; pytorch-fid (`torch`) maps [0, 255] to [-1, 1].
        centred = pixels_BCHW / 127.5 - 1 if self._how == "torch" else (pixels_BCHW - 128) / 128
        with exact_float32(self._device):
            return self._network(centred).cpu().numpy()
