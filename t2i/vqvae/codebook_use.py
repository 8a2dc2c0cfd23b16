"""Use of the codebook: the number that tells a working tokenizer from a collapsed one."""

import math
import warnings

import torch
import torch.distributed as dist
from torch import Tensor

from t2i.errors import InputError

LOW_USE = 0.5  # below: a warning
COLLAPSED_USE, COLLAPSED_PERPLEXITY = 0.02, 1.5  # below either: collapsed
PATIENCE = 3  # collapsed measurements in a row that end a run
ADVICE = (
    "set quantizer.kind=scalar, which cannot collapse, lower learning_rate or quantizer.codebook_size, or raise "
    "quantizer.warmup_steps"
)


class CodeUse:
    """Counts the codes drawn since the last reading, over all processes."""

    def __init__(self, codebooks: int, codebook_size: int, device: torch.device) -> None:
        self._counts_QK = torch.zeros(codebooks, codebook_size, dtype=torch.int64, device=device)
        self._collapsed = 0
        self._warned = False

    def add(self, indices_BLQ: Tensor) -> None:
        size = self._counts_QK.shape[1]
        for counts, indices in zip(self._counts_QK, indices_BLQ.unbind(dim=-1), strict=True):
            counts += torch.bincount(indices.flatten(), minlength=size)

    def read(self) -> tuple[float, float]:
        """(share of codes drawn, perplexity), means over codebooks; starts a new count. NaN where nothing was counted.

        Call it on every process: all hear the same.
        """
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._counts_QK)
        used = (self._counts_QK > 0).double().mean().item()
        p = self._counts_QK.double() / self._counts_QK.sum(dim=1, keepdim=True)
        perplexity = torch.special.entr(p).sum(dim=1).exp().mean().item()
        self._counts_QK.zero_()
        return used, perplexity

    def judge(self, used: float, perplexity: float, step: int, warn: bool = True) -> None:
        """Warns once of low use, where `warn` says so.

        Raises:
            InputError: the codebook has collapsed, in `PATIENCE` measurements in a row.
        """
        if math.isnan(perplexity):
            return
        collapsed = used < COLLAPSED_USE or perplexity < COLLAPSED_PERPLEXITY
        self._collapsed = self._collapsed + 1 if collapsed else 0
        if self._collapsed >= PATIENCE:
            raise InputError(
                f"the codebook has collapsed: at step {step} only {used:.1%} of its codes are in use (perplexity "
                f"{perplexity:.1f}), for {PATIENCE} validations in a row; {ADVICE}, in a new run directory"
            )
        if warn and used < LOW_USE and not self._warned:
            self._warned = True
            warnings.warn(
                f"only {used:.0%} of the codes are in use at step {step} (perplexity {perplexity:.1f}); if it stays "
                f"so, {ADVICE}",
                stacklevel=2,
            )
