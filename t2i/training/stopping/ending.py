"""Decides when a run ends; its processes agree on it between steps."""

from collections.abc import Callable

from t2i.config.training import TrainConfig
from t2i.distributed import Ranks
from t2i.training.stopping.budget import Budget
from t2i.training.stopping.signals import StopSignals
from t2i.training.stopping.watchdog import Watchdog

COMPILED_SECONDS = 600.0  # how long a step may take in which a network is compiled again


class Ending:
    """Combines signals, vanished data, the time budget and the watchdog over the processes of a run.

    Args:
        end_now: called in the watchdog's thread if a process has died or hangs.

    Attributes:
        vanished: the reason why loading data has ended; empty while data is loaded.
        stopped: True once a signal to any process, or vanished data, ends the run.
        budget: the time budget, until it has fixed the number of steps; then None.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks, end_now: Callable[[str], None]):
        self.stopped, self.vanished = False, ""
        self.budget: Budget | None = None
        self._minutes, self._mean_cost, self._ranks = config.max_train_minutes, config.mean_cost, ranks
        self._signals = StopSignals(announce=ranks.is_main)
        self._watchdog: Watchdog | None = None
        if ranks.num_processes > 1 or config.dataloader_num_workers:
            self._watchdog = Watchdog(ranks, COMPILED_SECONDS if config.compile else 0.0, end_now)

    def start_budget(self, spent: float) -> None:
        """Starts the clock of `max_train_minutes`, of which `spent` seconds are used already."""
        self.budget = None if self._minutes is None else Budget(60 * self._minutes - spent, self._mean_cost)

    def agree(self, step: int, late: bool) -> tuple[int | None, bool]:
        """Sets `stopped` on all processes; returns the number of steps once the budget has fixed it, and the agreed `late`.

        Args:
            late: True if a checkpoint is overdue on this process.
        """
        total = self.budget.steps_that_fit(step) if self.budget and self._ranks.is_main else None
        mine = bool(self._signals.reason or self.vanished), total or 0, late
        stopped, agreed, save = self._ranks.max([float(value) for value in mine])
        self.stopped = bool(stopped)
        return int(agreed) or None, bool(save)

    def reason(self) -> str:
        """Returns why the run was stopped, which is the same on every rank."""
        reasons = self._ranks.everyone(self.vanished or self._signals.reason)
        return next(filter(None, reasons), "a signal")

    def step(self, steps: int) -> None:
        """Reports the number of steps that this process has done to the watchdog."""
        if self._watchdog is not None:
            self._watchdog.step(steps)

    def died(self) -> str | None:
        """Returns the name of a process on this machine that has died, None if there is none."""
        return self._watchdog.dead() if self._watchdog else None

    def close(self) -> None:
        """Stops the watchdog and restores the signal handlers."""
        if self._watchdog is not None:
            self._watchdog.close()
        self._signals.restore()
