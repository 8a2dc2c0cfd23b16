"""Averaged weights, learning rate schedules, frozen parameters, and a guard against steps that are not finite."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from t2i import checkpoint
from t2i.config.training import TrainConfig
from t2i.errors import InputError
from t2i.names import nearest

FINAL_RATE = 0.05  # the cosine ends at this share of the peak learning rate
MAX_GRADIENT = 1.0  # the norm that gradients are clipped to


class EMA:
    """Exponential moving average of a module's weights and buffers, ramped with the number of images seen (StyleGAN-T).

    Args:
        model: is copied; move it to its device first.
        halflife_images: number of images after which the old average has half its weight.
        ramp: the half-life is at most this share of the images seen so far.
    """

    def __init__(self, model: nn.Module, halflife_images: float, ramp: float = 0.05):
        self._halflife_images, self._ramp = halflife_images, ramp
        self._decay = 0.0
        self._averaged = AveragedModel(model, multi_avg_fn=self._mix, use_buffers=True)
        self._averaged.n_averaged.fill_(1)  # the copy is the first average
        self._averaged.eval().requires_grad_(False)

    @property
    def module(self) -> nn.Module:
        """The averaged copy, in eval mode, without gradients."""
        return self._averaged.module

    @torch.no_grad()
    def _mix(self, averages: Any, values: Any, _: Any) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1.0 - self._decay)  # pyright: ignore[reportPrivateImportUsage]
        else:
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)  # counters have no average

    def update(self, model: nn.Module, images_this_step: int, images_seen: int) -> None:
        """Updates the average from the trained module, wrapped or not; call it after each optimizer step."""
        halflife = min(self._halflife_images, self._ramp * images_seen)
        self._decay = 0.5 ** (images_this_step / max(halflife, 1e-8))
        self._averaged.update_parameters(model)

    def state_tensors(self) -> dict[str, Tensor]:
        """Returns the state dict of `module`."""
        return self.module.state_dict()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        checkpoint.load_module(self.module, tensors, "ema")


class NonFiniteGuard:
    """Counts steps that are skipped because a loss or a gradient is not finite; rolls the run back once, then ends it.

    Args:
        rollback: `Run.rollback`, called after `limit` skipped steps in a row; if it returns False, the run ends.
        limit: number of skipped steps in a row that are not tolerated.
    """

    def __init__(self, rollback: Callable[[], bool] | None = None, limit: int = 10):
        self.skipped = 0
        self._rollback, self._limit = rollback, limit
        self._in_a_row: list[int] = []  # their steps
        self._samples: list[int] = []

    def check(self, finite: bool, step: int, sample_ids: Sequence[int]) -> bool:
        """Counts a step and returns `finite`.

        Args:
            finite: what `Run.judge` returned; if False, the optimizer's step is skipped.
            sample_ids: samples of the step on this rank, for the error message.

        Raises:
            InputError: after `limit` skipped steps in a row, if rolling back is impossible or was tried before.
        """
        if finite:
            self._in_a_row, self._samples = [], []
            return True
        self.skipped += 1
        self._in_a_row.append(step)
        self._samples += map(int, sample_ids)
        if len(self._in_a_row) >= self._limit:
            if self._rollback is None or not self._rollback():
                raise InputError(self._report())
            self._in_a_row, self._samples = [], []
        return False

    def _report(self) -> str:
        ids = ", ".join(map(str, self._samples[:8])) + (", ..." if len(self._samples) > 8 else "")
        return (
            f"losses or gradients were not finite in {self._limit} steps in a row, {self._in_a_row[0]} to "
            f"{self._in_a_row[-1]} with samples {ids}; check these samples or lower the learning rate; the last "
            "checkpoint is intact"
        )


Schedule = Callable[[int, int], float]  # (step, steps of the run) -> learning rate


def cosine(config: TrainConfig, final_factor: float = FINAL_RATE) -> Schedule:
    """Returns the schedule of a config: a warm-up, then a cosine that falls to `final_factor` of the learning rate."""
    base, warmup = config.learning_rate, config.lr_warmup_steps
    return partial(learning_rate, base=base, warmup=warmup, final_factor=final_factor)


def learning_rate(step: int, total: int, base: float, warmup: int, final_factor: float = 0.0) -> float:
    """Returns the rate at `step`: linear warm-up over `warmup` steps, then a cosine from `base` to `base * final_factor`
    at step `total`."""
    if step < warmup:
        return base * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return base * (final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """Sets the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = value


def freeze(parts: Mapping[str, nn.Module], names: Sequence[str], renewed: set[str]) -> None:
    """Freezes the parameters whose path, `part.name`, begins with one of `names`.

    Args:
        renewed: paths of parameters that were not loaded from another model.

    Raises:
        InputError: a name matches nothing, a part would have nothing left to train, or a renewed parameter would be frozen.
    """
    paths = {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}
    for name in names:
        chosen = [path for path in paths if f"{path}.".startswith(f"{name}.")]
        if not chosen:
            known = list(dict.fromkeys(".".join(path.split(".")[:2]) for path in paths))
            raise InputError(f"freeze: no part {name!r}{nearest(name, known)}; there are: {', '.join(known)}")
        if fresh := [path for path in chosen if path in renewed]:
            raise InputError(
                f"freeze {name}: {fresh[0]} was not loaded from the source, so it would keep random values; freeze only parts "
                "that were loaded"
            )
        for path in chosen:
            paths[path].requires_grad_(False)
    for part, module in parts.items():
        if not any(p.requires_grad for p in module.parameters()):
            raise InputError(f"freeze leaves nothing of {part} to train; freeze fewer of its parts")


def trained(module: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters of a module that are not frozen."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def require_gradients(parameters: Sequence[nn.Parameter], needed: bool) -> None:
    """Switches the gradients of parameters on, or off while another network is trained through them."""
    for parameter in parameters:
        parameter.requires_grad_(needed)


def clip_gradients(module: nn.Module) -> Tensor:
    """Shortens the gradients of a module that are longer than `MAX_GRADIENT`; returns their Euclidean norm before."""
    norm = nn.utils.clip_grad_norm_(module.parameters(), MAX_GRADIENT)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def gradient_norm(module: nn.Module) -> Tensor:
    """Returns the Euclidean norm of all gradients of a module."""
    return nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
