"""Sharded training with torch's `fully_shard` (FSDP2; ZeRO-3, Rajbhandari et al., SC 2020).

Each process stores a shard of every weight, gradient, moment and average, and gathers the weights of a block only while it
computes with them. Checkpoints hold full tensors, gathered one at a time on the main process, so they are the same as without
sharding, and any number of processes can resume them.
"""

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

M = TypeVar("M", bound=nn.Module)


def shard(model: nn.Module, blocks: Iterable[nn.Module], average: nn.Module, device: torch.device, bf16: bool) -> None:
    """Shards a model and its average across processes; their parameters become DTensors.

    Call it on every process, with equal weights, before the optimizer is created.

    Args:
        blocks: modules whose weights are gathered together, in the order of their execution.
        average: a copy of the model; it is not executed in this form, `whole` returns one that can be.
        bf16: gathers the weights of blocks in bfloat16; otherwise autocast would hold a full copy of each until the backward
            pass. Gradients are reduced in float32.
    """
    # the views are keys and values, which blocks also return and training does not use
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=precision if bf16 else MixedPrecisionPolicy())
    fully_shard(model, mesh=mesh)
    for name, parameter in list(model.named_parameters()):
        _put(average, name, parameter.detach().clone())


def is_sharded(module: nn.Module) -> bool:
    """Returns True for a model that `shard` was applied to; it must not be wrapped in DDP."""
    return isinstance(module, FSDPModule)


def whole(average: M, keep: bool) -> M:
    """Returns a copy of a sharded average with full weights, or the average itself if it is not sharded.

    Call it on every process.

    Args:
        keep: False on processes that do not need the copy; they get the average itself.
    """
    state = average.state_dict()
    if not any(isinstance(tensor, DTensor) for tensor in state.values()):
        return average
    full_average = copy.deepcopy(average) if keep else average
    for name, tensor in state.items():
        full = _full(tensor)
        if keep and isinstance(tensor, DTensor):
            _put(full_average, name, full)
    return full_average


def gathered(state: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Returns full tensors, sharded ones on the CPU, or {} if `keep` is False. Call it on every process."""
    tensors: dict[str, Tensor] = {}
    for name in sorted(state):  # the same order on all processes; a state read from a file may have another
        full = _full(state[name])
        if keep:
            tensors[name] = full.cpu() if isinstance(state[name], DTensor) else full
    return tensors


def sharded_like(other: Tensor | None, tensor: Tensor) -> Tensor:
    """Returns this process's shard of a full tensor if `other` is sharded, otherwise the tensor itself."""
    if not isinstance(other, DTensor) or other.shape != tensor.shape:
        return tensor
    # without communication, as every process has read the same file
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
