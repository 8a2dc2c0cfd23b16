"""Stops a run on signals and when the launcher that started it ends."""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType


class StopSignals:
    """Has TERM, INT, HUP, USR1 and the end of the launcher stop a run after its step; a second signal ends it at once.

    A SIGHUP that is already ignored, as under nohup, stays ignored.

    Args:
        announce: print a message on stderr at the first signal.
    """

    SIGNALS = tuple(
        getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
    )
    # Ctrl-C under torchrun arrives twice, from the terminal and from the launcher
    SAME_SECONDS = 1.0

    def __init__(self, announce: bool):
        self._number = 0  # number of the first signal
        self._announce = announce
        # torchrun and `accelerate launch` die of some signals without notifying their workers
        self._launcher = os.getppid() if is_launched() else None
        self._first = 0.0
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # Python sets handlers in no other thread
            self._before = {n: signal.signal(n, self._handle) for n in self.SIGNALS if not _ignored_hangup(n)}

    def _handle(self, number: int, _: FrameType | None) -> None:
        if not self._number:
            self._number, self._first = number, time.monotonic()
            if self._announce:
                with suppress(OSError):  # the terminal is gone
                    os.write(
                        2, b"\nsaving and stopping after this step; the same command resumes; repeat to stop at once\n"
                    )
        elif time.monotonic() - self._first > self.SAME_SECONDS:
            os._exit(128 + number)

    @property
    def reason(self) -> str:
        """Why the run should end after this step; empty if it should not."""
        if self._number:
            return f"signal {signal.Signals(self._number).name}"
        return "the launcher has ended" if self._launcher not in (None, os.getppid()) else ""

    def restore(self) -> None:
        """Restores the handlers, unless a signal was received: a repeated one must not kill a process that is ending."""
        if self._number:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _ignored_hangup(number: int) -> bool:
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN


def is_launched() -> bool:
    """Returns True if this process is a worker of torchrun or `accelerate launch` and must end together with it.

    Other launch variables prove nothing: they may be exported in a shell, which may end while its jobs continue.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ or bool(accelerate_words())


def accelerate_words() -> list[str]:
    """Returns the words of the `accelerate launch` command that started this process; an empty list without one."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []
    named = any("accelerate" in os.path.basename(word) or word.startswith("accelerate.commands") for word in words[:3])
    return words if named and "launch" in words or "accelerate.commands.launch" in words else []
