"""Converts the time budget of a run to a number of steps."""

import statistics
import time


class Budget:
    """Converts seconds to a number of steps, once, by timing the first steps."""

    WARMUP_STEPS = 5  # not timed: allocation, compilation, the first batches
    TIMED_STEPS = 10
    TIMED_SHARE = 0.02  # at least this share of the budget is timed

    def __init__(self, seconds: float, mean_cost: float = 1.0):
        """
        Args:
            mean_cost: mean time of a step over the whole run, in units of the first ones.
        """
        self._seconds, self._mean_cost = seconds, mean_cost
        self._deadline = time.monotonic() + seconds
        self._previous: float | None = None
        self._durations: list[float] = []

    def steps_that_fit(self, step: int) -> int | None:
        """Returns the total number of steps, None while it is not known. Call it between steps; `step` steps are done."""
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
        usual = [duration for duration in timed if duration <= 5 * middle]  # excludes validations
        return step + max(0, int((self._deadline - now) / statistics.fmean(usual) / self._mean_cost))
