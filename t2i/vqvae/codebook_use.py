"""Measures codebook usage and detects a collapsed codebook."""

import math
import warnings

import torch
import torch.distributed as dist
from torch import Tensor

from t2i.errors import InputError

LOW_USE = 0.5  # usage below this causes a warning
COLLAPSED_USE, COLLAPSED_PERPLEXITY = 0.02, 1.5  # a codebook below either has collapsed
PATIENCE = 3  # number of collapsed measurements in a row that end a run
ADVICE = (
    "set quantizer.kind=scalar, which cannot collapse, lower learning_rate or quantizer.codebook_size, or raise "
    "quantizer.warmup_steps"
)


class CodeUse:
    """Counts the codes used since the last reading, over all processes."""

    def __init__(self, codebooks: int, codebook_size: int, device: torch.device) -> None:
        self._counts_QK = torch.zeros(codebooks, codebook_size, dtype=torch.int64, device=device)
        self._collapsed = 0
        self._warned = False

    def add(self, indices_BLQ: Tensor) -> None:
        size = self._counts_QK.shape[1]
        for counts, indices in zip(self._counts_QK, indices_BLQ.unbind(dim=-1), strict=True):
            counts += torch.bincount(indices.flatten(), minlength=size)

    def read(self) -> tuple[float, float]:
        """Returns (share of codes used, perplexity), means over codebooks, NaN if nothing was counted; resets the counts.

        Call it on every process; all get the same result.
        """
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._counts_QK)
        used = (self._counts_QK > 0).double().mean().item()
        p = self._counts_QK.double() / self._counts_QK.sum(dim=1, keepdim=True)
        perplexity = torch.special.entr(p).sum(dim=1).exp().mean().item()
        self._counts_QK.zero_()
        return used, perplexity

    def judge(self, used: float, perplexity: float, step: int, warn: bool = True) -> None:
        """Warns once about low usage, if `warn` is True.

        Raises:
            InputError: the codebook has collapsed in `PATIENCE` measurements in a row.
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
                f"only {used:.0%} of the codes are in use at step {step} (perplexity {perplexity:.1f}); if this does not "
                f"improve, {ADVICE}",
                stacklevel=2,
            )
