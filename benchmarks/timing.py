"""Times calls, in wall and CPU seconds, for the other benchmarks."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Taken(NamedTuple):
    """Seconds of one call; CPU seconds, over all threads, depend less on other load."""

    wall: float
    cpu: float


def timed(call: Callable[[], T]) -> tuple[T, Taken]:
    """Returns the result of a call and the time it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, Taken(time.perf_counter() - wall, time.process_time() - cpu)


def median(taken: Sequence[Taken]) -> Taken:
    """Returns the median of each kind of seconds."""
    return Taken(*map(statistics.median, zip(*taken, strict=True)))
