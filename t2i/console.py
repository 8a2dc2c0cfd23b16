"""Shows progress on stderr, as bars on a terminal and otherwise as a line every few seconds; prints warnings and tables."""

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from t2i.errors import TruncationWarning

LINE_SECONDS = 10.0  # time between two lines if stderr is not a terminal
Tick = Callable[[str, float, int], None]  # called with (name of the task, amount done, total)


def plain_console(stderr: bool = True) -> Console:
    """Returns a console that prints names and captions as they are: neither "[b]" nor ":bomb:" has a meaning."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


@contextmanager
def shown_progress(unit: str = "") -> Iterator[Tick]:
    """Shows one bar per task. The amount done may be fractional; a smaller amount than before is ignored."""
    console = plain_console()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars: dict[str, Any] = {}
    most: dict[str, float] = {}
    last = time.monotonic()

    def tick(what: str, done: float, total: int) -> None:
        nonlocal last
        if what not in bars:
            bars[what] = progress.add_task(what, total=total)
        before, most[what] = most.get(what, 0.0), max(done, most.get(what, 0.0))
        progress.update(bars[what], completed=most[what])
        # only finished images count
        new = int(most[what] + 1e-6) > int(before + 1e-6)
        if new and not console.is_terminal and time.monotonic() - last > LINE_SECONDS:
            last = time.monotonic()
            line(console, f"{what}: {int(most[what] + 1e-6):,} of {total:,}{unit}")

    with (
        warnings_as_lines(console),
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        yield tick


@contextmanager
def progress_of(main: bool) -> Iterator[Tick]:
    """Acts as `shown_progress` on the main process; the others show neither progress nor warnings."""
    if main:
        with shown_progress() as tick:
            yield tick
        return
    with warnings_of(False):
        yield lambda what, done, total: None


@contextmanager
def warnings_of(main: bool) -> Iterator[None]:
    """Prints each warning at once, as one line on stderr of the main process; the others show no warnings."""
    if main:
        with warnings_as_lines(plain_console(), merged=False):
            yield
        return
    with warnings.catch_warnings(action="ignore"):
        yield


@contextmanager
def warnings_as_lines(console: Console, merged: bool = True) -> Iterator[None]:
    """Prints each warning once, as one line on stderr.

    Args:
        merged: the warnings about truncated captions of all batches become one at the end; False: each is printed at once.
    """
    show = _Lines(console, merged)
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
        if show.cut:
            show(str(TruncationWarning(sum(one.count for one in show.cut), show.cut[0].name, show.cut[0].limit)))


class _Lines:
    """Prints each warning once, as one line, in place of `warnings.showwarning`."""

    def __init__(self, console: Console, merged: bool) -> None:
        self.console, self.merged = console, merged
        self.cut: list[TruncationWarning] = []
        around = warnings.showwarning
        # a part of a command does not repeat the warnings of the command
        self.messages: set[str] = around.messages if isinstance(around, _Lines) else set()

    def __call__(self, message: Warning | str, *_: Any) -> None:
        if isinstance(message, TruncationWarning) and self.merged:
            self.cut.append(message)
        elif str(message) not in self.messages:
            self.messages.add(str(message))
            line(self.console, f"warning: {message}")


def line(console: Console, text: str) -> None:
    """Prints a line without wrapping it."""
    with suppress(OSError):  # a closed terminal must not end the program
        console.print(text, soft_wrap=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], bold: int | None = None) -> None:
    """Writes a table to stdout: formatted on a terminal, otherwise in plain aligned columns.

    Args:
        bold: number of the row to highlight on a terminal.
    """
    if sys.stdout.isatty():
        ruled = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for k, word in enumerate(head):
            ruled.add_column(word, justify="right" if k else "left", overflow="fold")
        for k, cells in enumerate(rows):
            ruled.add_row(*cells, style="bold" if k == bold else None)
        plain_console(stderr=False).print(ruled)
        return
    widths = [max(map(len, cells)) for cells in zip(head, *rows, strict=True)]
    for cells in [head, *rows]:
        sys.stdout.write(
            "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() + "\n"
        )
