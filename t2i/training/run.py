"""Counts, checks, logs, saves and resumes the steps of a training run.

`train/align.py` is the shortest program that uses it.
"""

import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.optim import Optimizer

from t2i.config.load import flat
from t2i.config.training import TrainConfig
from t2i.data.loader import LoadingEnded, Position
from t2i.errors import InputError
from t2i.seeding import derive
from t2i.training.directory import STOPPED, report_crash, write_stopped
from t2i.training.optimization import NonFiniteGuard, Schedule, cosine, set_learning_rate
from t2i.training.progress import Progress, announce_end, announce_start
from t2i.training.session import MicroBatch, Session
from t2i.training.state.checks import warn_of_batch, warn_of_rounding
from t2i.training.stopping.ending import Ending

RESUME_ME = 85  # exit status of a run that was stopped early; the same command resumes it
B = TypeVar("B", bound=MicroBatch)


class Run(Session):
    """A training run in one directory.

    Attributes:
        step, images_seen: optimizer steps done, and images that all processes saw in these steps.
        total_steps: length of the run; with `max_train_minutes` it is lowered once, to the number of steps that fit.
        images_per_step: images in one optimizer step, over all processes; set it before `resume` if a step sees all images.
        guard: counts steps that were not finite.

    Raises:
        InputError: the directory belongs to another run or is in use, the device is missing, or the launch is incorrect.
    """

    def __init__(self, directory: Path, config: TrainConfig, family: str):
        super().__init__(directory, config, family)
        self.step = self.images_seen = self._first_step = 0
        self.total_steps = config.max_train_steps
        self.images_per_step: int = config.train_batch_size * config.gradient_accumulation_steps * self.num_processes
        self.guard = NonFiniteGuard(self.rollback)
        self._progress = Progress(self.journal, self.ranks, self.device)
        self._ending = Ending(config, self.ranks, self._end_now)
        self._started, self._seconds_before = time.monotonic(), 0.0
        self._ending.start_budget(self._seconds_before)
        self._over = self._closed = False

        self._rate, self._sample_ids = 0.0, []  # learning rate and samples of the first micro-batch of this step
        torch.manual_seed(derive(config.seed, "init"))  # networks, made next, must be equal on every rank

    # ---- start and end ----------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            return self.close()
        try:
            # a run refused before its first step leaves the directory as it was, for the corrected command
            if issubclass(kind, InputError) and not self.step and self.is_new and self._lock:
                self._lock.remove_new()
        finally:
            died = self._ending.died() if issubclass(kind, RuntimeError) else None
            self._end()  # nothing is saved, as the state may be that of half a step
        if died is not None:
            report_crash(self.directory, f"{died} has died", self.step, self._checkpoints.saved_step)
            raise SystemExit(RESUME_ME)

    def close(self) -> None:
        """Saves the last step if needed and releases the directory; raises SystemExit(85) if a signal stopped the run."""
        if self._closed:
            return
        vanished = ""
        try:
            self._agree()
            if self.step != self._checkpoints.saved_step:
                self.save()
            if self._ending.stopped:
                vanished = next(filter(None, self.ranks.everyone(self._ending.vanished)), "")
                reason, saved = self._ending.reason(), self._checkpoints.saved_step
                self.ranks.on_main(lambda: write_stopped(self.directory, reason, self.step, saved))
            elif self.step > self._first_step:
                announce_end(self)
        finally:
            self._end()
        if vanished:
            raise InputError(f"{vanished}; the run was saved at step {self.step}, and the same command resumes it")
        if self._ending.stopped:
            raise SystemExit(RESUME_ME)

    def _end(self) -> None:
        self._closed = True
        self._ending.close()
        self.release()

    def _end_now(self, why: str) -> None:
        """Ends this process from the watchdog's thread while the main thread waits for a process that does not answer."""
        report_crash(self.directory, why, self.step, self._checkpoints.saved_step)
        os._exit(RESUME_ME)

    # ---- decisions of all processes ---------------------------------------------------------------------------------

    def judge(self, *tensors: Tensor) -> bool:
        """Returns True if all tensors are finite on every rank; otherwise the step does not count."""
        mine = bool(torch.stack([torch.isfinite(tensor.detach()).all() for tensor in tensors]).all())
        finite = self.ranks.all(mine)
        self._checkpoints.sound = self._checkpoints.sound and finite
        return finite

    def _agree(self) -> None:
        """Exchanges signals between ranks, fixes the number of steps when the time budget allows, and saves when due."""
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
    def position(self) -> Position:
        """Where a loader continues at this step."""
        return Position(self.images_seen, self.process_index, self.num_processes)

    def steps(
        self, loader: Iterator[B], *optimizers: Optimizer, schedule: Schedule | None = None
    ) -> Iterator[Iterator[B]]:
        """Yields an iterator over the micro-batches of each optimizer step, and an empty one at the end of the run.

        The body of the loop first validates and saves (`due`, `save`), then takes the micro-batches and leaves the loop if
        there are none. Taking them seeds torch's generator for the step and sets the learning rate. After the body, the step
        is counted, timed and logged, and a step that was not finite is handled.

        Args:
            loader: endless micro-batches of this process.
            optimizers: their learning rates follow the schedule.
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
        # dropout and noise depend on the step alone, not on earlier draws
        torch.manual_seed(derive(self.config.seed, "step", self.step, self.process_index))
        self._rate = schedule(self.step, self.total_steps)
        for optimizer in optimizers:
            set_learning_rate(optimizer, self._rate)
        self._sample_ids, self._checkpoints.sound = batches[0].sample_ids.tolist(), True
        yield from batches

    def _read(self, loader: Iterator[B]) -> list[B]:
        """Reads the micro-batches of a step; if loading has ended, the run is saved and stopped as after a signal."""
        try:
            return [next(loader) for _ in range(self.config.gradient_accumulation_steps)]
        except LoadingEnded as error:
            self._ending.vanished = str(error)
            return []

    def _finish_step(self) -> None:
        """Counts a step, done or skipped, and rolls back to a sound checkpoint if necessary."""
        self.guard.check(self._checkpoints.sound, self.step, self._sample_ids)
        self.step += 1
        self.images_seen += self.images_per_step
        self._ending.step(self.step - self._first_step)
        self.note({"learning_rate": self._rate})
        write = self.step % self.config.log_steps == 0 or self.step == self.total_steps
        first = self.step == self._first_step + 1  # shown at once, as a sign that training has begun
        self._progress.end_step(self.step, self.images_seen, write, show=first)

    def due(self, every: int) -> bool:
        """Returns True after every `every`-th step and after the last one."""
        return self.step > self._first_step and (self.step % every == 0 or self.step == self.total_steps)

    # ---- the journal ------------------------------------------------------------------------------------------------

    def note(self, scalars: Mapping[str, float | Tensor]) -> None:
        """Adds scalars to running means, which are written to the journal every `log_steps` steps.

        May be called for each micro-batch: the mean is taken over all calls. Tensors stay on their device until they are
        written, so no call waits for a GPU. All ranks must note the same names.
        """
        self._progress.note(scalars)

    def record(self, scalars: Mapping[str, float]) -> None:
        """Writes scalars, such as validation scores, to the journal at once; has no effect on other ranks than the main one."""
        self._progress.record(self.step, scalars)

    def _samples(self) -> Path:
        return self.directory / "samples" / f"step-{self.step:08d}.png"

    def save_samples(self, sheet: Image.Image) -> None:
        """Saves the sample grid of this step; call it on the main process."""
        self._samples().parent.mkdir(exist_ok=True)
        sheet.save(self._samples())

    def show_samples(self) -> None:
        """Passes the sample grid of this step, if one was saved, to the tracker."""
        if self.is_main:
            self._tracking.show(self._samples(), self.step)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes `checkpoints/step-XXXXXXXX` on the main process and deletes old checkpoints, while all ranks wait.

        Raises:
            InputError: on every rank, if the disk is full or a weight is not finite; older checkpoints stay intact.
        """
        self._checkpoints.save(self.step, self._manifest, self.rollback)

    def _manifest(self) -> dict[str, Any]:
        """Returns the manifest of a checkpoint (main process)."""
        if self._lock is not None:
            self._lock.refuse_gone(self.step, self._checkpoints.saved_step)
        return self.facts() | {
            "images_seen": self.images_seen,
            "total_steps": None if self._ending.budget else self.total_steps,
            "train_seconds": round(self._seconds_before + time.monotonic() - self._started, 3),
        }

    def resume(self) -> None:
        """Continues from the newest intact checkpoint, if there is one. Call it once, after every `register`.

        Raises:
            InputError: the checkpoint belongs to another family, model or config; nothing was changed.
        """
        if self._newest is not None:
            self._load(self._newest[0])
        if self._ending.budget is not None:
            self._ending.start_budget(self._seconds_before)  # preparing the data does not count as training
        self.ranks.on_main(self._continue_files)
        self._checkpoints.saved_at = time.monotonic()
        announce_start(self)

    def _load(self, path: Path) -> None:
        manifest = self.ranks.each(lambda: self._checkpoints.load(path))
        if self.is_main:
            warn_of_rounding(manifest.get("arithmetic", {}), self.arithmetic())
            warn_of_batch(manifest.get("num_processes"), self.num_processes, self.config)
        self._checkpoints.rolled_back = manifest.get("rolled_back", False)
        self.step = self._first_step = self._checkpoints.saved_step = manifest["step"]
        self.images_seen, self._seconds_before = manifest["images_seen"], manifest["train_seconds"]
        # a number of steps fixed by the time budget holds unless the config's limits were changed
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
        """Loads the newest checkpoint of a sound step into every part; returns False if there is none or it was done before.

        The step, the data and the learning rate are not set back, since the same samples would only fail again. Call it on
        every rank, between steps.
        """
        step = self._checkpoints.roll_back()
        if step is None:
            return False
        self.record({"rolled_back_to": step})
        if self.is_main:
            warnings.warn(
                f"step {self.step}: losses or gradients are no longer finite; continuing once with the weights of step {step}",
                stacklevel=3,
            )
        return True
