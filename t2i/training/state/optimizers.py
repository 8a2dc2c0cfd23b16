"""Saves the tensors of an optimizer by index of the parameter, and restores them bit for bit."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from t2i.checkpoint import OTHER_MODEL
from t2i.errors import InputError
from t2i.training.state.sharding import sharded_like


def optimizer_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """Returns every per-parameter tensor as `INDEX.NAME`, where the index counts parameters over all groups.

    Learning rate and other group options are not included, as they are functions of config and step.
    """
    out: dict[str, Tensor] = {}
    for index, (parameter, _) in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                out[f"{index}.{name}"] = value.detach()
            elif value is not None:
                raise TypeError(f"{type(optimizer).__name__} keeps {name} as {type(value).__name__}, not as a tensor")
    return out


def load_optimizer_state(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restores tensors from `optimizer_state`, bit for bit, on each parameter's device and in its memory layout.

    Raises:
        InputError: a tensor belongs to no parameter or does not fit it; the optimizer is unchanged.
    """
    parameters = _parameters(optimizer)
    state: dict[Tensor, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        if not index.isdecimal() or int(index) >= len(parameters):
            raise InputError(
                f"checkpoint of another model: optimizer tensor {key}, and it has {len(parameters)} parameters; {OTHER_MODEL}"
            )
        parameter, group = parameters[int(index)]
        if not _fits(tensor, parameter):
            shapes = f"is {list(tensor.shape)}, its parameter {list(parameter.shape)}"
            raise InputError(f"checkpoint of another model: optimizer tensor {key} {shapes}; {OTHER_MODEL}")
        state.setdefault(parameter, {})[name] = _placed(tensor, parameter, group, name)
    optimizer.state.clear()
    optimizer.state.update(state)


def _parameters(optimizer: Optimizer) -> list[tuple[Tensor, dict[str, Any]]]:
    return [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]


def _fits(tensor: Tensor, parameter: Tensor) -> bool:
    """Returns True for a moment of the parameter's shape, a factored one with axes of size 1 (Adafactor), or a scalar."""
    if tensor.ndim in (0, parameter.ndim):
        return all(n in (1, m) for n, m in zip(tensor.shape, parameter.shape, strict=False))
    return False


def _placed(tensor: Tensor, parameter: Tensor, group: Mapping[str, Any], name: str) -> Tensor:
    if tensor.shape == parameter.shape and tensor.ndim:
        # the parameter's strides are kept, as kernels round identically only for the same memory layout
        return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(
            sharded_like(parameter, tensor)
        )
    # torch keeps `step` on the CPU, where reading it needs no synchronisation, except for these two kinds of kernels
    on_cpu = name == "step" and not group.get("capturable") and not group.get("fused")
    return tensor.clone() if on_cpu else tensor.to(parameter.device, copy=True)
