"""The progress of a run, as its journal and its console tell it."""

import shlex
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from t2i.distributed import Means, Ranks
from t2i.families import FAMILIES
from t2i.hardware import why_device
from t2i.names import counted
from t2i.training.journal import Journal
from t2i.training.state.identity import describe_counts

if TYPE_CHECKING:
    from t2i.training.run import Run


class Progress:
    """Running means of a run's scalars and its speed, on their way to the journal.

    Args:
        journal: None on all processes but the main one.
    """

    def __init__(self, journal: Journal | None, ranks: Ranks, device: torch.device):
        self._journal, self._ranks, self._device = journal, ranks, device
        self._means = Means()
        self._loader: Any = None
        # time, images and waiting at the last line of the journal
        self._window: tuple[float, int, float | None] = (time.monotonic(), 0, None)

    def start(self, loader: Any, images_seen: int) -> None:
        """Begins to measure images per second, and how long `loader` makes training wait."""
        self._loader = loader
        self._window = time.monotonic(), images_seen, self._waited()

    def note(self, scalars: Mapping[str, float | Tensor]) -> None:
        self._means.add(scalars)

    def record(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._journal is not None:
            self._journal.write(step, scalars)

    def tell(self, step: int, images_seen: int, write: bool, show: bool) -> None:
        """Ends a step: the means go to the journal (`write`), or stay and are shown for once (`show`)."""
        if write:
            self.record(step, self._means.take(self._ranks, self._device) | self._speed(images_seen))
        elif show:
            means = self._means.take(self._ranks, self._device, keep=True)
            if self._journal is not None:
                self._journal.write(step, means, kept=False)
        if self._journal is not None:
            self._journal.show(step)

    def _speed(self, images_seen: int) -> dict[str, float]:
        (then, images, waited), now, waiting = self._window, time.monotonic(), self._waited()
        self._window = now, images_seen, waiting
        seconds = max(now - then, 1e-9)
        speed = {"images_per_second": (images_seen - images) / seconds}
        if waiting is not None and waited is not None:
            speed["data_wait"] = (waiting - waited) / seconds
        return speed

    def _waited(self) -> float | None:
        """Seconds that the loader has waited for data; None where it reads none."""
        return getattr(self._loader, "wait_seconds", None)


def tell_of_start(run: "Run") -> None:
    """Says what will be trained, on what data, in which directory and for how long."""
    config: Any = run.config
    if run.step >= run.total_steps:
        more = "" if run.is_whole else "; a higher max_train_steps goes on"
        run.say(f"run {run.directory} is finished: {counted(run.step, 'step')} done{more}")
        return
    processes = f", {run.num_processes} processes" if run.num_processes > 1 else ""
    precision = {"no": "fp32"}.get(run.accelerator.mixed_precision, run.accelerator.mixed_precision)
    run.say(f"device: {why_device(run.device, config.device)}{processes}, {precision}")
    if "data" in run.identity.kept:
        data = getattr(config, "data", None)
        what = f"{data.address}, {data.resolution} px, " if data is not None else ""
        counts = describe_counts(run.identity.kept["data"])
        run.say(f"data: {what}{counts}; {counted(run.images_per_step, 'image')} a step")
    if sizes := run.parts.sizes():
        run.say(f"parameters: {sizes}")
    saved = min(run.step + config.checkpointing_steps - run.step % config.checkpointing_steps, run.total_steps)
    minutes = f" or after {config.checkpointing_minutes:g} min" if config.checkpointing_minutes else ""
    run.say(f"run: {run.directory}, step {run.step:,} of {run.total_steps:,}; next checkpoint at {saved:,}{minutes}")


def tell_of_end(run: "Run") -> None:
    """Says which command uses a finished run."""
    place = shlex.quote(str(run.directory))
    if run.family in FAMILIES and FAMILIES[run.family].sampler:
        run.say(f"done; next: t2i sample {place} {shlex.quote(run.identity.caption)}")
    elif run.family in FAMILIES and FAMILIES[run.family].tokenizer:
        run.say(f"done; next: t2i train prior --set tokenizer.path={place}")


def now_and_then(say: Callable[[str], None], what: str, seconds: float = 10.0) -> Callable[[int, int], None]:
    """Returns a callback (done, total) that says every few seconds how far a long preparation has come."""
    said = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > seconds:
            said = time.monotonic()
            say(f"{what}: {done:,} of {total:,}")

    return progress
