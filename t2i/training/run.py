"""The steps of a training run: counted, judged, logged, saved, resumed.

`train/align.py` is the shortest program that uses it.
"""

import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from t2i.config.load import flat
from t2i.config.training import TrainConfig
from t2i.data.loader import LoadingEnded
from t2i.errors import InputError
from t2i.seeding import derive
from t2i.training.directory import STOPPED, tell_of_death, write_stopped
from t2i.training.optimization import NonFiniteGuard, Schedule, cosine, set_learning_rate
from t2i.training.progress import Progress, tell_of_end, tell_of_start
from t2i.training.session import MicroBatch, Session
from t2i.training.state.checks import warn_of_batch, warn_of_rounding
from t2i.training.stopping.ending import Ending

RESUME_ME = 85  # exit status of a run that a signal stopped and that the same command continues
B = TypeVar("B", bound=MicroBatch)


class Run(Session):
    """A training run in one directory.

    Attributes:
        step: optimizer steps done. images_seen: over all processes, in those steps.
        total_steps: of the whole run; with `max_train_minutes` it falls, once, from max_train_steps to what fits.
        guard: counts steps that were not finite; `steps` tells it of each.

    Raises:
        InputError: the directory is another run's or is being written, the device is not there, the launch is wrong.
    """

    def __init__(self, directory: Path, config: TrainConfig, family: str):
        super().__init__(directory, config, family)
        self.step = self.images_seen = self._first_step = 0
        self.total_steps = config.max_train_steps
        self.guard = NonFiniteGuard(self.rollback)
        self._progress = Progress(self.journal, self.ranks, self.device)
        self._ending = Ending(config, self.ranks, self._end_now)
        self._started, self._seconds_before = time.monotonic(), 0.0
        self._ending.start_budget(self._seconds_before)
        self._over = self._closed = False
        self._images_per_step: int | None = None  # None: as the config says
        self._rate, self._sample_ids = 0.0, []  # of the step: learning rate, samples of the first micro-batch
        torch.manual_seed(derive(config.seed, "init"))  # networks are made next, alike on every rank

    # ---- the life of a run ------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            return self.close()
        try:
            # refused before its first step: the corrected command must find the directory as it was
            if issubclass(kind, InputError) and not self.step and self.is_new and self._lock:
                self._lock.remove_new()
        finally:
            died = self._ending.died() if issubclass(kind, RuntimeError) else None
            self._end()  # the state may be of half a step: it is not saved
        if died is not None:
            self._tell_of_death(f"{died} has died")
            raise SystemExit(RESUME_ME)

    def close(self) -> None:
        """Saves what is not saved and frees the directory; after a signal it then raises SystemExit(85)."""
        vanished = ""
        if self._closed:
            return
        try:
            self._agree()
            if self.step != self._checkpoints.saved_step:
                self.save()
            if self._ending.stopped:
                vanished = next(filter(None, self.ranks.everyone(self._ending.vanished)), "")
                reason, saved = self._ending.reason(), self._checkpoints.saved_step
                self.ranks.on_main(lambda: write_stopped(self.directory, reason, self.step, saved))
            elif self.step > self._first_step:
                tell_of_end(self)
        finally:
            self._end()
        if vanished:
            raise InputError(f"{vanished}; the run is saved at step {self.step}, the same command resumes it")
        if self._ending.stopped:
            raise SystemExit(RESUME_ME)

    def _end(self) -> None:
        self._closed = True
        self._ending.close()
        self.release()

    def _end_now(self, why: str) -> None:
        """The watchdog's thread: ends this process, whose main thread waits for a process that does not answer."""
        self._tell_of_death(why)
        os._exit(RESUME_ME)

    def _tell_of_death(self, why: str) -> None:
        tell_of_death(self.directory, why, self.step, self._checkpoints.saved_step)

    # ---- what the processes agree on --------------------------------------------------------------------------------

    def judge(self, *tensors: Tensor) -> bool:
        """Lets the step count if every element of every tensor is finite on every rank; returns that verdict."""
        mine = bool(torch.stack([torch.isfinite(tensor.detach()).all() for tensor in tensors]).all())
        finite = self.ranks.all(mine)
        self._checkpoints.sound = self._checkpoints.sound and finite
        return finite

    def _agree(self) -> None:
        """Hears of signals to any rank, fixes the number of steps once the time budget tells it, and saves when it is time."""
        total, late = self._ending.agree(self.step, self._checkpoints.are_late(self.step))
        if total:
            self._fix_total(min(total, self.config.max_train_steps))
        if late:
            self.save()

    def _fix_total(self, total: int) -> None:
        self.total_steps, self._ending.budget = total, None
        if self.journal is not None:
            self.journal.total_steps = total

    # ---- steps ------------------------------------------------------------------------------------------------------

    @property
    def position(self) -> tuple[int, int, int]:
        """Samples consumed, process index and number of processes, as the loaders take them."""
        return self.images_seen, self.process_index, self.num_processes

    def see_all(self, images: int) -> None:
        """Makes a step one look at so many images, as where a model is solved for. Call it before `resume`."""
        self._images_per_step = images

    @property
    def is_whole(self) -> bool:
        """True where a step sees all images."""
        return self._images_per_step is not None

    @property
    def images_per_step(self) -> int:
        """Images of one optimizer step over all processes."""
        if self._images_per_step is not None:
            return self._images_per_step
        return self.config.train_batch_size * self.config.gradient_accumulation_steps * self.num_processes

    def steps(
        self, loader: Iterator[B], *optimizers: Optimizer, schedule: Schedule | None = None
    ) -> Iterator[Iterator[B]]:
        """Yields the micro-batches of each optimizer step; at the end once more, and then there are none.

        So the body of a loop first looks after the steps so far (`due`, `save`), then takes its micro-batches, which seeds
        torch's generator for the step and sets the learning rate, and leaves the loop if there are none. When the body ends,
        the step is counted, timed and logged, and steps that are not finite are dealt with.

        Args:
            loader: endless micro-batches of this process.
            optimizers: get the learning rate.
            schedule: (step, steps of the run) -> learning rate; None: `cosine` of the config.

        Raises:
            InputError: too many steps in a row were not finite (`NonFiniteGuard`).
        """
        self._progress.start(loader, self.images_seen)
        while not self._over:
            yield self._micro_batches(loader, optimizers, schedule or cosine(self.config))
            if not self._over:
                self._finish_step()

    def _micro_batches(self, loader: Iterator[B], optimizers: Sequence[Optimizer], schedule: Schedule) -> Iterator[B]:
        batches = self._read(loader) if self.step < self.total_steps else []
        self._agree()
        self._over = self._ending.stopped or self.step >= self.total_steps
        if self._over:
            return
        # dropout and noise depend on the step, not on what was drawn before it
        torch.manual_seed(derive(self.config.seed, "step", self.step, self.process_index))
        self._rate = schedule(self.step, self.total_steps)
        for optimizer in optimizers:
            set_learning_rate(optimizer, self._rate)
        self._sample_ids, self._checkpoints.sound = batches[0].sample_ids.tolist(), True
        yield from batches

    def _read(self, loader: Iterator[B]) -> list[B]:
        """Reads the micro-batches of a step; where none come any more, the run ends as by a signal, with all that is done."""
        try:
            return [next(loader) for _ in range(self.config.gradient_accumulation_steps)]
        except LoadingEnded as error:
            self._ending.vanished = str(error)
            return []

    def _finish_step(self) -> None:
        """Counts the step (done or skipped), after going back to a sound checkpoint where it must be."""
        self.guard.check(self._checkpoints.sound, self.step, self._sample_ids)
        self.step += 1
        self.images_seen += self.images_per_step
        self._ending.step(self.step - self._first_step)
        self.note({"learning_rate": self._rate})
        write = self.step % self.config.log_steps == 0 or self.step == self.total_steps
        first = self.step == self._first_step + 1  # shown at once, so that one sees that it trains
        self._progress.tell(self.step, self.images_seen, write, show=first)

    def due(self, every: int) -> bool:
        """Returns True after every `every`-th step and after the last one."""
        return self.step > self._first_step and (self.step % every == 0 or self.step == self.total_steps)

    # ---- the journal ------------------------------------------------------------------------------------------------

    def note(self, scalars: Mapping[str, float | Tensor]) -> None:
        """Adds scalars of this step to running means; every `log_steps` steps they go to the journal.

        May be called for each micro-batch: the mean is over all calls. Tensors stay where they are until then, so nothing
        waits for a GPU. All ranks must note the same names.
        """
        self._progress.note(scalars)

    def record(self, scalars: Mapping[str, float]) -> None:
        """Writes scalars (scores of a validation, ...) to the journal at once; does nothing but on the main process."""
        self._progress.record(self.step, scalars)

    def show_samples(self) -> None:
        """Hands the sample grid of this step, if the program saved one, to the tracker."""
        if self.is_main:
            self._tracking.show(self.directory / "samples" / f"step-{self.step:08d}.png", self.step)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes `checkpoints/step-XXXXXXXX` on the main process and deletes old ones; all ranks wait.

        Raises:
            InputError: on every rank, when the disk is full or a weight is not finite; older checkpoints are intact.
        """
        self._checkpoints.save(self.step, self._manifest, self.rollback)

    def _manifest(self) -> dict[str, Any]:
        """Main process: what a checkpoint says of itself, beside its config."""
        if self._lock is not None:
            self._lock.refuse_gone(self.step, self._checkpoints.saved_step)
        return self.facts() | {
            "images_seen": self.images_seen,
            "total_steps": None if self._ending.budget else self.total_steps,
            "train_seconds": round(self._seconds_before + time.monotonic() - self._started, 3),
        }

    def resume(self) -> None:
        """Continues from the newest intact checkpoint, if there is one. Call it once, after all `register`.

        Raises:
            InputError: the checkpoint is of another family, model or config; nothing was changed.
        """
        if self._newest is not None:
            self._take_up(self._newest[0])
        if self._ending.budget is not None:
            self._ending.start_budget(self._seconds_before)  # preparing the data is not training
        self.ranks.on_main(self._continue_files)
        self._checkpoints.saved_at = time.monotonic()
        tell_of_start(self)

    def _take_up(self, path: Path) -> None:
        manifest = self.ranks.each(lambda: self._checkpoints.load(path))
        if self.is_main:
            warn_of_rounding(manifest.get("arithmetic", {}), self.arithmetic())
            warn_of_batch(manifest.get("num_processes"), self.num_processes, self.config)
        self._checkpoints.rolled_back = manifest.get("rolled_back", False)
        self.step = self._first_step = self._checkpoints.saved_step = manifest["step"]
        self.images_seen, self._seconds_before = manifest["images_seen"], manifest["train_seconds"]
        # the number of steps is fixed once: the checkpoint's holds unless the limits in the config were changed
        limits = ("max_train_steps", "max_train_minutes")
        same = all(manifest["config"].get(key) == getattr(self.config, key) for key in limits)
        if same and manifest["total_steps"] is not None:
            self._fix_total(manifest["total_steps"])

    def _continue_files(self) -> None:
        if self.journal is not None:
            self.journal.truncate(self.step)
        self.describe()
        self._tracking.start(flat(self.config))
        (self.directory / STOPPED).unlink(missing_ok=True)

    def rollback(self) -> bool:
        """Puts every part back to the newest checkpoint of a sound step; False when there is none, or it was done before.

        Steps, data and learning rate go on from where they are, for the same samples would only do the same again. Call
        it on every rank, where no part is half-way through a step: `steps` does.
        """
        step = self._checkpoints.roll_back()
        if step is None:
            return False
        self.record({"rolled_back_to": step})
        if self.is_main:
            warnings.warn(
                f"step {self.step}: losses or gradients are not finite any more, going on with the weights of step "
                f"{step}; if that does not help either, the run will stop",
                stacklevel=3,
            )
        return True
