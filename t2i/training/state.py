"""What a run's checkpoints hold: the registered parts and their tensors, and whether a checkpoint fits a run."""

import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from t2i import checkpoint
from t2i.config.load import CHANGEABLE_ON_RESUME, differences
from t2i.config.training import TrainConfig
from t2i.config.upgrade import trained_otherwise
from t2i.errors import InputError


@runtime_checkable
class Stateful(Protocol):
    """What `Run.register` takes beside modules and optimizers."""

    def state_tensors(self) -> dict[str, Tensor]: ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...


Part = nn.Module | Optimizer | Stateful


class Parts:
    """Named modules, optimizers and others whose tensors are saved and put back.

    Args:
        plain: takes the wrappers of DDP and torch.compile off a module, which prefix the names of tensors.
    """

    def __init__(self, plain: Callable[[nn.Module], nn.Module]):
        self._plain = plain
        self._parts: dict[str, Part] = {}

    @property
    def names(self) -> Collection[str]:
        return self._parts.keys()

    def add(self, name: str, part: Part) -> None:
        if name in self._parts:
            raise ValueError(f"part {name!r} is registered twice")
        if not isinstance(part, nn.Module | Optimizer | Stateful):
            raise TypeError(f"part {name!r} is a {type(part).__name__}: no module, no optimizer and not Stateful")
        self._parts[name] = part

    def state(self) -> dict[str, dict[str, Tensor]]:
        return {name: self._state_of(part) for name, part in self._parts.items()}

    def _state_of(self, part: Part) -> dict[str, Tensor]:
        if isinstance(part, nn.Module):
            return self._plain(part).state_dict()
        return checkpoint.optimizer_state(part) if isinstance(part, Optimizer) else part.state_tensors()

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, tensors in state.items():
            part = self._parts[name]
            if isinstance(part, nn.Module):
                checkpoint.load_module(self._plain(part), tensors, name)
            elif isinstance(part, Optimizer):
                checkpoint.load_optimizer_state(part, tensors)
            else:
                part.load_tensors(tensors)


def refuse_not_finite(state: Mapping[str, Mapping[str, Tensor]], step: int, folder: Path) -> None:
    """Raises InputError naming a tensor that must not be saved in `folder`."""
    for name, tensors in state.items():
        for key, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise InputError(
                    f"step {step}: {key} of {name} is not finite, so it is not saved; lower the learning "
                    f"rate, the last checkpoint in {folder} is intact"
                )


def refuse_another(
    path: Path, manifest: Mapping[str, Any], held: Collection[str], parts: Parts, config: TrainConfig, family: str
) -> None:
    """Raises InputError when the checkpoint at `path`, of the parts `held`, is of another family, model or config."""
    if manifest.get("family") != family:
        raise InputError(f"checkpoint {path} is of {manifest.get('family')}, not of {family}; name another directory")
    if odd := ", ".join(sorted(set(held) ^ set(parts.names))):
        raise InputError(f"checkpoint {path} is of another model: {odd} on one side only; name another directory")
    if fixed := trained_otherwise(family, manifest["config"]):
        what = ", ".join(f"{key} {then}, which is always {now} now" for key, (then, now) in list(fixed.items())[:3])
        raise InputError(
            f"checkpoint {path} was trained with {what}; resume it with t2i 0.1, or sample from it as it is"
        )
    try:
        before = type(config).model_validate(manifest["config"])
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, detail["loc"])) for detail in error.errors())
        raise InputError(
            f"checkpoint {path} has a config that this version does not read: {keys}; use the t2i that wrote it"
        ) from error
    changed = [d for d in differences(before, config) if d[0] not in CHANGEABLE_ON_RESUME]
    if changed:
        what = ", ".join(f"{key} {old} (now {new})" for key, old, new in changed[:3])
        run = path.parents[1]
        raise InputError(f"{run} was started with {what}; resume with that config or name another run directory")


def is_sound(manifest: Mapping[str, Any]) -> bool:
    """Whether the step that a checkpoint was saved after had finite losses and gradients."""
    return manifest.get("sound", True)


def warn_of_rounding(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warns when a run goes on with another arithmetic than it had, as manifests keep it."""
    changed = [f"{key} {now[key]} (was {before[key]})" for key in before if key in now and before[key] != now[key]]
    if changed:
        warnings.warn(
            f"resumed with {', '.join(changed)}: sums round otherwise, so the weights will not be bit for bit those of "
            "a run that was never stopped",
            stacklevel=3,
        )
