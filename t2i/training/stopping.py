"""What keeps a run safe around its steps: one writer a directory, signals, the launch, the time budget."""

import os
import signal
import statistics
import threading
import time
from types import FrameType


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
