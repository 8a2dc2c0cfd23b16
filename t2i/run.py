"""One training run: directory, lock, Accelerator, journal, signals, save and resume.

The only library file that knows Accelerate. A program's loop:

    with Run(directory, config, "cgan") as run:
        run.register("generator", generator)
        run.register("optimizer", optimizer)
        run.resume()
        while run.step < run.total_steps and not run.stopping():
            ...  # one optimizer step
            run.advance(images)
            run.note({"loss": loss})
            if run.due(config.checkpointing_steps):
                run.save()

Every choice that decides whether ranks go on together (a signal, a non-finite loss, the number of steps) is agreed over
a gloo group of its own, so that no GPU is waited for.
"""

import hashlib
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import accelerate
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

import t2i
from t2i import checkpoint
from t2i.config import CHANGEABLE_ON_RESUME, differences, flat, to_yaml
from t2i.errors import InputError
from t2i.journal import Journal
from t2i.run_config import TrainConfig
from t2i.run_guard import Budget, DirectoryLock, StopSignals, check_launch, free_cores
from t2i.seeding import derive

RESUME_ME = 85  # exit status of a run that a signal stopped and that the same command continues
T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


@runtime_checkable
class Stateful(Protocol):
    """What `Run.register` takes beside modules and optimizers."""

    def state_tensors(self) -> dict[str, Tensor]: ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...


class Waiting(Protocol):
    """What `Run.loader` must tell."""

    wait_seconds: float


Part = nn.Module | Optimizer | Stateful


class Run:
    """A training run in one directory; see the top of this file for its use.

    Attributes:
        accelerator: made from the config; `prepare` the modules with it, and no scheduler: use `learning_rate`.
        device, is_main, num_processes, process_index: where this process stands.
        directory, journal: of the run; the journal is None but on the main process.
        step: optimizer steps done. images_seen: over all processes, the `samples_consumed` of a loader.
        total_steps: of the whole run; with `max_train_minutes` it falls, once, from max_train_steps to what fits.
        loader: set it to have the share of time waiting for data in the journal.
        extra: further keys of the manifest of every checkpoint; `save` adds to it.

    Raises:
        InputError: the directory is another run's or is being written, the device is not there, the launch is wrong.
    """

    def __init__(self, directory: Path, config: TrainConfig, family: str):
        self.directory, self.config, self.family = Path(directory), config, family
        self.step = self.images_seen = 0
        self.total_steps = config.max_train_steps
        self.loader: Waiting | None = None
        self.journal: Journal | None = None
        self.extra: dict[str, Any] = {}
        self._parts: dict[str, Part] = {}
        self._saved_step = 0
        self._sums: dict[str, tuple[float | Tensor, int]] = {}
        self._lock: DirectoryLock | None = None
        self._closed = False

        self.accelerator = _accelerator(config, self.directory, family)
        self.device = self.accelerator.device
        self.is_main = self.accelerator.is_main_process
        self.num_processes = self.accelerator.num_processes
        self.process_index = self.accelerator.process_index
        self._control: Any = dist.new_group(backend="gloo") if self.num_processes > 1 else None
        self._check_same_config()
        self._on_main(self._open)
        if config.report_to != "none":
            values = {k: v if isinstance(v, int | float | str) else str(v) for k, v in flat(config).items()}
            self.accelerator.init_trackers(config.report_to, config=values)
        self._signals = StopSignals(announce=self.is_main)
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self._budget = self._new_budget()
        self._window = (self._started, 0, 0.0)  # time, images and waiting at the last line of the journal
        torch.manual_seed(derive(config.seed, "init"))  # networks are made next, alike on every rank

    # ---- the life of a run ------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._release()  # the state may be of half a step: it is not saved

    def close(self) -> None:
        """Saves what is not saved and frees the directory; after a signal it then raises SystemExit(85)."""
        if self._closed:
            return
        try:
            stopped = self.stopping()
            if self.step != self._saved_step:
                self.save()
        finally:
            self._release()
        if stopped:
            raise SystemExit(RESUME_ME)

    def _release(self) -> None:
        self._closed = True
        self._signals.restore()
        for tracker in getattr(self.accelerator, "trackers", []):
            tracker.finish()
        if self.journal is not None:
            self.journal.close()
        if self._lock is not None:
            self._lock.release()

    def _open(self) -> None:
        """Main process: takes the directory."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = DirectoryLock(self.directory)
            try:
                self._check_directory()
                if not self._checkpoints.exists():
                    self._describe()
                track = None if self.config.report_to == "none" else self.accelerator.log
                path = self.directory / "journal.jsonl"
                self.journal = Journal(path, self.total_steps, self.config.logging_seconds, track)
            except BaseException:
                self._lock.release()
                raise
        except OSError as error:
            raise InputError(
                f"run directory {self.directory} cannot be written: {error.strerror or error}; name another"
            ) from error

    @property
    def _checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    def _check_directory(self) -> None:
        command = self.directory / "command.json"
        if not command.exists():
            if (self.directory / "config.yaml").exists():
                raise InputError(f"{self.directory} holds a config.yaml and is no run; name a new directory")
            return
        try:
            family = json.loads(command.read_text())["family"]
        except (ValueError, KeyError, TypeError):
            family = self.family  # damaged: the manifest of the checkpoint decides
        if family != self.family:
            raise InputError(f"{self.directory} holds a run of {family}, not of {self.family}; name another directory")

    def _describe(self) -> None:
        """Main process: config.yaml and command.json."""
        versions = {"t2i": t2i.__version__, "python": platform.python_version(), "torch": torch.__version__}
        command = {
            "family": self.family,
            "argv": sys.argv,
            "versions": versions | {"accelerate": accelerate.__version__},
            "git": _git_commit(),
            "device": str(self.device),
            "num_processes": self.num_processes,
            "mixed_precision": self.accelerator.mixed_precision,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        # in this order: a config.yaml alone is taken for somebody else's
        _replace(self.directory / "command.json", json.dumps(command, indent=1) + "\n")
        _replace(self.directory / "config.yaml", to_yaml(self.config))

    # ---- agreement between ranks ------------------------------------------------------------------------------------

    def _broadcast(self, value: T) -> T:
        """The main process's value on every rank."""
        if self._control is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def _on_main(self, action: Callable[[], T]) -> T | None:
        """Runs `action` on the main process while the others wait; what it raises is raised on all."""
        result, failure = None, None
        if self.is_main:
            try:
                result = action()
            except Exception as error:
                failure = error
        problem = self._broadcast(str(failure) if failure else None)
        if failure is not None:
            raise failure
        if problem is not None:
            raise InputError(problem)
        return result

    def _agree(self, values: Sequence[float], how: Any) -> list[float]:
        if self._control is None:
            return list(values)
        box = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(box, op=how, group=self._control)
        return box.tolist()

    def _check_same_config(self) -> None:
        mine = _digest(self.config)
        same = float(self._broadcast(mine) == mine)
        if not self._agree([same], dist.ReduceOp.MIN)[0]:
            raise InputError("the processes of this run have different configs; start all of them with one command")

    def all_finite(self, *tensors: Tensor) -> bool:
        """Whether every element of every tensor is finite on every rank: the step counts for all ranks or for none."""
        mine = bool(torch.stack([torch.isfinite(tensor.detach()).all() for tensor in tensors]).all())
        return bool(self._agree([float(mine)], dist.ReduceOp.MIN)[0])

    def stopping(self) -> bool:
        """Whether a signal reached any rank. Call it once before each step, on every rank.

        It also seeds torch's own generator for the step: dropout depends on the step, not on what was drawn before it.
        """
        torch.manual_seed(derive(self.config.seed, "step", self.step, self.process_index))
        total = self._budget.steps_that_fit(self.step) if self._budget and self.is_main else None
        flag, agreed = self._agree([float(self._signals.received), float(total or 0)], dist.ReduceOp.MAX)
        if agreed:
            self._set_total(min(int(agreed), self.config.max_train_steps))
            self._budget = None
        return bool(flag)

    def _set_total(self, total: int) -> None:
        self.total_steps = total
        if self.journal is not None:
            self.journal.total_steps = total

    def _new_budget(self) -> Budget | None:
        minutes = self.config.max_train_minutes
        return None if minutes is None else Budget(60 * minutes - self._seconds_before)

    # ---- steps ------------------------------------------------------------------------------------------------------

    def advance(self, images: int) -> None:
        """Counts one optimizer step (done or skipped) that saw `images` pictures over all processes."""
        self.step += 1
        self.images_seen += images

    def due(self, every: int) -> bool:
        """True at every `every`-th step and at the last one, never before the first."""
        return self.step > 0 and (self.step % every == 0 or self.step == self.total_steps)

    def note(self, scalars: Mapping[str, float | Tensor]) -> None:
        """Adds scalars of the step just counted to running means; every `log_steps` steps they go to the journal.

        Tensors stay where they are until then, so nothing waits for a GPU. All ranks must note the same names.
        """
        for name, value in scalars.items():
            total, times = self._sums.get(name, (0.0, 0))
            plain = value.detach().float() if isinstance(value, Tensor) else value
            self._sums[name] = total + plain, times + 1
        if self.due(self.config.log_steps):
            self._log()
        if self.journal is not None:
            self.journal.show(self.step)

    def record(self, scalars: Mapping[str, float]) -> None:
        """Writes scalars (scores of a validation, ...) to the journal at once; does nothing but on the main process."""
        if self.journal is not None:
            self.journal.write(self.step, scalars)

    def quarantine(self, broken: Mapping[str, Any]) -> None:
        """For `Loader(on_broken=...)`: a line in quarantine.jsonl, once for each picture of the run, and a warning."""
        path = self.directory / "quarantine.jsonl"
        line = json.dumps(dict(broken))
        if path.exists() and line in path.read_text().splitlines():
            return
        with open(path, "a") as file:
            file.write(line + "\n")
        reason = f"{broken['id']} cannot be decoded and is replaced by the next picture: {broken['reason']}"
        warnings.warn(reason, stacklevel=2)

    def _log(self) -> None:
        names = list(self._sums)
        tensors = {name: total.to(self.device) for name, (total, _) in self._sums.items() if isinstance(total, Tensor)}
        # one transfer for all
        values = dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True)) if tensors else {}
        sums = {name: values.get(name, total) for name, (total, _) in self._sums.items()}
        means = self._agree([float(sums[name]) / self._sums[name][1] for name in names], dist.ReduceOp.SUM)
        scalars: dict[str, float] = {name: mean / self.num_processes for name, mean in zip(names, means, strict=True)}
        self._sums.clear()
        then, images, waited = self._window
        now, waiting = time.monotonic(), self.loader.wait_seconds if self.loader else 0.0
        self._window = now, self.images_seen, waiting
        scalars["images_per_second"] = (self.images_seen - images) / max(now - then, 1e-9)
        if self.loader is not None:
            scalars["data_wait"] = (waiting - waited) / max(now - then, 1e-9)
        self.record(scalars)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def register(self, name: str, part: Part) -> None:
        """Makes `part` the file `{name}.safetensors` of every checkpoint. Call it before `resume`, on every rank."""
        if name in self._parts:
            raise ValueError(f"part {name!r} is registered twice")
        if not isinstance(part, nn.Module | Optimizer | Stateful):
            raise TypeError(f"part {name!r} is a {type(part).__name__}: no module, no optimizer and not Stateful")
        self._parts[name] = part

    def prepare(self, module: M, compile: bool = False) -> M:
        """Wraps a module on its device for the processes and the precision of the run; compiles it when asked."""
        prepared = self.accelerator.prepare(module)
        if compile:
            prepared.compile()
        return prepared

    def _plain(self, module: nn.Module) -> nn.Module:
        """Without the wrappers of DDP and torch.compile, which prefix the names of tensors."""
        return self.accelerator.unwrap_model(module)

    def _state_of(self, part: Part) -> dict[str, Tensor]:
        if isinstance(part, nn.Module):
            return self._plain(part).state_dict()
        return checkpoint.optimizer_state(part) if isinstance(part, Optimizer) else part.state_tensors()

    def _load_part(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        part = self._parts[name]
        if isinstance(part, nn.Module):
            checkpoint.load_module(self._plain(part), tensors, name)
        elif isinstance(part, Optimizer):
            checkpoint.load_optimizer_state(part, tensors)
        else:
            part.load_tensors(tensors)

    def save(self, extra: Mapping[str, Any] | None = None) -> None:
        """The main process writes `checkpoints/step-XXXXXXXX` and deletes old ones; all ranks wait.

        Args:
            extra: further keys of the manifest, e.g. what is needed to rebuild the models; kept for later saves too.

        Raises:
            InputError: on every rank, when the disk is full or a weight is not finite; older checkpoints are intact.
        """
        self.extra |= extra or {}
        self._on_main(self._write)
        self._saved_step = self.step

    def _write(self) -> None:
        state = {name: self._state_of(part) for name, part in self._parts.items()}
        for name, tensors in state.items():
            for key, tensor in tensors.items():
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise InputError(
                        f"step {self.step}: {key} of {name} is not finite, so it is not saved; lower the learning "
                        f"rate, the last checkpoint in {self._checkpoints} is intact"
                    )
        manifest = {
            "family": self.family,
            "images_seen": self.images_seen,
            "total_steps": None if self._budget else self.total_steps,
            "train_seconds": round(self._seconds_before + time.monotonic() - self._started, 3),
            "num_processes": self.num_processes,
            "config_hash": _digest(self.config),
            "config": self.config.model_dump(mode="json"),
            "versions": {"t2i": t2i.__version__, "torch": torch.__version__},
            **self.extra,
        }
        checkpoint.save(self._checkpoints, self.step, state, manifest)
        pinned = [marker.parent for marker in self._checkpoints.glob("step-*/keep")]
        checkpoint.rotate(self._checkpoints, self.config.checkpoints_total_limit, pinned)

    def resume(self) -> bool:
        """Continues from the newest intact checkpoint, if there is one. Call it once, after all `register`.

        Raises:
            InputError: the checkpoint is of another family, model or config; nothing was changed.
        """
        path = self._broadcast(self._on_main(self._newest))
        if path is not None:
            state, manifest = checkpoint.load(path)
            self._refuse_another(path, state, manifest)
            for name, tensors in state.items():
                self._load_part(name, tensors)
            self.step = self._saved_step = manifest["step"]
            self.images_seen = manifest["images_seen"]
            self._seconds_before = manifest["train_seconds"]
            self._take_total(manifest)
        if self._budget is not None:
            self._budget = self._new_budget()  # preparing the data is not training
        self._on_main(self._continue_files)
        self._window = (time.monotonic(), self.images_seen, self.loader.wait_seconds if self.loader else 0.0)
        return path is not None

    def _newest(self) -> Path | None:
        path = checkpoint.latest(self._checkpoints)
        if path is None and any(self._checkpoints.glob("step-*/")):
            raise InputError(
                f"no checkpoint in {self._checkpoints} is intact; put one back, or delete that folder to start again"
            )
        return path

    def _continue_files(self) -> None:
        if self.journal is not None:
            self.journal.truncate(self.step)
        self._describe()

    def _take_total(self, manifest: Mapping[str, Any]) -> None:
        """The number of steps is fixed once: the checkpoint's holds unless the limits in the config were changed."""
        length = ("max_train_steps", "max_train_minutes")
        changed = any(manifest["config"].get(key) != getattr(self.config, key) for key in length)
        if manifest["total_steps"] is None or changed:
            self._budget = self._new_budget()
        else:
            self._budget = None
            self._set_total(manifest["total_steps"])

    def _refuse_another(self, path: Path, state: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        if manifest.get("family") != self.family:
            family = manifest.get("family")
            raise InputError(f"checkpoint {path} is of {family}, not of {self.family}; name another directory")
        if state.keys() != self._parts.keys():
            odd = ", ".join(sorted(state.keys() ^ self._parts.keys()))
            raise InputError(f"checkpoint {path} is of another model: {odd} on one side only; name another directory")
        try:
            before = type(self.config).model_validate(manifest["config"])
        except ValidationError as error:
            keys = ", ".join(".".join(map(str, detail["loc"])) for detail in error.errors())
            raise InputError(f"checkpoint {path} has a config that this version does not read: {keys}") from error
        changed = [d for d in differences(before, self.config) if d[0] not in CHANGEABLE_ON_RESUME]
        if changed:
            what = ", ".join(f"{key} {old} (now {new})" for key, old, new in changed[:3])
            raise InputError(
                f"{self.directory} was started with {what}; resume with that config or name another run directory"
            )


def _accelerator(config: TrainConfig, directory: Path, family: str) -> Accelerator:
    device = config.device
    forced_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = "cpu" if forced_cpu else next(name for name in usable if usable[name])
    if not usable[device]:
        raise InputError(
            f"device {device} was asked for, and torch {torch.__version__} finds none; install a torch built for it "
            "(`t2i doctor` tells) or say --set device=cpu"
        )
    check_launch(family, torch.cuda.device_count() if device == "cuda" else None)
    precision = config.mixed_precision
    if precision == "auto":
        able = cpu_has_bf16() if device == "cpu" else device == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bf16" if able else "no"
    if precision == "bf16" and device == "cpu" and not cpu_has_bf16():
        warnings.warn("bf16 on a CPU without bf16 instructions is 2 to 4 times slower than fp32", stacklevel=3)
    if config.report_to == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise InputError("report_to tensorboard needs its package: pip install 't2i[track]', or set report_to=none")
    warnings.filterwarnings("ignore", message=".*`?broadcast_buffers`? is deprecated")  # Accelerate always passes it
    AcceleratorState._reset_state()  # or a second run of this process could not have another precision
    accelerator = Accelerator(
        cpu=device == "cpu",
        mixed_precision=precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=None if config.report_to == "none" else config.report_to,
        project_dir=directory,
        # a player of a GAN runs several times before one backward: buffers written in between would break it
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if int(os.environ.get("WORLD_SIZE", 1)) != accelerator.num_processes:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and {accelerator.num_processes} process(es) found each other; "
            f"start with: torchrun --nproc_per_node {os.environ['WORLD_SIZE']} -m t2i.cli train {family} ..."
        )
    return accelerator


def _digest(config: TrainConfig) -> str:
    return hashlib.sha256(to_yaml(config).encode()).hexdigest()


def _git_commit() -> str | None:
    """Commit of the checkout that this package runs from, None for an installed one."""
    root = Path(t2i.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        out = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() if out.returncode == 0 else None


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


# ---- what a training loop needs beside -----------------------------------------------------------------------------


class EMA:
    """Exponential moving average of a module's weights and buffers, ramped with the number of images seen (StyleGAN-T).

    Args:
        model: copied; move it to its device before.
        halflife_images: after so many images the old average weighs half.
        ramp: the half-life is at most this share of the images seen so far.
    """

    def __init__(self, model: nn.Module, halflife_images: float, ramp: float = 0.05):
        self._halflife_images, self._ramp = halflife_images, ramp
        self._decay = 0.0
        self._averaged = AveragedModel(model, multi_avg_fn=self._mix, use_buffers=True)
        self._averaged.n_averaged.fill_(1)  # the copy is the first average
        self._averaged.eval().requires_grad_(False)

    @property
    def module(self) -> nn.Module:
        """The averaged copy, in eval mode, without gradients."""
        return self._averaged.module

    @torch.no_grad()
    def _mix(self, averages: Any, values: Any, _: Any) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1.0 - self._decay)  # pyright: ignore[reportPrivateImportUsage]
        else:
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)  # counters have no average

    def update(self, model: nn.Module, images_this_step: int, images_seen: int) -> None:
        """Call it after each optimizer step with the trained module, wrapped or not."""
        halflife = min(self._halflife_images, self._ramp * images_seen)
        self._decay = 0.5 ** (images_this_step / max(halflife, 1e-8))
        self._averaged.update_parameters(model)

    def state_tensors(self) -> dict[str, Tensor]:
        """The state dict of `module`, ready for a generator of the same config."""
        return self.module.state_dict()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        checkpoint.load_module(self.module, tensors, "ema")


class NonFiniteGuard:
    """Counts steps skipped because a loss or a gradient was not finite, and ends a run that no longer recovers."""

    def __init__(self, limit: int = 10):
        self.skipped = 0
        self._limit = limit
        self._in_a_row = 0

    def check(self, finite: bool, step: int, sample_ids: Sequence[int]) -> bool:
        """Returns `finite`, as `Run.all_finite` agreed on it; `sample_ids` are the step's on this rank.

        Raises:
            InputError: at the `limit`-th skipped step in a row.
        """
        self._in_a_row = 0 if finite else self._in_a_row + 1
        self.skipped += not finite
        if self._in_a_row >= self._limit:
            ids = ", ".join(str(int(i)) for i in sample_ids[:8])
            raise InputError(
                f"losses or gradients were not finite in {self._limit} steps in a row, up to step {step} with samples "
                f"{ids}; look at these samples or lower the learning rate, the last checkpoint is intact"
            )
        return finite


def learning_rate(step: int, total: int, base: float, warmup: int, final_factor: float = 0.0) -> float:
    """Linear warm-up over `warmup` steps, then a cosine from `base` to `base * final_factor` at step `total`."""
    if step < warmup:
        return base * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return base * (final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """The same learning rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = value


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies in bf16 itself (AVX-512 BF16 or AMX); without, bf16 is emulated and slow."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return " avx512_bf16" in flags or " amx_bf16" in flags


def prepare_cpu() -> int:
    """Gives torch the cores that nobody else is using, and returns how many; an OMP_NUM_THREADS of the user's stands.

    Call it before `Run`. With several processes on a machine each takes its share.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        share = free_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        # in the environment too, or Accelerate would set another number
        os.environ["OMP_NUM_THREADS"] = str(max(1, share))
        torch.set_num_threads(max(1, share))
    threads = torch.get_num_threads()
    if threads > 1 and os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive":
        warnings.warn(
            "OMP_WAIT_POLICY is not passive: one busy neighbour can slow training 18 times; set it before torch is "
            "imported, or start through `t2i`",
            stacklevel=2,
        )
    return threads
