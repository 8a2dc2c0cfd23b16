"""Signals that stop a run, and the end of the launcher that started it."""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType


class StopSignals:
    """TERM, INT, HUP and USR1 ask a run to stop, and so does the end of its launcher; a second signal ends it at once.

    A hang-up that is ignored already, as under nohup, stays ignored.

    Args:
        announce: say on stderr that the first one was heard.
    """

    SIGNALS = tuple(
        getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
    )
    # Ctrl-C under torchrun arrives twice, from the terminal and from the launcher
    SAME_SECONDS = 1.0

    def __init__(self, announce: bool):
        self._number = 0  # of the first signal
        self._announce = announce
        # torchrun and `accelerate launch` die of some signals without a word to their workers
        self._launcher = os.getppid() if is_launched() else None
        self._first = 0.0
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # Python sets handlers nowhere else
            wanted = [number for number in self.SIGNALS if not _ignored_hangup(number)]
            self._before = {number: signal.signal(number, self._handle) for number in wanted}

    def _handle(self, number: int, _: FrameType | None) -> None:
        if not self._number:
            self._number, self._first = number, time.monotonic()
            if self._announce:
                with suppress(OSError):  # the terminal is gone
                    os.write(
                        2, b"\nstopping after this step and saving; the same command resumes; again to stop at once\n"
                    )
        elif time.monotonic() - self._first > self.SAME_SECONDS:
            os._exit(128 + number)

    @property
    def reason(self) -> str:
        """Why the run is to end after the step; empty while it is not."""
        if self._number:
            return f"signal {signal.Signals(self._number).name}"
        return "the launcher has ended" if self._launcher not in (None, os.getppid()) else ""

    def restore(self) -> None:
        """Gives the handlers back, unless a signal came: its repetition must not kill a process that is ending."""
        if self._number:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _ignored_hangup(number: int) -> bool:
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN


def is_launched() -> bool:
    """Returns True when this process is a worker of torchrun or `accelerate launch`, whose end is its own.

    Variables of theirs alone prove nothing: they may be exported in a shell, and a shell may end while its jobs go on.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ or bool(accelerate_words())


def accelerate_words() -> list[str]:
    """Returns the words of the `accelerate launch` command that started this process; none, if none did."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []
    named = any("accelerate" in os.path.basename(word) or word.startswith("accelerate.commands") for word in words[:3])
    return words if named and "launch" in words or "accelerate.commands.launch" in words else []
