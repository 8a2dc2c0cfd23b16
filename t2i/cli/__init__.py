"""The `t2i` command."""

import sys
from collections.abc import Sequence
from importlib import import_module


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; `argv` is like sys.argv[1:]."""
    return import_module("t2i.cli.app").main(argv)


def run_program(*words: str) -> None:
    """Runs the command of a program, for `python -m t2i.train.cgan` and similar calls."""
    sys.exit(main([*words, *sys.argv[1:]]))
