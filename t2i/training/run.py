"""One training run: directory, lock, Accelerator, journal, signals, save and resume.

A program's loop:

    with Run(directory, config, "cgan") as run:
        run.register("model", model)
        run.register("optimizer", optimizer)
        run.resume()
        loader = Loader(train, config.train_batch_size, config.seed, *run.position)
        for batches in run.steps(loader, optimizer):
            if run.due(config.checkpointing_steps):
                run.save()
            batches = list(batches)
            if not batches:  # the run is done, or stopped by a signal
                break
            for batch in run.accumulate(model, batches):
                loss = ...
                run.accelerator.backward(loss)
            if run.all_finite(loss):
                optimizer.step()
            optimizer.zero_grad()
            run.note({"loss": loss})
"""

import hashlib
import json
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import t2i
from t2i import checkpoint
from t2i.config.load import flat, to_yaml
from t2i.config.training import TrainConfig
from t2i.data import Dataset
from t2i.data.loader import LoadingEnded
from t2i.distributed import PATIENCE, Means, Ranks
from t2i.errors import InputError
from t2i.families import FAMILIES
from t2i.files import read_regular
from t2i.hardware import why_device
from t2i.names import counted
from t2i.seeding import derive
from t2i.training.accelerator import make_accelerator
from t2i.training.directory import STOPPED, DirectoryLock, describe, refuse_anothers, remove_new, write_stopped
from t2i.training.journal import Journal
from t2i.training.optimization import FINAL_RATE, NonFiniteGuard, learning_rate, set_learning_rate
from t2i.training.state import (
    Part,
    Parts,
    data_digest,
    describe_counts,
    describe_data,
    is_sound,
    not_finite,
    refuse_another,
    refuse_other_data,
    refuse_other_digest,
    refuse_other_parts,
    warn_of_batch,
    warn_of_rounding,
)
from t2i.training.stopping import Budget, StopSignals
from t2i.training.trackers import Tracking
from t2i.training.watchdog import Watchdog

LOGGING_SECONDS = 10.0  # between two lines on stderr, where that is no terminal
COMPILED_SECONDS = 600.0  # that a step may take in which a network is compiled anew
RESUME_ME = 85  # exit status of a run that a signal stopped and that the same command continues


T = TypeVar("T")


M = TypeVar("M", bound=nn.Module)


class Samples(Protocol):
    """One micro-batch; `sample_ids` are the positions of its images since the start of training."""

    @property
    def sample_ids(self) -> Any: ...


B = TypeVar("B", bound=Samples)


class Run:
    """A training run in one directory; see the top of this file for its use.

    Attributes:
        accelerator: made from the config; `prepare` the modules with it, and no scheduler: use `learning_rate`.
        device, is_main, num_processes, process_index: where this process stands.
        directory, journal: of the run; the journal is None but on the main process.
        ranks: what the processes of the run decide together.
        step: optimizer steps done. images_seen: over all processes, in those steps.
        total_steps: of the whole run; with `max_train_minutes` it falls, once, from max_train_steps to what fits.
        guard: counts steps that were not finite; `steps` asks it.
        extra: further keys of the manifest of every checkpoint; `save` adds to it.

    Raises:
        InputError: the directory is another run's or is being written, the device is not there, the launch is wrong.
    """

    def __init__(self, directory: Path, config: TrainConfig, family: str):
        self.directory, self.config, self.family = Path(directory), config, family
        self.step = self.images_seen = 0
        self.total_steps = config.max_train_steps
        self.guard = NonFiniteGuard(self.rollback)
        self.journal: Journal | None = None
        self.extra: dict[str, Any] = {}
        self._saved_step = self._first_step = 0  # at the last save; when this process began
        self._over = False  # done, or stopped by a signal
        self._vanished = ""  # why no more training data comes
        self._sample_ids: list[int] = []  # of the step's first micro-batch
        self._loader: Any = None
        self._rate = 0.0  # learning rate of the step
        self._judged_step, self._sound = 0, True  # whether all was finite in the step judged last
        self._rolled_back = False
        self._caption = "a prompt"  # of the data, for the command that is shown at the end
        self._means = Means()
        self._lock: DirectoryLock | None = None
        self._closed = False
        self._newest: tuple[Path, dict[str, Any]] | None = None  # the checkpoint to resume from, and its manifest

        self.accelerator = make_accelerator(config, self.directory, family)
        self.device = self.accelerator.device
        self.is_main = self.accelerator.is_main_process
        self.num_processes = self.accelerator.num_processes
        self.process_index = self.accelerator.process_index
        self._parts = Parts(self.accelerator.unwrap_model)
        self.ranks = Ranks(self.num_processes, self.is_main, PATIENCE)
        mine = _digest(config)
        if not self.ranks.all(self.ranks.broadcast(mine) == mine):
            raise InputError("the processes of this run have different configs; start all of them with one command")
        self._tracking = Tracking(self.accelerator, config.report_to, self.directory)
        self._newest = self.on_main(self._open)
        self._signals = StopSignals(announce=self.is_main)
        self._watchdog: Watchdog | None = None
        if self.num_processes > 1 or config.dataloader_num_workers:
            self._watchdog = Watchdog(self.ranks, COMPILED_SECONDS if config.compile else 0.0, self._end_now)
        self._started = self._saved_at = time.monotonic()
        self._seconds_before = 0.0
        self._budget = self._new_budget()
        # time, images and waiting at the last line of the journal
        self._window: tuple[float, int, float | None] = (self._started, 0, None)
        torch.manual_seed(derive(config.seed, "init"))  # networks are made next, alike on every rank

    # ---- the life of a run ------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            try:
                # refused before its first step: the corrected command must find the directory as it was
                if issubclass(kind, InputError) and not self.step and self.is_new and self._lock is not None:
                    remove_new(self.directory, self._found)
            finally:
                died = self._watchdog.dead() if self._watchdog and issubclass(kind, RuntimeError) else None
                self._release()  # the state may be of half a step: it is not saved
            if died is not None:
                self._tell_of_death(f"{died} has died")
                raise SystemExit(RESUME_ME)

    def close(self) -> None:
        """Saves what is not saved and frees the directory; after a signal it then raises SystemExit(85)."""
        if self._closed:
            return
        try:
            stopped = self._agree_to_stop()
            if self.step != self._saved_step:
                self.save()
            if stopped:
                vanished = next(filter(None, self.ranks.everyone(self._vanished)), "")
                reason = next(filter(None, self.ranks.everyone(self._vanished or self._signals.reason)), "a signal")
                self.ranks.on_main(lambda: write_stopped(self.directory, reason, self.step, self._saved_step))
            elif self.step > self._first_step:
                self._tell_of_end()
        finally:
            self._release()
        if stopped and vanished:
            raise InputError(f"{vanished}; the run is saved at step {self.step}, the same command resumes it")
        if stopped:
            raise SystemExit(RESUME_ME)

    def _end_now(self, why: str) -> None:
        """The watchdog's thread: ends this process, whose main thread waits for a process that does not answer."""
        self._tell_of_death(why)
        os._exit(RESUME_ME)

    def _tell_of_death(self, why: str) -> None:
        saved = (
            f"the last checkpoint is of step {self._saved_step}" if self._saved_step else "there is no checkpoint yet"
        )
        with suppress(OSError):
            os.write(
                2, f"\nerror: {why}; the run ends at step {self.step}, {saved}; the same command resumes\n".encode()
            )
        write_stopped(self.directory, why, self.step, self._saved_step)

    def _release(self) -> None:
        self._closed = True
        if self._watchdog is not None:
            self._watchdog.close()
        self._signals.restore()
        self._tracking.close()
        if self.journal is not None:
            self.journal.close()
        if self._lock is not None:
            self._lock.release()

    def _open(self) -> tuple[Path, dict[str, Any]] | None:
        """Main process: takes the directory; returns the checkpoint to resume from and its manifest."""
        try:
            existed = self.directory.exists()
            self._lock = DirectoryLock(self.directory)
            try:
                self._found = set(os.listdir(self.directory)) - {".lock"} if existed else None
                refuse_anothers(self.directory, self.family)
                newest = self._find_newest()
                if newest is None:
                    self._describe()
                path = self.directory / "journal.jsonl"
                self.journal = Journal(path, self.total_steps, LOGGING_SECONDS, self._tracking.log)
                return newest
            except BaseException:
                self._lock.release()
                raise
        except OSError as error:
            raise InputError(
                f"run directory {self.directory} cannot be written: {error.strerror or error}; name another"
            ) from error

    def _find_newest(self) -> tuple[Path, dict[str, Any]] | None:
        path = checkpoint.latest(self._checkpoints)
        if path is None and checkpoint.steps(self._checkpoints):
            raise InputError(
                f"no checkpoint in {self._checkpoints} is intact; put one back, or delete that folder to start again"
            )
        if path is None:
            return None
        manifest = checkpoint.read_manifest(path)
        refuse_another(path, manifest, self.config, self.family)
        return path, manifest

    @property
    def is_new(self) -> bool:
        """True while no checkpoint was found: then nothing that an earlier start put into the directory counts."""
        return self._newest is None

    @property
    def _checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    def _describe(self) -> None:
        """Main process: config.yaml and command.json."""
        facts = {"device": str(self.device), "num_processes": self.num_processes}
        facts |= {"mixed_precision": self.accelerator.mixed_precision}
        describe(self.directory, self.config, self.family, sys.argv, facts)

    # ---- what decides a run -----------------------------------------------------------------------------------------

    def identify(self, key: str, digest: str | None, what: str) -> None:
        """Keeps the digest of a frozen part in every manifest, under `key`. Call it on every rank, before `resume`.

        Raises:
            InputError: on every rank, when the run was started with another `what`, or the ranks have different ones.
        """
        if len(set(self.ranks.everyone(digest))) > 1:
            raise InputError(f"the processes of this run have different {what}s; start all of them with one command")
        self.refuse_changed(key, digest, what)
        self.extra[key] = digest

    def refuse_changed(self, key: str, digest: str | None, what: str) -> None:
        """Raises InputError when the run was started with another `what`; runs of before digests were kept pass."""
        if self._newest is not None and key in self._newest[1]:
            refuse_other_digest(self.directory, what, self._newest[1][key], digest)

    def identify_data(self, train: Dataset) -> None:
        """Keeps what tells the training data from other data in every manifest; call it before anything is written.

        Raises:
            InputError: on every rank, when the run was started with other data, or the ranks have different data.
        """
        found = self.ranks.each(lambda: data_digest(train))
        everyone = self.ranks.everyone(found)
        if any(one != everyone[0] for one in everyone):
            each = "; ".join(f"rank {rank}: {describe_data(one)}" for rank, one in enumerate(everyone))
            raise InputError(f"the processes of this run have different data ({each}); give all of them the same")
        if self._newest is not None and "data" in self._newest[1]:
            refuse_other_data(self.directory, self._newest[1]["data"], found)
        self.extra["data"] = found
        self._caption = str(train.captions[0][0])

    def identify_held_out(self, split: str, dataset: Dataset | None) -> None:
        """Keeps the digest of a split that is validated on in every manifest; None: the data has none such.

        Raises:
            InputError: as `identify`.
        """
        self.identify(f"{split}_digest", None if dataset is None else dataset.digest(), f"split {split} of the data")

    def was_started_with(self, key: str, value: str | None) -> bool:
        """Returns True when a config key, as `text.path`, is spelled as it was when the run was started."""
        if self._newest is None:
            return True
        section, _, leaf = key.partition(".")
        return (self._newest[1]["config"].get(section) or {}).get(leaf) == value

    # ---- agreement between ranks ------------------------------------------------------------------------------------

    def on_main(self, action: Callable[[], T]) -> T:
        """What `action` returns on the main process, on every rank; what it raises is raised on all."""
        return self.ranks.broadcast(self.ranks.on_main(action))  # type: ignore[return-value]

    def all_finite(self, *tensors: Tensor) -> bool:
        """Whether every element of every tensor is finite on every rank: the step counts for all ranks or for none."""
        mine = bool(torch.stack([torch.isfinite(tensor.detach()).all() for tensor in tensors]).all())
        finite = self.ranks.all(mine)
        self._sound = finite and (self._sound or self._judged_step != self.step)
        self._judged_step = self.step
        return finite

    def _agree_to_stop(self) -> bool:
        """Returns whether a signal reached any rank; fixes the number of steps once the time budget tells it."""
        total = self._budget.steps_that_fit(self.step) if self._budget and self.is_main else None
        flag, agreed, due = self.ranks.max(
            [float(bool(self._signals.reason or self._vanished)), float(total or 0), float(self._save_is_due())]
        )
        if agreed:
            self._set_total(min(int(agreed), self.config.max_train_steps))
            self._budget = None
        if due:
            self.save()
        return bool(flag)

    def _save_is_due(self) -> bool:
        """Main process: True when `checkpointing_minutes` have passed since the last save."""
        minutes = self.config.checkpointing_minutes
        late = minutes is not None and time.monotonic() - self._saved_at > 60 * minutes
        return late and self.is_main and self.step != self._saved_step

    def _set_total(self, total: int) -> None:
        self.total_steps = total
        if self.journal is not None:
            self.journal.total_steps = total

    def _new_budget(self) -> Budget | None:
        minutes = self.config.max_train_minutes
        return None if minutes is None else Budget(60 * minutes - self._seconds_before)

    # ---- steps ------------------------------------------------------------------------------------------------------

    @property
    def position(self) -> tuple[int, int, int]:
        """Samples consumed, process index and number of processes, as the loaders take them."""
        return self.images_seen, self.process_index, self.num_processes

    @property
    def images_per_step(self) -> int:
        """Images of one optimizer step over all processes."""
        return self.config.train_batch_size * self.config.gradient_accumulation_steps * self.num_processes

    def steps(
        self, loader: Iterator[B], *optimizers: Optimizer, schedule: Callable[[int, int], float] | None = None
    ) -> Iterator[Iterator[B]]:
        """Yields the micro-batches of each optimizer step; at the end once more, and then there are none.

        So the body of a loop first looks after the steps so far (`due`, `save`), then takes its micro-batches, which seeds
        torch's generator for the step and sets the learning rate, and leaves the loop if there are none. When the body ends,
        the step is counted, timed and logged, and steps that are not finite are dealt with.

        Args:
            loader: endless micro-batches of this process.
            optimizers: get the learning rate.
            schedule: (step, steps of the run) -> learning rate; None: a warm-up, then a cosine down to `FINAL_RATE` of the
                config's.

        Raises:
            InputError: too many steps in a row were not finite (`NonFiniteGuard`).
        """
        self._loader = loader
        self._window = time.monotonic(), self.images_seen, self._waited()
        while not self._over:
            yield self._micro_batches(loader, optimizers, schedule)
            if not self._over:
                self._finish_step()

    def _micro_batches(
        self, loader: Iterator[B], optimizers: Sequence[Optimizer], schedule: Callable[[int, int], float] | None
    ) -> Iterator[B]:
        batches = self._read(loader) if self.step < self.total_steps else []
        self._over = self._agree_to_stop() or self.step >= self.total_steps
        if self._over:
            return
        # dropout and noise depend on the step, not on what was drawn before it
        torch.manual_seed(derive(self.config.seed, "step", self.step, self.process_index))
        warmup, base = self.config.lr_warmup_steps, self.config.learning_rate
        if schedule is None:
            self._rate = learning_rate(self.step, self.total_steps, base, warmup, FINAL_RATE)
        else:
            self._rate = schedule(self.step, self.total_steps)
        for optimizer in optimizers:
            set_learning_rate(optimizer, self._rate)
        self._sample_ids = batches[0].sample_ids.tolist()
        yield from batches

    def _read(self, loader: Iterator[B]) -> list[B]:
        """Reads the micro-batches of a step; where none come any more, the run ends as by a signal, with all that is done."""
        try:
            return [next(loader) for _ in range(self.config.gradient_accumulation_steps)]
        except LoadingEnded as error:
            self._vanished = str(error)
            return []

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of the run, for a network that `prepare` has not wrapped."""
        return self.accelerator.autocast()

    def accumulate(self, module: nn.Module, micros: Sequence[T]) -> Iterator[T]:
        """Yields micro-batches to run backward on; processes exchange gradients of `module` at the last one alone."""
        for i, micro in enumerate(micros):
            with nullcontext() if i == len(micros) - 1 else self.accelerator.no_sync(module):
                yield micro

    def _finish_step(self) -> None:
        """Counts the step (done or skipped), after going back to a sound checkpoint where it must be."""
        finite = self._sound or self._judged_step != self.step
        self.guard.check(finite, self.step, self._sample_ids)
        self.step += 1
        self.images_seen += self.images_per_step
        if self._watchdog is not None:
            self._watchdog.step(self.step - self._first_step)
        self.note({"learning_rate": self._rate})
        if self.step % self.config.log_steps == 0 or self.step == self.total_steps:
            self._log()
        elif self.step == self._first_step + 1:
            first = self._means.take(
                self.ranks, self.device, keep=True
            )  # shown at once, so that one sees that it trains
            if self.journal is not None:
                self.journal.write(self.step, first, kept=False)
        if self.journal is not None:
            self.journal.show(self.step)

    def due(self, every: int) -> bool:
        """Returns whether something is due that happens after every `every`-th step and after the last one."""
        return self.step > self._first_step and (self.step % every == 0 or self.step == self.total_steps)

    def note(self, scalars: Mapping[str, float | Tensor]) -> None:
        """Adds scalars of this step to running means; every `log_steps` steps they go to the journal.

        May be called for each micro-batch: the mean is over all calls. Tensors stay where they are until then, so nothing
        waits for a GPU. All ranks must note the same names.
        """
        self._means.add(scalars)

    def record(self, scalars: Mapping[str, float]) -> None:
        """Writes scalars (scores of a validation, ...) to the journal at once; does nothing but on the main process."""
        if self.journal is not None:
            self.journal.write(self.step, scalars)

    def show_samples(self) -> None:
        """Hands the sample grid of this step, if the program saved one, to the tracker."""
        if self.is_main:
            self._tracking.show(self.directory / "samples" / f"step-{self.step:08d}.png", self.step)

    def say(self, text: str) -> None:
        """One line on the main process's console."""
        if self.journal is not None:
            self.journal.say(text)

    def quarantine(self, broken: Mapping[str, Any]) -> None:
        """For `Loader(on_broken=...)`: a line in quarantine.jsonl, once for each picture of the run, and a warning."""
        path = self.directory / "quarantine.jsonl"
        line = json.dumps(dict(broken))
        if path.exists() and line.encode() in read_regular(path).splitlines():
            return
        with open(path, "a") as file:
            file.write(line + "\n")
        reason = f"{broken['id']} cannot be decoded and is replaced by the next picture: {broken['reason']}"
        warnings.warn(reason, stacklevel=2)

    def _waited(self) -> float | None:
        """Seconds that the loader has waited for data; None where it reads none."""
        return getattr(self._loader, "wait_seconds", None)

    def _log(self) -> None:
        scalars = self._means.take(self.ranks, self.device)
        (then, images, waited), now, waiting = self._window, time.monotonic(), self._waited()
        self._window = now, self.images_seen, waiting
        seconds = max(now - then, 1e-9)
        scalars["images_per_second"] = (self.images_seen - images) / seconds
        if waiting is not None and waited is not None:
            scalars["data_wait"] = (waiting - waited) / seconds
        self.record(scalars)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def register(self, name: str, part: Part) -> None:
        """Makes `part` the file `{name}.safetensors` of every checkpoint. Call it before `resume`, on every rank."""
        self._parts.add(name, part)

    def prepare(self, module: M, compile: bool = False) -> M:
        """Wraps a module on its device for the processes and the precision of the run; compiles it when asked."""
        prepared = self.accelerator.prepare(module)
        if compile:
            prepared.compile()
        return prepared

    def save(self, extra: Mapping[str, Any] | None = None) -> None:
        """The main process writes `checkpoints/step-XXXXXXXX` and deletes old ones; all ranks wait.

        Args:
            extra: further keys of the manifest, e.g. what is needed to rebuild the models; kept for later saves too.

        Raises:
            InputError: on every rank, when the disk is full or a weight is not finite; older checkpoints are intact.
        """
        self.extra |= extra or {}
        spoilt = self.on_main(self._write)
        if spoilt is not None:
            # skipped steps do not mend a weight that is not finite, so going back does not wait for the guard
            if not self.rollback():
                raise InputError(spoilt)
            self._sound = True
            self.ranks.on_main(self._write)
        self._saved_step, self._saved_at = self.step, time.monotonic()

    def _write(self) -> str | None:
        """Main process: writes the checkpoint; returns why it must not be written, None when it was."""
        self._refuse_gone()
        state = self._parts.state()
        if (spoilt := not_finite(state, self.step, self._checkpoints)) is not None:
            return spoilt
        manifest = {
            "family": self.family,
            "images_seen": self.images_seen,
            "total_steps": None if self._budget else self.total_steps,
            "train_seconds": round(self._seconds_before + time.monotonic() - self._started, 3),
            "num_processes": self.num_processes,
            "arithmetic": self._arithmetic(),
            "sound": self._sound,
            "rolled_back": self._rolled_back,
            "config_hash": _digest(self.config),
            "config": self.config.model_dump(mode="json"),
            "versions": {"t2i": t2i.__version__, "torch": torch.__version__},
            **self.extra,
        }
        checkpoint.save(self._checkpoints, self.step, state, manifest)
        pinned = [path for path in checkpoint.steps(self._checkpoints) if (path / "keep").exists()]
        if not self._sound and (last_sound := checkpoint.latest(self._checkpoints, is_sound)):
            pinned.append(last_sound)  # what `rollback` goes back to
        checkpoint.rotate(self._checkpoints, self.config.checkpoints_total_limit, pinned)
        return None

    def _refuse_gone(self) -> None:
        """Main process: raises InputError when the run directory was deleted or renamed."""
        if self._lock is None or self._lock.is_in_place():
            return
        moved = self._lock.moved_to()
        what = f"was renamed to {moved}" if moved else "was deleted or replaced"
        saved = f"step {self._saved_step}" if self._saved_step else "none"
        raise InputError(
            f"run directory {self.directory} {what} while the run was at step {self.step}, so nothing more can be saved "
            f"(last checkpoint: {saved}); give the same command with the directory where it is now"
        )

    def resume(self) -> bool:
        """Continues from the newest intact checkpoint, if there is one. Call it once, after all `register`.

        Raises:
            InputError: the checkpoint is of another family, model or config; nothing was changed.
        """
        if self._newest is not None:
            path, manifest = self._newest
            state, _ = self.ranks.each(lambda: checkpoint.load(path))
            refuse_other_parts(path, state.keys(), self._parts)
            self._parts.load(state)
            if self.is_main:
                warn_of_rounding(manifest.get("arithmetic", {}), self._arithmetic())
                warn_of_batch(manifest.get("num_processes"), self.num_processes, self.config)
            self._rolled_back = manifest.get("rolled_back", False)
            self.step = self._saved_step = self._first_step = manifest["step"]
            self.images_seen = manifest["images_seen"]
            self._seconds_before = manifest["train_seconds"]
            self._take_total(manifest)
        if self._budget is not None:
            self._budget = self._new_budget()  # preparing the data is not training
        self.ranks.on_main(self._continue_files)
        self._saved_at = time.monotonic()
        if self.journal is not None:
            self._tell_of_start()
        return not self.is_new

    def _continue_files(self) -> None:
        if self.journal is not None:
            self.journal.truncate(self.step)
        self._describe()
        self._tracking.start(flat(self.config))
        (self.directory / STOPPED).unlink(missing_ok=True)

    def _tell_of_start(self) -> None:
        """Main process: says what will be trained, on what, where to and how long."""
        config: Any = self.config
        if self.step >= self.total_steps:
            self.say(
                f"run {self.directory} is finished: {self.step:,} steps are done; a higher max_train_steps goes on"
            )
            return
        processes = f", {self.num_processes} processes" if self.num_processes > 1 else ""
        precision = {"no": "fp32"}.get(self.accelerator.mixed_precision, self.accelerator.mixed_precision)
        self.say(f"device: {why_device(self.device, config.device)}{processes}, {precision}")
        if "data" in self.extra:
            data = getattr(config, "data", None)
            what = f"{data.address}, {data.resolution} px, " if data is not None else ""
            self.say(
                f"data: {what}{describe_counts(self.extra['data'])}; {counted(self.images_per_step, 'image')} a step"
            )
        self.say(f"parameters: {self._parts.sizes()}")
        saved = min(self.step + config.checkpointing_steps - self.step % config.checkpointing_steps, self.total_steps)
        minutes = f" or after {config.checkpointing_minutes:g} min" if config.checkpointing_minutes else ""
        self.say(
            f"run: {self.directory}, step {self.step:,} of {self.total_steps:,}; next checkpoint at {saved:,}{minutes}"
        )

    def _tell_of_end(self) -> None:
        """Main process: says what can be done with a finished run."""
        place = shlex.quote(str(self.directory))
        if self.family in FAMILIES and FAMILIES[self.family].sampler:
            self.say(f"done; next: t2i sample {place} {shlex.quote(self._caption)}")
        elif self.family in FAMILIES and FAMILIES[self.family].tokenizer:
            self.say(f"done; next: t2i train prior --set tokenizer.path={place}")

    def _take_total(self, manifest: Mapping[str, Any]) -> None:
        """The number of steps is fixed once: the checkpoint's holds unless the limits in the config were changed."""
        length = ("max_train_steps", "max_train_minutes")
        changed = any(manifest["config"].get(key) != getattr(self.config, key) for key in length)
        if manifest["total_steps"] is None or changed:
            self._budget = self._new_budget()
        else:
            self._budget = None
            self._set_total(manifest["total_steps"])

    def _arithmetic(self) -> dict[str, Any]:
        """What decides how sums are rounded, and nothing else of a run."""
        threads = {"threads": torch.get_num_threads()} if self.device.type == "cpu" else {}
        precision = {"device": self.device.type, "mixed_precision": self.accelerator.mixed_precision}
        return precision | {"compile": self.config.compile} | threads

    def rollback(self) -> bool:
        """Puts every part back to the newest checkpoint of a sound step; False when there is none, or it was done before.

        Steps, data and learning rate go on from where they are, for the same samples would only do the same again. Call
        it on every rank, where no part is half-way through a step: `steps` does.
        """
        path = None if self._rolled_back else self.on_main(lambda: checkpoint.latest(self._checkpoints, is_sound))
        if path is None:
            return False
        state, manifest = checkpoint.load(path)
        self._parts.load(state)
        self._rolled_back = True
        self.record({"rolled_back_to": manifest["step"]})
        if self.is_main:
            warnings.warn(
                f"step {self.step}: losses or gradients are not finite any more, going on with the weights of step "
                f"{manifest['step']}; if that does not help either, the run will stop",
                stacklevel=3,
            )
        return True


def _digest(config: TrainConfig) -> str:
    return hashlib.sha256(to_yaml(config).encode()).hexdigest()


def now_and_then(run: Run, what: str, seconds: float = 10.0) -> Callable[[int, int], None]:
    """Tells on the console how far a long preparation has come."""
    said = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > seconds:
            said = time.monotonic()
            run.say(f"{what}: {done:,} of {total:,}")

    return progress
