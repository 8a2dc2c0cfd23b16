"""Pooling rules, which map token states [B, T, D] with mask [B, T] to one vector per caption [B, D]."""

from collections.abc import Callable

import torch
from torch import Tensor


def _mean(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    weights_BT1 = mask_BT[:, :, None].to(states_BTD.dtype)
    return (states_BTD * weights_BT1).sum(dim=1) / weights_BT1.sum(dim=1)


def _mean_sqrt_len(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    return _mean(states_BTD, mask_BT) * mask_BT.sum(dim=1, keepdim=True).sqrt()


def _weighted_mean(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Weights the k-th token of a caption by k (Muennighoff, 2022)."""
    weights_BT1 = (mask_BT * torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device))[:, :, None].to(
        states_BTD.dtype
    )
    return (states_BTD * weights_BT1).sum(dim=1) / weights_BT1.sum(dim=1)


def _max(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    return states_BTD.masked_fill(~mask_BT[:, :, None], float("-inf")).amax(dim=1)


def _last(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    last_B = mask_BT.sum(dim=1) - 1
    return states_BTD[torch.arange(len(last_B), device=last_B.device), last_B]


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": lambda states_BTD, mask_BT: states_BTD[:, 0],
    "mean": _mean,
    "mean_sqrt_len": _mean_sqrt_len,
    "weighted_mean": _weighted_mean,
    "max": _max,
    "last": _last,
}
