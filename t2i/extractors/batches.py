"""Fixed batches, exact float32 and named resizes for all extractors.

The last bits of features depend on the batch size. Networks therefore see batches of one fixed size, the last one padded, so
that an image always has bit-equal features.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from t2i.errors import InputError
from t2i.extractors import Resize
from t2i.images import ImageArray
from t2i.metrics import Features


def batch_size(device: str) -> int:
    """Returns the fixed batch size for a device, large enough to use it well."""
    return 8 if torch.device(device).type == "cpu" else 64


def check_resize(resize: str) -> Resize:
    """Returns `resize`; raises InputError unless it is one of the named resizes."""
    if resize not in get_args(Resize):
        raise InputError(f"resize {resize!r} is unknown: choose {', '.join(get_args(Resize))}")
    return cast(Resize, resize)


def check_images(images_BHWC: ImageArray) -> ImageArray:
    """Returns the images; raises ValueError unless they are uint8 [B, H, W, 3]. Generators quantise their float images."""
    if images_BHWC.dtype != np.uint8 or images_BHWC.ndim != 4 or images_BHWC.shape[3] != 3:
        raise ValueError(f"images must be uint8 [B, H, W, 3], got {images_BHWC.dtype} {list(images_BHWC.shape)}")
    return images_BHWC


def in_fixed_batches(run: Callable[[Any], Features], rows: np.ndarray, size: int, dim: int) -> Features:
    """Runs batches of `size` rows, the last one padded with its last row; returns [len(rows), dim]."""
    out = np.zeros((len(rows), dim), dtype=np.float32)
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        filler = np.repeat(batch[-1:], size - len(batch), axis=0)
        out[start : start + size] = run(np.concatenate([batch, filler]))[: len(batch)]
    return out


@contextmanager
def exact_float32(device: str) -> Iterator[None]:
    """Turns off gradients, autocast and TF32, whose 10 bits of mantissa are too few for scores; restores them at the end."""
    convolution = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    backends: list[Any] = [torch.backends.cuda.matmul, convolution]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.inference_mode(), torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def resize_images(images_BHWC: ImageArray, size: int, how: Resize) -> Tensor:
    """Resizes uint8 [B, H, W, 3] to float32 [B, 3, size, size] in [0, 255], without quantising again."""
    if how == "clean":
        return torch.from_numpy(np.stack([_clean(image, size) for image in images_BHWC]))
    pixels_BCHW = torch.from_numpy(np.ascontiguousarray(images_BHWC)).permute(0, 3, 1, 2).float()
    if how == "torch":
        return F.interpolate(pixels_BCHW, size=(size, size), mode="bilinear", align_corners=False)
    return _legacy(_legacy(pixels_BCHW, size, 3), size, 2)


def _clean(image_HWC: ImageArray, size: int) -> np.ndarray:
    # Each channel in Pillow's float mode, since bicubic overshoots, and 8-bit mode would round and clip in between.
    channels = [Image.fromarray(image_HWC[:, :, c].astype(np.float32)) for c in range(3)]
    return np.stack([np.asarray(c.resize((size, size), Image.Resampling.BICUBIC)) for c in channels]).clip(0, 255)


def _legacy(x: Tensor, size: int, axis: int) -> Tensor:
    """Applies TensorFlow 1's bilinear filter along one axis in float32; pixel i samples at i * scale, not at pixel centres."""
    length = x.shape[axis]
    position = torch.arange(size, dtype=torch.float32) * torch.tensor(length / size, dtype=torch.float32)
    low = position.long()
    fraction = (position - low).view([-1 if a == axis else 1 for a in range(x.ndim)])
    left, right = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp_max(length - 1))
    return left + (right - left) * fraction
