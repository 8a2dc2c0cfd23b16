"""The record of a run: JSON lines always, a progress bar or plain lines on stderr, a tracker when asked for."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Scalars = Mapping[str, float]


_SHOWN = 6  # scalars on the console; the file has them all


def read(path: Path) -> list[dict[str, Any]]:
    """All records in order; a torn line (a killed or full disk's) is left out, a missing file has none."""
    return [record for _, record in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(offset of its first byte, record) of every whole line."""
    data = path.read_bytes() if path.exists() else b""
    offset = 0
    for line in data.splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield offset, record
        offset += len(line)


class Journal:
    """Appends `{"step": ..., "time": ..., **scalars}` to a JSONL file, each line flushed.

    Args:
        path: the file; made when it is missing.
        total_steps: for the bar; may be changed later.
        seconds: between two lines on a stderr that is no terminal.
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
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._file = open(path, "ab")  # noqa: SIM115  # lives as long as the journal
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            self._file.write(b"\n")  # a torn last line must not swallow the next one

    def truncate(self, step: int) -> None:
        """Drops the records after `step`: a resumed run writes them again."""
        for offset, record in _lines(self.path):
            if record["step"] > step:
                os.truncate(self.path, offset)
                return

    def write(self, step: int, scalars: Scalars) -> None:
        """One record. A value that is not finite is written as null, for JSON has no NaN."""
        plain = {key: float(value) for key, value in scalars.items()}
        record = {"step": step, "time": round(time.time(), 3)}
        record |= {key: float(f"{v:.6g}") if math.isfinite(v) else None for key, v in plain.items()}
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        self._latest |= plain
        if self._track is not None:
            self._track(plain, step)

    def show(self, step: int) -> None:
        """Brings the console up to date; cheap enough for every step."""
        now = time.monotonic()
        if self._first_step is None:
            self._first_step, self._started = step, now
        if sys.stderr.isatty():
            bar = self._bar()
            bar.update(bar.task_ids[0], completed=step, total=self.total_steps, scalars=self._summary())
        elif self._latest and (now - self._shown_at >= self._seconds or step == self.total_steps):
            self._shown_at = now
            done = step - self._first_step
            left = f"{(now - self._started) / done * (self.total_steps - step):.0f} s left" if done else ""
            line = f"step {step}/{self.total_steps}  {self._summary()}  {left}"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line for whoever watches; it is not kept."""
        console = self._progress.console if self._progress is not None else self._console
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _summary(self) -> str:
        shown = list(self._latest.items())[:_SHOWN]
        if "images_per_second" in self._latest:
            shown.append(("images/s", self._latest["images_per_second"]))
        return " ".join(f"{key}={value:.4g}" for key, value in dict(shown).items() if key != "images_per_second")

    def _bar(self) -> Progress:
        if self._progress is None:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            bar = Progress(*columns, TextColumn("{task.fields[scalars]}", markup=False), console=self._console)
            bar.add_task("train", total=self.total_steps, scalars="")
            bar.start()
            self._progress = bar
        return self._progress

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        self._file.close()
