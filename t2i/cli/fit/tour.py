"""Carries a plan out: each command with a heading, what is finished is not done again, and a page of all of it."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from t2i.cli.fit.record import Run, Step, Timings
from t2i.errors import InputError

NEIGHBOURS = 5000  # training images among which the page looks for those nearest to generated ones


def say(text: str) -> None:
    print(text, flush=True)  # before the output of the next command


def make_folder(folder: Path) -> None:
    """Makes the folder of a plan; InputError where a file is in its way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder} is no folder and cannot become one; name another with --run-dir") from None


def carry_out(tour: Sequence[Step], record: Timings, command: Run) -> None:
    """Runs what is not finished yet by `command`; SystemExit with the status of one that failed."""
    for number, step in enumerate(tour, 1):
        heading = f"[{number}/{len(tour)}] {step.name}"
        if record.finished(step):
            say(f"{heading}: finished before")
            continue
        say(f"{heading}: {step.command}")
        status = record.run(step, command)
        if status:
            say(f"{heading}: stopped with status {status}; the same command goes on from here")
            raise SystemExit(status)
        say(f"{heading}: {record.seconds(step):.0f} s")


def write_page(
    page: Path,
    runs: Sequence[Path],
    tour: Sequence[Step],
    record: Timings,
    helpers: Sequence[Path],
    following: Mapping[str, str],
    **options: Any,
) -> None:
    """Writes the page of `t2i eval report` with the commands that made what it shows.

    Args:
        runs: the generators, a column each. helpers: further runs that took part.
        following: what to try next -> the command.
        options: of the report, as `ReportOptions` has them.
    """
    from t2i.console import shown_progress
    from t2i.report.options import ReportOptions
    from t2i.report.page import Extras, Part, make_report

    parts = [Part(step.name, record.command(step), record.seconds(step)) for step in tour]
    with shown_progress(" images") as tick:
        wanted = ReportOptions(runs=tuple(map(str, runs)), neighbours=NEIGHBOURS, **options)
        make_report(wanted, page, tick, Extras(helpers, parts, following))


def command_here() -> str:
    """`t2i` if the shell finds this installation's, else the path of it."""
    installed = Path(sys.executable).with_name("t2i")
    found = shutil.which("t2i")
    if not installed.exists() or (found and Path(found).resolve() == installed.resolve()):
        return "t2i"
    here = Path.cwd()
    return quote(str(installed.relative_to(here) if installed.is_relative_to(here) else installed))
