"""Computes the orders and groups in which slots are trained and decoded.

A slot is one code of an image: slot = cell * Q + depth, with cells row by row. The slots of a group are sampled together.

Axes: B batch, S slots, N tokens of a sequence.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Schedule = Literal["arccos", "linear"]


class Order(NamedTuple):
    """A decoding order of slots, divided into groups."""

    permutation_BS: Tensor  # int64: the r-th slot
    sizes: tuple[int, ...]  # number of slots of each group, the same for the whole batch; they sum to S


def group_sizes(steps: int, slots: int, schedule: Schedule) -> tuple[int, ...]:
    """Returns the sizes of min(steps, slots) groups, which are not empty and sum to `slots`.

    `linear` makes them equal. With `arccos`, a share 2/pi arcsin(t) of the slots is known after a share t of the steps, so the
    first groups, when little is known, are small and the last ones large (the reverse of MaskGIT, Chang et al., CVPR 2022).
    """
    steps = min(steps, slots)
    ends, last = [], 0
    for i in range(1, steps + 1):
        t = i / steps
        share = t if schedule == "linear" else 1 - 2 / math.pi * math.acos(t)
        # at least one slot per group, including the remaining groups
        last = min(max(round(share * slots), last + 1), slots - (steps - i))
        ends.append(last)
    return tuple(end - start for start, end in zip([0, *ends[:-1]], ends, strict=True))


def training_order(uniforms_BS: Tensor, uniforms_2: Sequence[float]) -> Order:
    """Returns a random order for each image, divided into the same groups for the whole batch.

    The number of groups is log-uniform from 1 to S, so that a model learns to decode both token by token and in a single step.

    Args:
        uniforms_BS: uniform numbers in [0, 1), one row per image, derived from sample ids.
        uniforms_2: uniform numbers in [0, 1), one pair per step, the same on every process.
    """
    slots = uniforms_BS.shape[1]
    steps = max(1, min(slots, round(slots ** uniforms_2[0])))
    schedule: Schedule = "arccos" if uniforms_2[1] < 0.5 else "linear"
    return Order(uniforms_BS.argsort(dim=1, stable=True), group_sizes(steps, slots, schedule))


def two_stream_mask(prefix: int, sizes: Sequence[int], device: torch.device) -> Tensor:
    """Returns mask_NN of [prefix | content | queries], True if the row attends to the column.

    Content of group g attends to the prefix and to content of groups <= g; queries of group g attend to the prefix, to content
    of groups < g, and to each other. The last group has no content, as nothing would attend to it.
    """
    numbers, total = torch.arange(len(sizes), device=device), sum(sizes)  # the sum, so that no device is waited for
    group = torch.repeat_interleave(numbers, torch.tensor(sizes, device=device), output_size=total)
    content = group[: len(group) - sizes[-1]]
    start = torch.full((prefix,), -1, device=device)
    of = torch.cat([start, content, group])
    is_query = torch.arange(len(of), device=device) >= prefix + len(content)
    earlier = of[None, :] < of[:, None]
    same = of[None, :] == of[:, None]
    return torch.where(is_query[None, :], is_query[:, None] & same, earlier | (same & ~is_query[:, None]))


def raster_mask(prefix: int, content: int, device: torch.device) -> Tensor:
    """Returns mask_NN of [prefix | content]: full inside the prefix, causal after it."""
    mask = torch.ones(prefix + content, prefix + content, dtype=torch.bool, device=device).tril_()
    mask[:prefix, :prefix] = True
    return mask
