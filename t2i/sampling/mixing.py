"""Mixes the features of two captions, for images between them.

Axes: B captions, T text tokens, D token width, P pooled text.
"""

from collections.abc import Sequence

import torch

from t2i.text import TextFeatures


def mix(text: TextFeatures, weights: Sequence[float]) -> TextFeatures:
    """Features on the straight line between two captions, one row a weight: 0 is the first, 1 the second.

    Pooled vectors and token states are averaged; where only one caption has a token, with zeros for the other. The
    masks are joined: in between, every token of either caption is read.
    """
    w = torch.tensor(weights, dtype=torch.float32)
    real = text.tokens_BTD * text.mask_BT[:, :, None]
    tokens = torch.lerp(real[:1], real[1:2], w[:, None, None])
    pooled = torch.lerp(text.pooled_BP[:1], text.pooled_BP[1:2], w[:, None])
    first, second = text.mask_BT[:1] & (w < 1)[:, None], text.mask_BT[1:2] & (w > 0)[:, None]
    return TextFeatures(tokens, first | second, pooled)


def frame_weights(frames: int) -> list[float]:
    """[frames] evenly from 0 to 1."""
    return [frame / (frames - 1) for frame in range(frames)]
