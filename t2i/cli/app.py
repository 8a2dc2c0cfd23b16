"""The `t2i` command: the table of commands, and the handling of errors.

Exit status: 0 success; 2 invalid input, explained in one line; 85 a run that stopped early and that the same command resumes;
130 interrupted. Any other error is a bug and shows its traceback.
"""

import errno
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from t2i import __version__
from t2i.cli.environment import is_first, keep_freed_memory
from t2i.cli.options import Command, group
from t2i.errors import InputError

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
_NUMBER = re.compile(r"must be a valid (integer|number)(, unable to parse string as an? \w+)?")
PATIENCE_SECONDS = 5.0  # torchrun ends the other processes within this time after the first one stops

DATA = group(
    "Check, export, caption and rewrite images.",
    {
        "export": Command("t2i.cli.data:ExportOptions", "t2i.cli.data:export"),
        "check": Command("t2i.cli.data:CheckOptions", "t2i.cli.data:check"),
        "filter": Command("t2i.cli.data:FilterOptions", "t2i.cli.data:filter_data"),
        "split": Command("t2i.cli.data:SplitOptions", "t2i.cli.data:split_data"),
        "pack": Command("t2i.cli.data:PackOptions", "t2i.cli.data:pack_data"),
        "caption": Command("t2i.cli.data:CaptionOptions", "t2i.cli.data:caption_data"),
    },
)
CACHE = group(
    "Show or prune the cache.",
    {
        "list": Command("t2i.cli.cache:CacheListOptions", "t2i.cli.cache:list_cache"),
        "prune": Command("t2i.cli.cache:PruneOptions", "t2i.cli.cache:prune_cache"),
    },
)
EVAL = group(
    "Score runs and folders of images.",
    {
        "score": Command("t2i.scoring.options:ScoreOptions", "t2i.eval.score:main"),
        "reference": Command("t2i.scoring.options:ReferenceOptions", "t2i.eval.reference:main"),
        "compare": Command("t2i.scoring.options:CompareOptions", "t2i.eval.compare:main"),
        "report": Command("t2i.report.options:ReportOptions", "t2i.eval.report:main"),
        "tokenizer": Command("t2i.scoring.options:TokenizerOptions", "t2i.eval.tokenizer:main"),
        "captions": Command("t2i.scoring.options:CaptionsOptions", "t2i.eval.captions:main"),
        "privacy": Command("t2i.privacy.options:PrivacyOptions", "t2i.eval.privacy:main"),
        "classify": Command("t2i.scoring.options:ClassifyOptions", "t2i.eval.classify:main"),
        "retrieval": Command("t2i.retrieval.options:RetrievalOptions", "t2i.eval.retrieval:main"),
        "sweep": Command("t2i.scoring.options:SweepOptions", "t2i.eval.sweep:main"),
    },
)
CONFIG = group(
    "Show and compare configs without training.",
    {
        "show": Command("t2i.cli.config:ShowOptions", "t2i.cli.config:show"),
        "schema": Command("t2i.cli.config:SchemaOptions", "t2i.cli.config:schema"),
        "diff": Command("t2i.cli.config:DiffOptions", "t2i.cli.config:diff"),
        "list": Command("t2i.cli.config:ListOptions", "t2i.cli.config:list_configs"),
    },
)
app = group(
    "Train, sample and score text-to-image generators.",
    {
        "fit": Command("t2i.cli.fit.program:FitOptions", "t2i.cli.fit.program:main"),
        "train": Command("t2i.cli.train:TrainOptions", "t2i.cli.train:main"),
        "sample": Command("t2i.sampling.options:SampleOptions", "t2i.sample.images:main"),
        "web": Command("t2i.web.options:WebOptions", "t2i.sample.web:main"),
        "read": Command("t2i.reader.options:ReadOptions", "t2i.sample.read:main"),
        "search": Command("t2i.retrieval.options:SearchOptions", "t2i.sample.search:main"),
        "explain": Command("t2i.explain.options:ExplainOptions", "t2i.eval.explain:main"),
        "export": Command("t2i.export.options:ModelExportOptions", "t2i.eval.export:main"),
        "eval": EVAL,
        "data": DATA,
        "config": CONFIG,
        "cache": CACHE,
        "doctor": Command("t2i.cli.doctor:DoctorOptions", "t2i.cli.doctor:main"),
        "quickstart": Command("t2i.cli.quickstart:QuickstartOptions", "t2i.cli.quickstart:main"),
    },
    completion=True,
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"t2i {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; `argv` is like sys.argv[1:]."""
    # Spinning OpenMP threads can be 18 times slower next to one busy process; torch reads this setting on import.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # With a short spin before sleeping, small steps on 2 free cores are 1.6 times as fast as without (LOG.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    keep_freed_memory()
    try:
        return typer.main.get_command(app).main(argv, prog_name="t2i", standalone_mode=False) or 0
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    except InputError as error:
        problem = str(error)
    except OSError as error:
        problem = _disk_error(error)
    except Exception as error:
        # an attribute of click's usage errors, whichever package provides click
        if not hasattr(error, "format_message"):
            raise
        problem = _usage_error(error)
    if problem:
        report(problem)
    return 2


def report(problem: str) -> None:
    """Prints an error once, even if torchrun started several processes.

    All processes usually have the same error. The first one prints it and stops, whereupon torchrun ends the others; a process
    that is still alive after a while has an error of its own.
    """
    if not is_first():
        time.sleep(PATIENCE_SECONDS)
        problem = f"process {os.environ['RANK']}: {problem}"
    print(f"error: {problem}", file=sys.stderr)


def _disk_error(error: OSError) -> str:
    where = str(error.filename or f"while working in {Path.cwd()}")
    if error.errno == errno.ENAMETOOLONG:
        return f"{where[:60]}... is too long for the name of a file or folder; use a shorter one"
    if error.errno in DISK_ERRORS:
        return f"{where}: {os.strerror(error.errno)}; free some space or name another folder"
    raise error


def _usage_error(error: Any) -> str:
    """Returns the error in one line; an empty string if the help was printed instead."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return ""
    message = " ".join(error.format_message().split()).rstrip(".")
    message = message.replace("Input should ", "must ").replace("Value error, ", "")
    message = _NUMBER.sub(lambda match: f"must be a{' whole' * (match[1] == 'integer')} number", message)
    command = f"{error.ctx.command_path} --help" if getattr(error, "ctx", None) else "t2i --help"
    return f"{message[:1].lower()}{message[1:]}; see {command}"
