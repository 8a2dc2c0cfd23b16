"""Lets the processes of one run take decisions together, over their own gloo group, without waiting for a GPU."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from t2i.errors import InputError

T = TypeVar("T")
_ROWS = 4096  # number of rows sent at a time
PATIENCE = timedelta(hours=12)  # how long a process waits for another that is still working on its share


class Ranks:
    """Collective operations between processes, which must all make the same calls. One process alone is supported too.

    Attributes:
        waiting: True while this process is in a call that waits for the others.
        apart: True while this process does work that the others wait for, which may take long.
        calls: number of calls so far.
    """

    def __init__(self, num_processes: int, is_main: bool, patience: timedelta | None = None):
        self.num_processes = num_processes
        self.is_main = is_main
        self.waiting = self.apart = False
        self.calls = 0
        self._group: Any = dist.new_group(backend="gloo", timeout=patience) if num_processes > 1 else None

    @contextmanager
    def _together(self) -> Iterator[None]:
        self.calls, self.waiting = self.calls + 1, True
        try:
            yield
        finally:
            self.waiting = False

    def _tried(self, action: Callable[[], T]) -> tuple[T | None, Exception | None]:
        self.apart = True
        try:
            return action(), None
        except Exception as error:
            return None, error
        finally:
            self.apart = False

    def broadcast(self, value: T) -> T:
        """Returns the main process's value on every rank."""
        if self._group is None:
            return value
        box = [value]
        with self._together():
            dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def on_main(self, action: Callable[[], T]) -> T | None:
        """Runs `action` on the main process and returns its result there, None elsewhere; its exceptions are raised on all."""
        result, failure = self._tried(action) if self.is_main else (None, None)
        problem = self.broadcast(str(failure) if failure else None)
        if failure is not None:
            raise failure
        if problem is not None:
            raise InputError(problem)
        return result

    def each(self, action: Callable[[], T]) -> T:
        """Runs `action` on every process; an exception on one of them is raised on all."""
        result, failure = self._tried(action)
        messages = self.everyone(str(failure) if failure else None)
        problem = next((message for message in messages if message is not None), None)
        if failure is not None:
            raise failure
        if problem is not None:
            raise InputError(problem)
        return result  # type: ignore[return-value]

    def everyone(self, mine: T) -> list[T]:
        """Returns the values of all processes, in the order of the ranks, on every process."""
        if self._group is None:
            return [mine]
        boxes: list[Any] = [None] * self.num_processes
        with self._together():
            dist.all_gather_object(boxes, mine, group=self._group)
        return boxes

    def sum(self, values: Sequence[float]) -> list[float]:
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: Sequence[float]) -> list[float]:
        return self._reduce(values, dist.ReduceOp.MAX)

    def all(self, mine: bool) -> bool:
        """Returns True if `mine` is true on every rank."""
        return bool(self._reduce([float(mine)], dist.ReduceOp.MIN)[0])

    def share(self, count: int) -> range:
        """Returns this process's part of `count` rows; the parts are contiguous and in the order of the ranks."""
        rank = 0 if self._group is None else dist.get_rank(self._group)
        return range(count * rank // self.num_processes, count * (rank + 1) // self.num_processes)

    def gather(self, mine: list[T]) -> list[T]:
        """Returns the concatenated lists of all ranks on the main process, and `mine` elsewhere."""
        if self._group is None:
            return mine
        boxes: Any = [None] * self.num_processes if self.is_main else None
        dist.gather_object(mine, boxes, dst=0, group=self._group)
        return [one for box in boxes for one in box] if self.is_main else mine

    def gather_rows(self, mine: np.ndarray, out: np.ndarray) -> None:
        """Fills `out` [N, D] on the main process with the rows of all processes; `mine` are those of this one's `share`."""
        if self._group is None:
            out[:] = mine
        elif not self.is_main:
            for start in range(0, len(mine), _ROWS):
                dist.send(torch.from_numpy(mine[start : start + _ROWS].copy()), dst=0, group=self._group)
        else:
            out[: len(mine)] = mine
            for rank in range(1, self.num_processes):
                stop = len(out) * (rank + 1) // self.num_processes
                for start in range(len(out) * rank // self.num_processes, stop, _ROWS):
                    block = torch.empty((min(_ROWS, stop - start), out.shape[1]))
                    dist.recv(block, src=rank, group=self._group)
                    out[start : start + len(block)] = block.numpy()

    def sum_array(self, mine: np.ndarray) -> np.ndarray:
        """Returns the sum over all processes, float64."""
        if self._group is None:
            return mine
        total = torch.from_numpy(mine.copy())
        dist.all_reduce(total, group=self._group)
        return total.numpy()

    def _reduce(self, values: Sequence[float], how: Any) -> list[float]:
        if self._group is None:
            return list(values)
        box = torch.tensor(values, dtype=torch.float64)
        with self._together():
            dist.all_reduce(box, op=how, group=self._group)
        return box.tolist()


@contextmanager
def launched_ranks() -> Iterator[Ranks]:
    """Yields the processes that torchrun started, or this one alone, for a program that does not train.

    Raises:
        InputError: the launch variables of torchrun are incomplete.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    world = int(size) if size.isdecimal() else 0
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if world < 1 or world > 1 and missing:
        raise InputError(
            f"WORLD_SIZE is {size}, but this is not a complete launch by torchrun ({', '.join(missing)} not set); unset it, or "
            "start with torchrun --nproc_per_node 2 -m t2i.cli ..."
        )
    if world == 1:
        yield Ranks(1, True)
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(world, dist.get_rank() == 0, PATIENCE)
    finally:
        dist.destroy_process_group()


class Means:
    """Running means of scalars over steps and ranks. Tensors stay on their device until the means are taken."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float | Tensor, int]] = {}

    def add(self, scalars: Mapping[str, float | Tensor]) -> None:
        for name, value in scalars.items():
            total, times = self._sums.get(name, (0.0, 0))
            plain = value.detach().float() if isinstance(value, Tensor) else value
            self._sums[name] = total + plain, times + 1

    def take(self, ranks: Ranks, device: torch.device, keep: bool = False) -> dict[str, float]:
        """Returns the means and resets them unless `keep`; tensors are moved to `device`. Ranks must have the same names."""
        names = list(self._sums)
        tensors = {name: total for name, (total, _) in self._sums.items() if isinstance(total, Tensor)}
        # one transfer for all tensors
        moved = torch.stack([total.to(device) for total in tensors.values()]).tolist() if tensors else []
        values = dict(zip(tensors, moved, strict=True))
        sums = {name: values.get(name, total) for name, (total, _) in self._sums.items()}
        means = ranks.sum([float(sums[name]) / self._sums[name][1] for name in names])
        if not keep:
            self._sums.clear()
        return {name: mean / ranks.num_processes for name, mean in zip(names, means, strict=True)}
