"""Frozen networks that see images, behind one protocol. A new one is one file and one line in `EXTRACTORS`.

Axes: B images of one call, D features. Imports no torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from t2i.errors import InputError
from t2i.metrics import Features, _named

if TYPE_CHECKING:
    from t2i.images import ImageArray


# clean: Pillow's antialiased bicubic in float (clean-fid); legacy: TensorFlow 1's bilinear (the first FID,
# torch-fidelity); torch: PyTorch's bilinear without antialiasing (pytorch-fid). Scores agree within one of them and
# never across.
Resize = Literal["clean", "legacy", "torch"]


class Extractor(Protocol):
    """A frozen map from pictures to features. A row depends on its picture alone, never on the batch beside it."""

    name: str  # stands in the name of every score, e.g. `shapes` in `fid-shapes@1000`
    dim: int
    resize: str  # how pictures reach the network's size: a `Resize`, or words where the extractor has its own way

    def features(self, images_BHWC: "ImageArray") -> Features:
        """uint8 [B, H, W, 3] -> float32 [B, D]."""
        ...

    def digest(self) -> str:
        """sha256 of all that decides the features: the weights and, where it has them, preprocessing and tokenizer."""
        ...


class ImageTextExtractor(Extractor, Protocol):
    """An extractor that also reads captions into the same space: what CLIP score and retrieval need."""

    def text_features(self, captions: Sequence[str]) -> Features:
        """B captions -> float32 [B, D]."""
        ...


class Classifier(Extractor, Protocol):
    """An extractor with a linear classifier on its features: what the Inception Score needs."""

    classes: NDArray[np.float32] | None  # [classes, D], without bias; None: its weights file holds none


# kind -> "module:function"; each function is open(path: str, resize: Resize, device: str) -> Extractor
EXTRACTORS: dict[str, str] = {
    "inception": "t2i.extractors.inception:open_inception",
    "clip": "t2i.extractors.clip:open_clip",
    "dinov2": "t2i.extractors.dinov2:open_dinov2",
}


def open_extractor(address: str, resize: Resize = "clean", device: str = "cpu") -> Extractor:
    """Opens the extractor at `address`: `kind` or `kind:path`, such as `inception:weights.pth` or `clip:models/vit-b`.

    Raises:
        InputError: no such kind, no such file, or weights of another network.
    """
    kind, _, path = address.partition(":")
    if kind not in EXTRACTORS:
        raise InputError(
            f"extractor {address!r} is unknown: give kind or kind:path, kind one of {', '.join(EXTRACTORS)}"
        )
    return _named(EXTRACTORS[kind])(path, resize, device)
