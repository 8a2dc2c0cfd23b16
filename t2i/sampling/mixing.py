"""Mixes the features of two captions, for images between them.

Axes: B captions, T text tokens, D token width, P pooled text.
"""

from collections.abc import Sequence

import torch

from t2i.text import TextFeatures


def mix(text: TextFeatures, weights: Sequence[float]) -> TextFeatures:
    """Interpolates linearly between the features of two captions, one row for each weight: 0 is the first, 1 the second.

    Pooled vectors and token states are averaged; a token that only one caption has is averaged with zeros. Between the
    two captions the mask is the union of both masks.
    """
    w = torch.tensor(weights, dtype=torch.float32)
    real = text.tokens_BTD * text.mask_BT[:, :, None]
    tokens = torch.lerp(real[:1], real[1:2], w[:, None, None])
    pooled = torch.lerp(text.pooled_BP[:1], text.pooled_BP[1:2], w[:, None])
    first, second = text.mask_BT[:1] & (w < 1)[:, None], text.mask_BT[1:2] & (w > 0)[:, None]
    return TextFeatures(tokens, first | second, pooled)


def frame_weights(frames: int) -> list[float]:
    """Returns [frames] evenly spaced weights from 0 to 1."""
    return [frame / (frames - 1) for frame in range(frames)]
