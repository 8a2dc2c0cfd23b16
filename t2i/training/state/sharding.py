"""Sharded training: each process keeps its part of every weight, gradient, moment and average (ZeRO-3, Rajbhandari et al.,
SC 2020; torch's `fully_shard`, known as FSDP2).

The weights of a block are whole on a process only while it computes with them. Checkpoints hold whole tensors, gathered one at a
time on the main process, so they are those of a run that is not sharded and any number of processes resumes them.
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
    """Leaves each process its part of a model, whose parameters become DTensors, and of a copy of it.

    Call it on every process, with equal weights, before an optimizer is made of them.

    Args:
        blocks: modules of the model whose weights are gathered together, in the order in which they run.
        average: a copy of the model that is never run in this form; `whole` makes one that is.
        bf16: the weights of blocks are gathered in bfloat16, for products in it: else autocast would keep its own whole copy of
            each until the backward pass. Gradients meet in float32.
    """
    # keys and values, which a block also returns and training does not read
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=precision if bf16 else MixedPrecisionPolicy())
    fully_shard(model, mesh=mesh)
    for name, parameter in list(model.named_parameters()):
        _put(average, name, parameter.detach().clone())


def is_sharded(module: nn.Module) -> bool:
    """Returns True for a model that `shard` has divided, whose gradients are exchanged without DDP."""
    return isinstance(module, FSDPModule)


def whole(average: M, keep: bool) -> M:
    """Returns a copy of a sharded average with all of its weights; without sharding, the average itself.

    Call it on every process.

    Args:
        keep: False on the processes that do not need it, which get the average itself.
    """
    state = average.state_dict()
    if not any(isinstance(tensor, DTensor) for tensor in state.values()):
        return average
    made = copy.deepcopy(average) if keep else average
    for name, tensor in state.items():
        full = _full(tensor)
        if keep and isinstance(tensor, DTensor):
            _put(made, name, full)
    return made


def gathered(state: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Returns whole tensors, those that were sharded on the CPU; empty where they are not to be kept. On every process."""
    found: dict[str, Tensor] = {}
    for name in sorted(state):  # in one order on all processes: what a file holds is read in any
        full = _full(state[name])
        if keep:
            found[name] = full.cpu() if isinstance(state[name], DTensor) else full
    return found


def laid_out_as(own: Tensor | None, tensor: Tensor) -> Tensor:
    """Returns this process's part of a whole tensor if `own` is sharded, else the tensor as it is."""
    if not isinstance(own, DTensor) or own.shape != tensor.shape:
        return tensor
    # every process has read the same file: nothing is sent
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
