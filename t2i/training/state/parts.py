"""Collects the registered parts of a run, whose tensors its checkpoints hold."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from t2i import checkpoint
from t2i.training.state.optimizers import load_optimizer_state, optimizer_state
from t2i.training.state.sharding import gathered, sharded_like


@runtime_checkable
class Stateful(Protocol):
    """An object, other than a module or an optimizer, that `Run.register` accepts."""

    def state_tensors(self) -> dict[str, Tensor]: ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...


Part = nn.Module | Optimizer | Stateful


class Parts:
    """Named modules, optimizers and other objects whose tensors are saved and loaded.

    Args:
        plain: removes the wrappers of DDP and torch.compile from a module, as they prefix the names of tensors.
        keep: False on processes that write no checkpoint and only help to gather sharded tensors.
    """

    def __init__(self, plain: Callable[[nn.Module], nn.Module], keep: bool):
        self._plain, self._keep = plain, keep
        self._parts: dict[str, Part] = {}

    @property
    def names(self) -> Collection[str]:
        return self._parts.keys()

    def add(self, name: str, part: Part) -> None:
        if name in self._parts:
            raise ValueError(f"part {name!r} is registered twice")
        if not isinstance(part, nn.Module | Optimizer | Stateful):
            raise TypeError(f"part {name!r} is a {type(part).__name__}, not a module, an optimizer or Stateful")
        self._parts[name] = part

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Returns whole tensors by part, or empty parts on processes that write no checkpoint. Call it on every process."""
        return {name: gathered(self._state_of(part), self._keep) for name, part in self._parts.items()}

    def _state_of(self, part: Part) -> dict[str, Tensor]:
        if isinstance(part, nn.Module):
            return self._plain(part).state_dict()
        return optimizer_state(part) if isinstance(part, Optimizer) else part.state_tensors()

    def sizes(self) -> str:
        """Returns the number of parameters of each module as text."""
        modules = {name: part for name, part in self._parts.items() if isinstance(part, nn.Module)}
        return ", ".join(f"{name} {sum(p.numel() for p in part.parameters()):,}" for name, part in modules.items())

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, tensors in state.items():
            part = self._parts[name]
            if not isinstance(part, Optimizer):
                own = self._state_of(part)
                tensors = {key: sharded_like(own.get(key), tensor) for key, tensor in tensors.items()}
            if isinstance(part, nn.Module):
                checkpoint.load_module(self._plain(part), tensors, name)
            elif isinstance(part, Optimizer):
                load_optimizer_state(part, tensors)
            else:
                part.load_tensors(tensors)


def not_finite(state: Mapping[str, Mapping[str, Tensor]], step: int, folder: Path) -> str | None:
    """Returns a message about the first tensor that is not finite; None if all are finite."""
    for name, tensors in state.items():
        for key, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                return (
                    f"step {step}: {key} of {name} is not finite, so no checkpoint was saved; lower the learning "
                    f"rate; the last checkpoint in {folder} is intact"
                )
    return None
