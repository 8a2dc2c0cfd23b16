"""Noises of images: one a seed, and the way between two."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from t2i import seeding


def noise(seeds: Sequence[int], z_dim: int) -> Tensor:
    """z_BZ, row i a function of seeds[i] alone."""
    rows = [seeding.normal(seed, "sample/z", [0], z_dim)[0] for seed in seeds]
    return torch.from_numpy(np.stack(rows))


def slerp(a_Z: Tensor, b_Z: Tensor, weights: Sequence[float]) -> Tensor:
    """[len(weights), Z] on the great circle between two noises: the mean of two normals would be too short for one.

    Weight 0 gives `a_Z` and 1 gives `b_Z`, bit for bit.
    """
    angle = torch.arccos((a_Z @ b_Z / (a_Z.norm() * b_Z.norm())).clamp(-1, 1)).double()
    t = torch.tensor(weights, dtype=torch.float64)[:, None]
    if torch.sin(angle) < 1e-6:  # the same direction, or opposite ones, between which no way is the shortest
        share_a, share_b = 1 - t, t
    else:
        share_a, share_b = torch.sin((1 - t) * angle) / torch.sin(angle), torch.sin(t * angle) / torch.sin(angle)
    return (share_a * a_Z + share_b * b_Z).float()
