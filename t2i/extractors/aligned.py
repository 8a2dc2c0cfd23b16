"""Dual encoders as extractors: the one that ships with the package, or a run of `t2i train align`.

Scores by the embedded encoder are named `fid-shapes`, `kid-shapes` and `clip-aligned`. It was trained on rendered shapes, so
its scores say little about other images. Scores by other encoders have their digest in the name.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2i.align.frozen import AnyDualEncoder, load_dual_encoder
from t2i.extractors import Resize
from t2i.extractors.batches import check_images, exact_float32, in_fixed_batches
from t2i.images import ImageArray
from t2i.metrics import Features
from t2i.names import counted, verb
from t2i.weights import scorer_dir

BATCH = 64


def open_embedded(path: str = "", resize: Resize = "clean", device: str = "cpu") -> "AlignedExtractor":
    """Opens the dual encoder that ships with the package, for `EXTRACTORS`."""
    return open_aligned(str(scorer_dir()), resize, device)


def open_aligned(path: str, resize: Resize = "clean", device: str = "cpu") -> "AlignedExtractor":
    """Opens `align:RUN` for `EXTRACTORS`: a run of `t2i train align` or a saved dual encoder, with its own resizing."""
    is_embedded = os.path.realpath(path) == os.path.realpath(scorer_dir())
    return AlignedExtractor(load_dual_encoder(Path(path)), ("shapes", "aligned") if is_embedded else None)


class AlignedExtractor:
    """A frozen dual encoder as an `ImageTextExtractor`. Features are computed on the CPU, so that all machines agree.

    Args:
        names: `name` and `clip_name`; None: `align-DIGEST` for both.
    """

    classes: NDArray[np.float32] | None = None

    def __init__(self, dual: AnyDualEncoder, names: tuple[str, str] | None = None) -> None:
        self._dual = dual
        self._digest = dual.digest()
        self.name, self.clip_name = names or 2 * (f"align-{self._digest[:8]}",)
        self.dim, self.scale, self.resize = dual.pooled_dim, dual.scale, dual.resizing
        self.side: int = dual.config.data.resolution

    def digest(self) -> str:
        return self._digest

    def built_on(self) -> list[str]:
        """Digests of other dual encoders that it is made of."""
        return self._dual.built_on()

    def features(self, images_BHWC: ImageArray) -> Features:
        """Maps uint8 [B, H, W, 3] of any size to unit-length float32 [B, D]."""
        return in_fixed_batches(self._run, check_images(images_BHWC), BATCH, self.dim)

    def text_features(self, captions: Sequence[str]) -> Features:
        """Maps B captions to unit-length float32 [B, D]. A warning has the number of captions that were cut."""
        with exact_float32("cpu"):
            *_, pooled, cut = self._dual.states(captions)
        if cut:
            limit = self._dual.max_tokens
            warnings.warn(
                f"{cut:,} of {counted(len(captions), 'caption')} {verb(cut)} over the {limit} tokens of {self.clip_name} "
                f"and {verb(cut, 'was', 'were')} cut",
                stacklevel=2,
            )
        return pooled.numpy()

    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        return self._dual.embed_images(images_BCHW)

    def embed_text(self, captions: Sequence[str]) -> Tensor:
        return self._dual.text(captions)

    def to(self, device: torch.device) -> Self:
        self._dual.to(device)
        return self

    def _run(self, images_BHWC: ImageArray) -> Features:
        with exact_float32("cpu"):
            return self._dual.images(images_BHWC).numpy()
