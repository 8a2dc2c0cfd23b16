"""Bytes that training a prior takes on one process, by what the code keeps: before there is a machine that could hold it.

Counted of networks on the meta device, which have shapes and no values. tests/prior/test_memory.py compares with peaks of
real training steps.
"""

from typing import NamedTuple

import torch

from t2i.prior.config import Config
from t2i.prior.transformer import Grid, Prior

FULL = 4  # bytes of a float32


class Memory(NamedTuple):
    """Bytes on one process.

    Attributes:
        accumulated: True where gradients of one micro-batch wait while the next is computed.
    """

    parameters: int  # their number, over all processes
    weights: int
    gradients: int
    moments: int  # of AdamW
    averages: int  # the moving average, and the best weights so far
    gathered: int  # copies that processes exchange, and those in another precision
    activations: int  # what the backward pass needs of the forward pass

    accumulated: bool

    @property
    def total(self) -> int:
        """Bytes at the largest moment of a step: gradients come as activations go, unless some wait from before."""
        passing = self.gradients + self.activations if self.accumulated else max(self.gradients, self.activations)
        return self.weights + self.moments + self.averages + self.gathered + passing


class TextSizes(NamedTuple):
    """Sizes of what a text encoder gives."""

    token_dim: int
    pooled_dim: int
    max_tokens: int


def memory(config: Config, grid: Grid, text: TextSizes, processes: int, bf16: bool) -> Memory:
    """Returns the memory of a process of a run of so many.

    Args:
        bf16: products are computed in bfloat16, as on a GPU; else all is float32.
    """
    with torch.device("meta"):
        model = Prior(config, grid, *text)
    count = sum(parameter.numel() for parameter in model.parameters())
    block = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    low = 2 if bf16 else FULL
    gathered = low * count if bf16 else 0  # autocast keeps the weights that it has converted until the backward pass
    own = count
    if processes > 1 and config.sharding == "full":
        own = -(-count // processes)
        # whole weights of this block and of the next, gradients of this and of the last; what is in no block stays whole
        gathered = 2 * (low + FULL) * block + (low + 2 * FULL) * (count - block * len(model.blocks))
    elif processes > 1:
        gathered += FULL * count  # buckets in which gradients are exchanged
    averages = 2 if config.best_metric is not None else 1
    kept = activations(config, grid, text, bf16)
    accumulated = config.gradient_accumulation_steps > 1
    return Memory(count, FULL * own, FULL * own, 2 * FULL * own, averages * FULL * own, gathered, kept, accumulated)


def activations(config: Config, grid: Grid, text: TextSizes, bf16: bool) -> int:
    """Returns the bytes that a micro-batch leaves for its backward pass, at its largest moment."""
    width, mlp, slots = config.model.width, config.model.mlp_width, grid.slots
    low = 2 if bf16 else FULL
    prefix = text.max_tokens + 1
    rows = prefix + (2 if config.order == "random" else 1) * slots
    # of a row in a block, before attention: the stream, its norm, the product's input, q, k, v, q and k normalised and turned
    before = width * (2 * FULL + low + 3 * low + 2 * (FULL + low) + (2 * FULL if bf16 else 0))
    # after it: what was attended to, the stream, its norm, the product's input, gate, up and their product; dropped channels
    after = width * (low + 2 * FULL + low) + 3 * low * mlp + (2 * width if config.model.dropout else 0)
    block, last = (
        rows * (before + after),
        slots * after + rows * before,
    )  # the last ends with the slots that are read out
    # of a slot: likelihoods of all codes, their gradient twice, and logits in low precision
    head = slots * grid.codes * (3 * FULL + 2 * low if bf16 else 4 * FULL)
    backward = rows * (2 * FULL * width + 3 * low * mlp)  # gradients inside a block
    if config.activation_checkpointing:
        kept = config.model.depth * rows * FULL * width + max(last + head, block + backward)
    else:
        kept = (config.model.depth - 1) * block + last + head
    words = text.max_tokens * (2 * FULL * text.token_dim + 4 * low * width)
    return config.train_batch_size * (kept + words)
