"""Orders and groups in which slots are trained and decoded. Pure functions of their arguments.

A slot is one code of an image: slot = cell * Q + depth, cells row by row. Slots of one group are drawn at once.

Axes: B batch, S slots, N tokens of a sequence.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Schedule = Literal["arccos", "linear"]


class Order(NamedTuple):
    """Groups of slots, one after the other."""

    permutation_BS: Tensor  # int64: the slot that comes r-th
    sizes: tuple[int, ...]  # slots of each group, the same for the whole batch; they add up to S


def group_sizes(steps: int, slots: int, schedule: Schedule) -> tuple[int, ...]:
    """Returns the sizes of min(steps, slots) groups that add up to `slots`, none empty.

    `linear` makes them equal; with `arccos` the share that is known after a share t of the steps is 2/pi arcsin(t), so few
    slots come first, when little is known, and many last (MaskGIT, Chang et al., CVPR 2022, turned round).
    """
    steps = min(steps, slots)
    ends, last = [], 0
    for i in range(1, steps + 1):
        t = i / steps
        share = t if schedule == "linear" else 1 - 2 / math.pi * math.acos(t)
        # at least one slot a group, and at least one left for each group to come
        last = min(max(round(share * slots), last + 1), slots - (steps - i))
        ends.append(last)
    return tuple(end - start for start, end in zip([0, *ends[:-1]], ends, strict=True))


def training_order(uniforms_BS: Tensor, uniforms_2: Sequence[float]) -> Order:
    """Returns a random order for each image and one cut into groups for the batch.

    The number of groups is log-uniform from 1 to S, so that a model learns one token a step and a whole image a step alike.

    Args:
        uniforms_BS: in [0, 1), one row an image (derive them from sample ids: then they do not depend on the batch).
        uniforms_2: in [0, 1), one pair a step (the same on every process).
    """
    slots = uniforms_BS.shape[1]
    steps = max(1, min(slots, round(slots ** uniforms_2[0])))
    schedule: Schedule = "arccos" if uniforms_2[1] < 0.5 else "linear"
    return Order(uniforms_BS.argsort(dim=1, stable=True), group_sizes(steps, slots, schedule))


def two_stream_mask(prefix: int, sizes: Sequence[int], device: torch.device) -> Tensor:
    """Returns mask_NN of [prefix | content | queries], True where row may see column; it depends on the group sizes alone.

    Content of group g sees the prefix and content of groups <= g; queries of group g see the prefix, content of groups < g
    and each other. The last group has no content, as nothing could see it.
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
