"""Runs work in another thread and reports its progress in the calling thread, which holds none of the work's locks."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

Result = TypeVar("Result")


class Stopped(Exception):
    """Ends the work when `on_progress` raises it; the work has no result then."""


def run_with_progress(
    work: Callable[[Callable[[float], None]], Result], on_progress: Callable[[float], None]
) -> Result:
    """Returns the result of `work(report)`; each share that it reports is passed to `on_progress` in the calling thread.

    An exception in `on_progress` ends the work at its next report. `on_progress` may itself sample images: the work holds
    the lock of the thread count, but never waits for `on_progress`.
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
                on_progress(share)
        except BaseException:
            stopped = True
            raise
        return result.result()
