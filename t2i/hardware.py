"""Detects free processor cores, bf16 support and devices."""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import TypeVar

import psutil
import torch

T = TypeVar("T")
WINDOWS, WINDOW_SECONDS = 5, 0.2

_threads = Lock()  # guards torch's number of threads, which is global to the process


def prepare_cpu() -> int:
    """Sets torch's number of threads to the number of free cores and returns it; keeps the user's OMP_NUM_THREADS.

    Call it before `Run`. Several processes on one machine share the cores. The number is fixed for the life of the process;
    `free_cores` therefore measures for up to a second and takes the maximum, so that another process that is busy for a moment
    does not slow down a run of hours.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        share = free_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        # also set in the environment, as Accelerate would set another number otherwise
        os.environ["OMP_NUM_THREADS"] = str(max(1, share))
        torch.set_num_threads(max(1, share))
    threads = torch.get_num_threads()
    if threads > 1 and os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive":
        warnings.warn(
            "OMP_WAIT_POLICY is not passive: another busy process can slow down training 18 times; set it before torch is "
            "imported, or start with `t2i`",
            stacklevel=2,
        )
    return threads


@contextmanager
def one_thread_each() -> Iterator[int]:
    """Limits torch to one thread for each thread started in this block; yields torch's previous number of threads."""
    with _threads:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield before
        finally:
            torch.set_num_threads(before)


def one_by_one(make: Callable[[list[int]], T], count: int, on_step: Callable[[float], None] | None = None) -> list[T]:
    """Calls `make([i])` for each i below `count`, in as many threads as torch has, each of which computes with one thread.

    A result thus has the same bits whatever else is computed, while a batch would round by its size.

    Args:
        on_step: called with the share of results that are done.
    """
    results: list[T] = []
    with one_thread_each() as workers, ThreadPoolExecutor(workers) as pool:
        for result in pool.map(make, ([i] for i in range(count))):
            results.append(result)
            if on_step is not None:
                on_step(len(results) / count)
    return results


def cpu_has_bf16() -> bool:
    """Returns True if this processor has bf16 instructions (AVX-512 BF16 or AMX); others emulate bf16 slowly."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return " avx512_bf16" in flags or " amx_bf16" in flags


def has_bf16(device: str) -> bool:
    """Returns True if the hardware supports bf16; a GPU such as the T4 only emulates it, slower than fp32."""
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and cpu_has_bf16()


def free_cores(windows: int = WINDOWS, seconds: float = WINDOW_SECONDS) -> int:
    """Returns the number of allowed cores that no other job uses, at least 1: the maximum over `windows` measurements.

    It sleeps `windows` times `seconds`, or less if all cores are free. Processes started by the same launcher do not count as
    another job, as they are importing torch at the same time.
    """
    cores = allowed_cores()
    most = _quota(len(cores))
    best = 1
    for _ in range(windows):
        best = max(best, min(round(_free_in(cores, seconds)), most))
        if best == most:
            break
    return best


def _free_in(cores: set[int], seconds: float) -> float:
    """Measures for `seconds`; returns idle time and this job's own processor time as a number of cores."""
    before, own = _idle_seconds(cores), _job_seconds()
    time.sleep(seconds)
    after, spent = _idle_seconds(cores), max(0, _job_seconds() - own)
    spans = [(after[core][0] - before[core][0], after[core][1] - before[core][1]) for core in before if core in after]
    spans = [(idle, total) for idle, total in spans if total > 0]
    if not spans:
        return float(len(cores))
    per_core = sum(total for _, total in spans) / len(spans)
    return min(float(len(cores)), sum(idle / total for idle, total in spans) + spent / per_core)


def _job_seconds() -> float:
    """Returns the processor time of this process, or of all children of its launcher."""
    together = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1
    total = 0.0
    for process in psutil.Process(os.getppid()).children() if together else [psutil.Process()]:
        with suppress(psutil.Error):  # the process has ended
            total += sum(process.cpu_times()[:2])
    return total


def allowed_cores() -> set[int]:
    """Returns the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return set(affinity(0)) if affinity else set(range(os.cpu_count() or 1))


def _idle_seconds(cores: set[int]) -> dict[int, tuple[float, float]]:
    """Returns core -> (idle time, total time) since boot; empty if the system hides it."""
    try:
        every = psutil.cpu_times(percpu=True)
    except (OSError, psutil.Error):
        return {}
    seconds: dict[int, tuple[float, float]] = {}
    for core in cores & set(range(len(every))):
        times = every[core]._asdict()
        counted = {name: spent for name, spent in times.items() if not name.startswith("guest")}  # included in user
        seconds[core] = times["idle"] + times.get("iowait", 0.0), sum(counted.values())
    return seconds


def _quota(cores: int) -> int:
    """Returns the number of cores that the container's CPU quota amounts to."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cores if limit == "max" else max(1, round(int(limit) / int(period)))
    except (OSError, ValueError):
        return cores


def device() -> str:
    """Returns a GPU if there is one, a different one for each process of a launch; otherwise `cpu`."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def free_memory() -> int:
    """Returns the free memory in bytes: of this process's GPU, or of the machine without one."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available


def why_device(device: torch.device, configured: str) -> str:
    """Describes a device, and explains why a GPU that exists is not used.

    Args:
        configured: the config's `device`.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        why = "device=cpu is configured" if configured == "cpu" else "ACCELERATE_USE_CPU is set"
        return f"CPU, {torch.get_num_threads()} threads (the GPU is not used: {why})"
    if Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists():
        return f"CPU, {torch.get_num_threads()} threads (there is a GPU, but torch {torch.__version__} cannot use it)"
    return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''} (no GPU found)"
