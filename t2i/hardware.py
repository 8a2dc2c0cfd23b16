"""The processor: the cores that nobody else is using, and what they can do."""

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

import psutil
import torch

WINDOWS, WINDOW_SECONDS = 5, 0.2


_threads = Lock()  # torch's number of threads is one for the whole process


def prepare_cpu() -> int:
    """Gives torch the cores that nobody else is using, and returns how many; an OMP_NUM_THREADS of the user's stands.

    Call it before `Run`. With several processes on a machine each takes its share. The number holds for the life of the
    process, so `free_cores` looks for up to a second and takes the best moment: a neighbour that is busy for a moment must
    not cost a run half its speed for hours, while one that computes all the time is seen in every moment.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        share = free_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        # in the environment too, or Accelerate would set another number
        os.environ["OMP_NUM_THREADS"] = str(max(1, share))
        torch.set_num_threads(max(1, share))
    threads = torch.get_num_threads()
    if threads > 1 and os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive":
        warnings.warn(
            "OMP_WAIT_POLICY is not passive: one busy neighbour can slow training 18 times; set it before torch is "
            "imported, or start through `t2i`",
            stacklevel=2,
        )
    return threads


@contextmanager
def one_thread_each() -> Iterator[int]:
    """Threads that are started in this block compute alone; the number of those that torch had together."""
    with _threads:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield before
        finally:
            torch.set_num_threads(before)


def cpu_has_bf16() -> bool:
    """Returns True when this processor multiplies in bf16 itself (AVX-512 BF16 or AMX); others emulate it slowly."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return " avx512_bf16" in flags or " amx_bf16" in flags


def has_bf16(device: str) -> bool:
    """Returns True where bf16 is computed by the hardware; a GPU such as the T4 only emulates it, slower than fp32."""
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and cpu_has_bf16()


def free_cores(windows: int = WINDOWS, seconds: float = WINDOW_SECONDS) -> int:
    """Cores that this process may use and nobody else is using, at least 1: the most seen free in one of `windows`.

    It sleeps `windows` times `seconds`, or less when all cores are free. Work of this process and of the others that one
    launcher started is no neighbour's: they are importing torch at the same moment.
    """
    cores = _allowed_cores()
    most = _quota(len(cores))
    best = 1
    for _ in range(windows):
        best = max(best, min(round(_free_in(cores, seconds)), most))
        if best == most:
            break
    return best


def _free_in(cores: set[int], seconds: float) -> float:
    """Cores' worth of idle time, and of time spent by this job itself, while sleeping `seconds`."""
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
    """Processor time of this process, and under a launcher of all its children."""
    together = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1
    total = 0.0
    for process in psutil.Process(os.getppid()).children() if together else [psutil.Process()]:
        with suppress(psutil.Error):  # it has ended
            total += sum(process.cpu_times()[:2])
    return total


def _allowed_cores() -> set[int]:
    affinity = getattr(os, "sched_getaffinity", None)
    return set(affinity(0)) if affinity else set(range(os.cpu_count() or 1))


def _idle_seconds(cores: set[int]) -> dict[int, tuple[float, float]]:
    """core -> (idle time, all time) since boot; empty where the system hides it."""
    try:
        every = psutil.cpu_times(percpu=True)
    except (OSError, psutil.Error):
        return {}
    found: dict[int, tuple[float, float]] = {}
    for core in cores & set(range(len(every))):
        times = every[core]._asdict()
        counted = {name: spent for name, spent in times.items() if not name.startswith("guest")}  # part of user's
        found[core] = times["idle"] + times.get("iowait", 0.0), sum(counted.values())
    return found


def _quota(cores: int) -> int:
    """Cores that a container's time limit is worth."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cores if limit == "max" else max(1, round(int(limit) / int(period)))
    except (OSError, ValueError):
        return cores


def device() -> str:
    """A GPU where there is one, of several processes each its own."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def free_memory() -> int:
    """Bytes free on the GPU of this process, or on the machine where there is none."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available


def why_device(device: torch.device, asked: str) -> str:
    """Returns a device in words, and why it is not a GPU where there is one.

    Args:
        asked: the config's `device`.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        why = "device=cpu was asked for" if asked == "cpu" else "ACCELERATE_USE_CPU is set"
        return f"CPU, {torch.get_num_threads()} threads (a GPU is there and not used: {why})"
    if Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists():
        return f"CPU, {torch.get_num_threads()} threads (a GPU is there, but torch {torch.__version__} cannot use it)"
    return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''} (no GPU found)"
