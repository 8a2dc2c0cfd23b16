"""What keeps a run safe around its steps: one writer a directory, signals, the launch, the time budget."""

import fcntl
import json
import os
import signal
import socket
import statistics
import threading
import time
import warnings
from pathlib import Path
from types import FrameType

from t2i.errors import InputError

_HELD: set[int] = set()  # descriptors of locks


def _forget_locks() -> None:
    """In a forked child: a data worker that outlives its killed parent must not keep the parent's lock."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_forget_locks)


class DirectoryLock:
    """`.lock` in a run directory, held while this process lives. The kernel frees it however the process ends.

    Raises:
        InputError: another process holds it; the message names it.
    """

    def __init__(self, directory: Path):
        path = directory / ".lock"
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise InputError(_held_by(directory, path)) from None
        except OSError as error:
            warnings.warn(f"no lock in {directory} ({error.strerror}): start one run there at a time", stacklevel=2)
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(owner).encode(), 0)
        _HELD.add(self._descriptor)

    def release(self) -> None:
        if self._descriptor in _HELD:
            _HELD.remove(self._descriptor)
            os.close(self._descriptor)


def _held_by(directory: Path, path: Path) -> str:
    try:
        owner = json.loads(path.read_text())
        who = f"pid {owner['pid']} on host {owner['host']} since {owner['started']}"
    except (OSError, ValueError, KeyError, TypeError):  # not written yet
        who = "another process"
    return f"run {directory} is being written by {who}; wait for it, stop it, or name another run directory"


class StopSignals:
    """TERM, INT and USR1 set `received`, and so does the end of the launcher; a second signal ends the process at once.

    `announce`: say on stderr that the first one was heard.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    # Ctrl-C under torchrun arrives twice, from the terminal and from the launcher
    SAME_SECONDS = 1.0

    def __init__(self, announce: bool):
        self._signalled = False
        self._announce = announce
        # torchrun and `accelerate launch` die of some signals without a word to their workers
        launched = any(name in os.environ for name in ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"))
        self._launcher = os.getppid() if launched else None
        self._first = 0.0
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # Python sets handlers nowhere else
            self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}

    def _handle(self, number: int, _: FrameType | None) -> None:
        if not self._signalled:
            self._signalled, self._first = True, time.monotonic()
            if self._announce:
                os.write(2, b"\nstopping after this step and saving; the same command resumes; again to stop at once\n")
        elif time.monotonic() - self._first > self.SAME_SECONDS:
            os._exit(128 + number)

    @property
    def received(self) -> bool:
        """Whether the run is to end after the step."""
        return self._signalled or (self._launcher is not None and os.getppid() != self._launcher)

    def restore(self) -> None:
        """Gives the handlers back, unless a signal came: its repetition must not kill a process that is ending."""
        if self._signalled:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def check_launch(family: str, devices: int | None) -> None:
    """Refuses environments in which processes would wait for each other for ever, or share a GPU.

    Args:
        family: for the command in the message.
        devices: GPUs of this machine, None when training on the CPU.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if not world.isdecimal() or int(world) < 1:
        raise InputError(f"WORLD_SIZE is {world!r}, not a number of processes; unset it, or start with torchrun")
    command = f"torchrun --nproc_per_node {world} -m t2i.cli train {family} ..."
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if int(world) > 1 and missing:
        raise InputError(f"WORLD_SIZE is {world} and {', '.join(missing)} not set; unset it, or start with: {command}")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if devices is not None and local > devices:
        raise InputError(f"{local} processes for {devices} GPU(s); use --nproc_per_node {devices} or --set device=cpu")


class Budget:
    """Turns seconds into a number of steps, once, by timing the first ones."""

    WARMUP_STEPS = 5  # allocation, compilation, the first batches
    TIMED_STEPS = 10
    TIMED_SHARE = 0.02  # of the budget: a longer run is timed longer

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._previous: float | None = None
        self._durations: list[float] = []

    def steps_that_fit(self, step: int) -> int | None:
        """Total steps of the run, None while it is not known. Called between steps; `step` of them are done."""
        now = time.monotonic()
        if self._previous is not None:
            self._durations.append(now - self._previous)
        self._previous = now
        if now >= self._deadline:
            return max(step, 1)
        timed = self._durations[self.WARMUP_STEPS :]
        if len(timed) < self.TIMED_STEPS or sum(timed) < self.TIMED_SHARE * self._seconds:
            return None
        middle = statistics.median(timed)
        usual = [duration for duration in timed if duration <= 5 * middle]  # without a validation that fell in between
        return step + max(0, int((self._deadline - now) / statistics.fmean(usual)))
