"""Progress on stderr: bars on a terminal, else a line every few seconds; warnings as lines."""

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

LINE_SECONDS = 10.0  # between two lines on a stderr that is no terminal
Tick = Callable[[str, float, int], None]  # what is going on, done, of how many


@contextmanager
def shown_progress(unit: str = "") -> Iterator[Tick]:
    """One bar for each thing that goes on. `done` may be a fraction, and never goes back."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars: dict[str, Any] = {}
    most: dict[str, float] = {}
    said = time.monotonic()

    def tick(what: str, done: float, total: int) -> None:
        nonlocal said
        if what not in bars:
            bars[what] = progress.add_task(what, total=total)
        before, most[what] = most.get(what, 0.0), max(done, most.get(what, 0.0))
        progress.update(bars[what], completed=most[what])
        # images that are done, not those begun
        new = int(most[what] + 1e-6) > int(before + 1e-6)
        if new and not console.is_terminal and time.monotonic() - said > LINE_SECONDS:
            said = time.monotonic()
            line(console, f"{what}: {int(most[what] + 1e-6):,} of {total:,}{unit}")

    with (
        warnings_as_lines(console),
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        yield tick


@contextmanager
def progress_of(main: bool) -> Iterator[Tick]:
    """`shown_progress` on the main process of several; the others show nothing, and say no warning again."""
    if main:
        with shown_progress() as tick:
            yield tick
        return
    with warnings_of(False):
        yield lambda what, done, total: None


@contextmanager
def warnings_of(main: bool) -> Iterator[None]:
    """`warnings_as_lines` on the main process of several; the others are silent."""
    if main:
        with warnings_as_lines(Console(stderr=True)):
            yield
        return
    with warnings.catch_warnings(action="ignore"):
        yield


@contextmanager
def warnings_as_lines(console: Console) -> Iterator[None]:
    """One line on stderr a warning, and the same one once; those of cut captions, one a batch, are added up."""
    cut: list[TruncationWarning] = []
    told: set[str] = set()

    def show(message: Warning | str, *_: Any) -> None:
        if isinstance(message, TruncationWarning):
            cut.append(message)
        elif str(message) not in told:
            told.add(str(message))
            line(console, f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
        if cut:
            show(str(TruncationWarning(sum(one.count for one in cut), cut[0].name, cut[0].limit)))


def line(console: Console, text: str) -> None:
    """One line as it is, however long."""
    with suppress(OSError):  # the terminal has gone, which must not end what is under way
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], bold: int | None = None) -> None:
    """Writes a table to stdout: ruled on a terminal, else in plain aligned columns.

    Args:
        bold: number of the row to set off on a terminal.
    """
    if sys.stdout.isatty():
        ruled = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for k, word in enumerate(head):
            ruled.add_column(word, justify="right" if k else "left", overflow="fold")
        for k, cells in enumerate(rows):
            ruled.add_row(*cells, style="bold" if k == bold else None)
        Console().print(ruled)
        return
    widths = [max(map(len, cells)) for cells in zip(head, *rows, strict=True)]
    for cells in [head, *rows]:
        sys.stdout.write(
            "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() + "\n"
        )
