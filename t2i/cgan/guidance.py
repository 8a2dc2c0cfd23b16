"""Frozen image-text similarity as a training signal: the dual encoder of `t2i train align`, or a CLIP from a directory.

Gradients flow to the images and never to the encoder. An encoder used here has been optimised against, so its digest is
kept with the run and it is refused as that run's scorer.

Axes: B batch, C channels, H W image, E shared embedding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.align.frozen import FrozenDualEncoder, load_dual_encoder
from t2i.cgan.config import AlignedGuidance, CLIPGuidance, GuidanceConfig
from t2i.errors import InputError
from t2i.text import TextEncoder
from t2i.text.aligned import AlignedEncoder


class Guide(Protocol):
    """A frozen pair of towers."""

    scale: float  # 1 / temperature

    def to(self, device: torch.device) -> "Guide": ...

    def images(self, images_BCHW: Tensor) -> Tensor:
        """Unit-length embeddings of images in [-1, 1], differentiable."""
        ...

    def text(self, captions: Sequence[str]) -> Tensor:
        """Unit-length embeddings of captions, on the CPU."""
        ...

    def digest(self) -> str: ...


class DualGuide:
    """A dual encoder of `t2i train align`."""

    def __init__(self, dual: FrozenDualEncoder) -> None:
        self._dual = dual
        self.scale = float(self._dual.model.scale())
        self._image: nn.Module = self._dual.model.image

    def to(self, device: torch.device) -> "DualGuide":
        self._image = self._image.to(device)
        return self

    def images(self, images_BCHW: Tensor) -> Tensor:
        return F.normalize(self._image(images_BCHW).float(), dim=-1)

    def text(self, captions: Sequence[str]) -> Tensor:
        return self._dual.text(captions)

    def digest(self) -> str:
        return self._dual.digest()


class CLIPGuide:
    """A CLIP folder; images are resized and normalised by its own numbers, differentiably."""

    def __init__(self, path: Path) -> None:
        from t2i.extractors.clip import CLIPExtractor

        self._extractor = CLIPExtractor(path)
        self._model = self._extractor.model
        self.scale = float(self._model.logit_scale.exp())
        self._size = int(self._model.config.vision_config.image_size)
        processor = self._extractor.image_processor
        self._mean = torch.tensor(processor.image_mean).view(1, 3, 1, 1)
        self._std = torch.tensor(processor.image_std).view(1, 3, 1, 1)

    def to(self, device: torch.device) -> "CLIPGuide":
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        self._model.to(device)
        return self

    def images(self, images_BCHW: Tensor) -> Tensor:
        x = F.interpolate((images_BCHW + 1) / 2, (self._size, self._size), mode="bicubic", antialias=True)
        pooled = self._model.vision_model(pixel_values=(x - self._mean) / self._std).pooler_output
        return F.normalize(self._model.visual_projection(pooled).float(), dim=-1)

    def text(self, captions: Sequence[str]) -> Tensor:
        return F.normalize(torch.from_numpy(self._extractor.text_features(captions)), dim=-1)

    def digest(self) -> str:
        return self._extractor.digest()


def make_guide(config: GuidanceConfig, encoder: TextEncoder) -> Guide | None:
    """Returns the guide that a config asks for; None for `none`, or a weight of 0.

    Raises:
        InputError: the encoder has no image tower, or the path holds none.
    """
    if config.weight == 0:
        return None
    if isinstance(config, CLIPGuidance):
        return CLIPGuide(Path(config.path))
    if isinstance(config, AlignedGuidance):
        return DualGuide(load_dual_encoder(Path(config.path)))
    if not isinstance(encoder, AlignedEncoder):
        raise InputError(
            f"guidance.encoder is text, but the text encoder {encoder.name} has no image tower; set guidance.encoder to aligned "
            "or clip and guidance.path, or to none"
        )
    return DualGuide(encoder.dual)
