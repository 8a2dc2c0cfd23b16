"""What the processes of one run decide together, over a gloo group of its own, so that no GPU is waited for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from t2i.errors import InputError

T = TypeVar("T")


class Ranks:
    """Agreement between processes; with one process every answer is its own. All of them make the same calls."""

    def __init__(self, num_processes: int, is_main: bool):
        self.num_processes = num_processes
        self._is_main = is_main
        self._group: Any = dist.new_group(backend="gloo") if num_processes > 1 else None

    def broadcast(self, value: T) -> T:
        """The main process's value on every rank."""
        if self._group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def on_main(self, action: Callable[[], T]) -> T | None:
        """Runs `action` on the main process while the others wait (theirs is None); what it raises is raised on all."""
        result, failure = None, None
        if self._is_main:
            try:
                result = action()
            except Exception as error:
                failure = error
        problem = self.broadcast(str(failure) if failure else None)
        if failure is not None:
            raise failure
        if problem is not None:
            raise InputError(problem)
        return result

    def sum(self, values: Sequence[float]) -> list[float]:
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: Sequence[float]) -> list[float]:
        return self._reduce(values, dist.ReduceOp.MAX)

    def all(self, mine: bool) -> bool:
        """Whether it is so on every rank."""
        return bool(self._reduce([float(mine)], dist.ReduceOp.MIN)[0])

    def _reduce(self, values: Sequence[float], how: Any) -> list[float]:
        if self._group is None:
            return list(values)
        box = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(box, op=how, group=self._group)
        return box.tolist()


class Means:
    """Means of scalars over steps, and over ranks when they are taken. Tensors stay where they are until then."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float | Tensor, int]] = {}

    def add(self, scalars: Mapping[str, float | Tensor]) -> None:
        for name, value in scalars.items():
            total, times = self._sums.get(name, (0.0, 0))
            plain = value.detach().float() if isinstance(value, Tensor) else value
            self._sums[name] = total + plain, times + 1

    def take(self, ranks: Ranks, device: torch.device) -> dict[str, float]:
        """The means, which start anew; tensors meet on `device`. All ranks must have added the same names."""
        names = list(self._sums)
        tensors = {name: total for name, (total, _) in self._sums.items() if isinstance(total, Tensor)}
        # one transfer for all
        moved = torch.stack([total.to(device) for total in tensors.values()]).tolist() if tensors else []
        values = dict(zip(tensors, moved, strict=True))
        sums = {name: values.get(name, total) for name, (total, _) in self._sums.items()}
        means = ranks.sum([float(sums[name]) / self._sums[name][1] for name in names])
        self._sums.clear()
        return {name: mean / ranks.num_processes for name, mean in zip(names, means, strict=True)}
