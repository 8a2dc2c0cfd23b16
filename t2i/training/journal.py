"""Records the scalars of a run as JSON lines, and shows its progress on stderr as a bar or as plain lines."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from t2i.console import plain_console
from t2i.errors import os_errors
from t2i.files import read_regular
from t2i.names import number

Scalars = Mapping[str, float]

# limits of the console: number of scalars, and characters of a row; the file has all scalars
_SHOWN, _ROW = 4, 68
_HIDDEN = ("images_per_second", "learning_rate", "data_wait", "rolled_back_to")


def read(path: Path) -> list[dict[str, Any]]:
    """Returns all records in order; skips incomplete lines (a killed process, a full disk). A missing file has no records.

    Raises:
        InputError: the file cannot be read.
    """
    return [record for _, record in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (offset of its first byte, record) of every complete line."""
    with os_errors(f"cannot read {path}", "repair or delete it"):
        data = read_regular(path) if path.exists() else b""
    offset = 0
    for line in data.splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield offset, record
        offset += len(line)


class Journal:
    """Appends `{"step": ..., "time": ..., **scalars}` to a JSONL file, flushing each line, and shows progress on stderr.

    Args:
        path: the file; created if it is missing.
        total_steps: length of the progress bar; may be changed later.
        seconds: time between two lines if stderr is not a terminal.
        track: also called with (scalars, step), e.g. `Accelerator.log`.
    """

    def __init__(
        self,
        path: Path,
        total_steps: int,
        seconds: float = 10.0,
        track: Callable[[dict[str, float], int], Any] | None = None,
    ):
        self.path = path
        self.total_steps = total_steps
        self._seconds = seconds
        self._track = track
        self._started = self._shown_at = time.monotonic()
        self._first_step: int | None = None
        self._latest: dict[str, float] = {}
        self._latest_step = 0
        self._fresh = False  # the latest scalars have not been shown
        self._console = plain_console()
        self._progress: _TwoRows | None = None
        self._file = open(path, "ab")  # noqa: SIM115  # lives as long as the journal
        if (data := read_regular(path)) and not data.endswith(b"\n"):
            self._file.write(b"\n")  # an incomplete last line must not swallow the next one

    def truncate(self, step: int) -> None:
        """Deletes the records after `step`, which a resumed run writes again."""
        for offset, record in _lines(self.path):
            if record["step"] > step:
                os.truncate(self.path, offset)
                return

    def write(self, step: int, scalars: Scalars, store: bool = True) -> None:
        """Adds one record. Values that are not finite are written as null, since JSON has no NaN.

        Args:
            store: False: show the scalars on the console, but do not write them.

        Raises:
            InputError: the file cannot be written, e.g. because the disk is full.
        """
        plain = {key: float(value) for key, value in scalars.items()}
        if store:
            self._append(step, plain)
        self._latest |= plain
        self._latest_step, self._fresh = step, True

    def _append(self, step: int, plain: dict[str, float]) -> None:
        record = {"step": step, "time": round(time.time(), 3)}
        record |= {key: float(f"{v:.6g}") if math.isfinite(v) else None for key, v in plain.items()}
        with os_errors(f"cannot write {self.path}", "free some space, then resume"):
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
        if self._track is not None:
            self._track(plain, step)

    def show(self, step: int) -> None:
        """Updates the console; cheap enough to call at every step."""
        now = time.monotonic()
        if self._first_step is None:
            self._first_step, self._started = step, now
        if self._console.is_terminal:
            with suppress(OSError):  # the terminal was closed; a signal ends the run, if anything does
                self._bar().show(step, self.total_steps, f"at {self._latest_step:,}:  {self._summary()}")
        elif now - self._shown_at >= self._seconds or step in (self._first_step, self.total_steps):
            self._shown_at = now
            done = step - self._first_step
            left = _time((now - self._started) / done * (self.total_steps - step)) + " left" if done else ""
            summary = self._summary() if self._fresh else ""
            self.say("  ".join(filter(None, [f"step {step:,} of {self.total_steps:,}", summary, left])))
        self._fresh = False

    def say(self, text: str) -> None:
        """Prints text on the console; it is not written to the file."""
        console = self._progress.console if self._progress is not None else self._console
        with suppress(OSError):
            console.print(text, soft_wrap=True)

    def _summary(self) -> str:
        """Returns losses first, then other scalars, as many as fit into a row of 80 columns."""
        names = [name for name in self._latest if not name.startswith(_HIDDEN)]
        names = sorted(names, key=lambda name: ("loss" not in name, name.startswith("val_")))[:_SHOWN]
        shown = [f"{name} {number(self._latest[name])}" for name in names]
        if "images_per_second" in self._latest:
            shown.append(f"{number(self._latest['images_per_second'])} images/s")
        while len(shown) > 2 and len("  ".join(shown)) > _ROW:
            del shown[-2]
        return "  ".join(shown)

    def _bar(self) -> "_TwoRows":
        if self._progress is None:
            self._progress = _TwoRows(self._console, self.total_steps)
            self._progress.start()
        return self._progress

    def close(self) -> None:
        """Removes the bar from the terminal and closes the file."""
        if self._progress is not None:
            with suppress(OSError):
                self._progress.stop()
            self._progress = None
        with suppress(OSError):  # a failure to flush was reported before
            self._file.close()


class _TwoRows(Progress):
    """A progress bar with steps and times, and a row of scalars below it, which fit into 80 columns."""

    def __init__(self, console: Console, total_steps: int):
        steps = TextColumn("{task.completed:,.0f} of {task.total:,.0f} steps")
        self._scalars = ""
        super().__init__(
            BarColumn(20), steps, TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("left"), console=console
        )
        self._task = self.add_task("train", total=total_steps)

    def show(self, step: int, total: int, scalars: str) -> None:
        self._scalars = scalars
        self.update(self._task, completed=step, total=total)

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self._scalars, no_wrap=True, overflow="ellipsis")


def _time(seconds: float) -> str:
    """Returns a duration as `8 s`, `12 min` or `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
