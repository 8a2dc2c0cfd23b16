"""Carries out a plan: runs each command that is not finished, and writes a page with all results."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from t2i.cli.fit.record import Run, Step, Timings
from t2i.errors import InputError

NEIGHBOURS = 5000  # training images that the page searches for nearest neighbours of generated ones


def say(text: str) -> None:
    print(text, flush=True)  # flushed, to precede the output of the next command


def make_folder(folder: Path) -> None:
    """Creates the folder of a plan; raises InputError if a file has that name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder} cannot be created, as a file has that name; name another with --run-dir") from None


def carry_out(tour: Sequence[Step], record: Timings, command: Run) -> None:
    """Runs the unfinished steps by `command`; raises SystemExit with the status of a step that fails."""
    for number, step in enumerate(tour, 1):
        heading = f"[{number}/{len(tour)}] {step.name}"
        if record.finished(step):
            say(f"{heading}: finished before")
            continue
        say(f"{heading}: {step.command}")
        status = record.run(step, command)
        if status:
            say(f"{heading}: stopped with status {status}; the same command continues from here")
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
    """Writes a page of `t2i eval report` that also lists the commands.

    Args:
        runs: the generators, one column each.
        helpers: further runs, such as tokenizers.
        following: what to try next -> the command.
        options: further values of `ReportOptions`.
    """
    from t2i.console import shown_progress
    from t2i.report.options import ReportOptions
    from t2i.report.page import Extras, Part, make_report

    parts = [Part(step.name, record.command(step), record.seconds(step)) for step in tour]
    with shown_progress(" images") as tick:
        report_options = ReportOptions(runs=tuple(map(str, runs)), neighbours=NEIGHBOURS, **options)
        make_report(report_options, page, tick, Extras(helpers, parts, following))


def command_here() -> str:
    """Returns `t2i` if the shell finds this installation's command, else its path."""
    installed = Path(sys.executable).with_name("t2i")
    on_path = shutil.which("t2i")
    if not installed.exists() or (on_path and Path(on_path).resolve() == installed.resolve()):
        return "t2i"
    here = Path.cwd()
    return quote(str(installed.relative_to(here) if installed.is_relative_to(here) else installed))
