"""Runs work in a thread of its own and reports its progress in the caller's, where no lock of the work is held."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

Result = TypeVar("Result")


class Stopped(Exception):
    """Raised by a listener to end the work; nothing of it is kept."""


def listened(work: Callable[[Callable[[float], None]], Result], hear: Callable[[float], None]) -> Result:
    """The result of `work(on_step)`; each share that it reports is passed to `hear` in this thread.

    What `hear` raises ends the work at its next report. A listener may sample itself: the work holds the lock of the thread
    count, and never waits for the listener.
    """
    shares: SimpleQueue[float | None] = SimpleQueue()
    stopped = False

    def report(share: float) -> None:
        if stopped:
            raise Stopped
        shares.put(share)

    def run() -> Result:
        try:
            return work(report)
        finally:
            shares.put(None)

    with ThreadPoolExecutor(1) as worker:
        result = worker.submit(run)
        try:
            while (share := shares.get()) is not None:
                hear(share)
        except BaseException:
            stopped = True
            raise
        return result.result()
