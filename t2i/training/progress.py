"""Reports the progress of a run: running means and speed to its journal, messages to its console."""

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

PROGRESS_SECONDS = 10.0  # time between two lines about a long preparation
CAPTION = 80  # characters of the example prompt of a finished run


class Progress:
    """Collects running means of a run's scalars and measures its speed, for the journal.

    Args:
        journal: None on every process but the main one.
    """

    def __init__(self, journal: Journal | None, ranks: Ranks, device: torch.device):
        self._journal, self._ranks, self._device = journal, ranks, device
        self._means = Means()
        self._loader: Any = None
        # time, images seen and seconds waited when the last line of the journal was written
        self._window: tuple[float, int, float | None] = (time.monotonic(), 0, None)

    def start(self, loader: Any, images_seen: int) -> None:
        """Starts measuring images per second and the share of time that training waits for `loader`."""
        self._loader = loader
        self._window = time.monotonic(), images_seen, self._waited()

    def note(self, scalars: Mapping[str, float | Tensor]) -> None:
        self._means.add(scalars)

    def record(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._journal is not None:
            self._journal.write(step, scalars)

    def end_step(self, step: int, images_seen: int, write: bool, show: bool) -> None:
        """Ends a step: writes the means to the journal and resets them (`write`), or only shows them (`show`)."""
        if write:
            self.record(step, self._means.take(self._ranks, self._device) | self._speed(images_seen))
        elif show:
            means = self._means.take(self._ranks, self._device, keep=True)
            if self._journal is not None:
                self._journal.write(step, means, store=False)
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
        """Returns the seconds that the loader has waited for data; None if it reads no images."""
        return getattr(self._loader, "wait_seconds", None)


def announce_start(run: "Run") -> None:
    """Prints the device, the data, the number of parameters, the run directory and the length of a run."""
    config: Any = run.config
    if run.step >= run.total_steps:
        more = "" if getattr(config, "is_solved", False) else "; set a higher max_train_steps to continue"
        run.say(f"run {run.directory} is finished: {counted(run.step, 'step')} done{more}")
        return
    processes = f", {run.num_processes} processes" if run.num_processes > 1 else ""
    precision = {"no": "fp32"}.get(run.accelerator.mixed_precision, run.accelerator.mixed_precision)
    run.say(f"device: {why_device(run.device, config.device)}{processes}, {precision}")
    if "data" in run.identity.digests:
        data = getattr(config, "data", None)
        what = f"{data.address}, {data.resolution} px, " if data is not None else ""
        counts = describe_counts(run.identity.digests["data"])
        run.say(f"data: {what}{counts}; {counted(run.images_per_step, 'image')} per step")
    if sizes := run.parts.sizes():
        run.say(f"parameters: {sizes}")
    saved = min(run.step + config.checkpointing_steps - run.step % config.checkpointing_steps, run.total_steps)
    minutes = f" or after {config.checkpointing_minutes:g} min" if config.checkpointing_minutes else ""
    run.say(f"run: {run.directory}, step {run.step:,} of {run.total_steps:,}; next checkpoint at {saved:,}{minutes}")


def announce_end(run: "Run") -> None:
    """Prints the command that uses a finished run."""
    place = shlex.quote(str(run.directory))
    if run.family in FAMILIES and FAMILIES[run.family].sampler:
        caption = run.identity.caption
        if len(caption) > CAPTION:
            caption = caption[:CAPTION].rpartition(" ")[0] or caption[:CAPTION]
        run.say(f"done; next: t2i sample {place} {shlex.quote(caption)}")
    elif run.family in FAMILIES and FAMILIES[run.family].tokenizer:
        run.say(f"done; next: t2i train prior --set tokenizer.path={place}")


def report_progress(say: Callable[[str], None], what: str) -> Callable[[int, int], None]:
    """Returns a callback (done, total) that prints the progress of a long preparation every few seconds."""
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            say(f"{what}: {done:,} of {total:,}")

    return progress
