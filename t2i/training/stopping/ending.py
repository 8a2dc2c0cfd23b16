"""The end of a run, early or in time, as its processes agree on it between steps."""

from collections.abc import Callable

from t2i.config.training import TrainConfig
from t2i.distributed import Ranks
from t2i.training.stopping.budget import Budget
from t2i.training.stopping.signals import StopSignals
from t2i.training.stopping.watchdog import Watchdog

COMPILED_SECONDS = 600.0  # that a step may take in which a network is compiled anew


class Ending:
    """Signals, vanished data, the time budget, and the watchdog over the processes of a run.

    Args:
        end_now: called in the watchdog's thread when a process has died or hangs.

    Attributes:
        vanished: why no more training data comes; empty while it does.
        stopped: True once a signal to any process, or vanished data, ends the run.
        budget: of time, until it has fixed the number of steps.
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
        """Starts the clock of `max_train_minutes`, of which so many seconds are spent."""
        self.budget = None if self._minutes is None else Budget(60 * self._minutes - spent, self._mean_cost)

    def agree(self, step: int, late: bool) -> tuple[int | None, bool]:
        """Sets `stopped` as the processes agree on it; returns the number of steps once the budget tells it, and `late`.

        Args:
            late: this process finds that a checkpoint is overdue.
        """
        total = self.budget.steps_that_fit(step) if self.budget and self._ranks.is_main else None
        mine = bool(self._signals.reason or self.vanished), total or 0, late
        stopped, agreed, save = self._ranks.max([float(value) for value in mine])
        self.stopped = bool(stopped)
        return int(agreed) or None, bool(save)

    def reason(self) -> str:
        """Returns why the run was stopped, the same on every rank."""
        said = self._ranks.everyone(self.vanished or self._signals.reason)
        return next(filter(None, said), "a signal")

    def step(self, steps: int) -> None:
        """Tells the watchdog that this process has done so many steps."""
        if self._watchdog is not None:
            self._watchdog.step(steps)

    def died(self) -> str | None:
        """Names a process of this machine that has died, if one has."""
        return self._watchdog.dead() if self._watchdog else None

    def close(self) -> None:
        """Stops the watchdog and gives the signal handlers back."""
        if self._watchdog is not None:
            self._watchdog.close()
        self._signals.restore()
