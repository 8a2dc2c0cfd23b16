"""Runs command lines and functions that must fail with one line."""

from collections.abc import Callable

import pytest

from t2i.cli import app
from t2i.errors import InputError

Command = Callable[..., tuple[int, str, str]]
Lines = Callable[..., tuple[int, list[str], list[str]]]


def command_line(capsys: pytest.CaptureFixture[str], *words: str) -> Command:
    """Returns a function that runs `t2i WORDS ARGV` and returns (exit status, stdout, stderr)."""

    def call(*argv: object) -> tuple[int, str, str]:
        status = app.main([*words, *map(str, argv)])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def command_lines(capsys: pytest.CaptureFixture[str], *words: str) -> Lines:
    """Returns a function like that of `command_line` that returns lists of lines."""
    command = command_line(capsys, *words)

    def call(*argv: object) -> tuple[int, list[str], list[str]]:
        status, out, err = command(*argv)
        return status, out.splitlines(), err.splitlines()

    return call


def error_of(call: Callable[[], object]) -> str:
    """Returns the message of the InputError that `call` raises, which must be one line."""
    with pytest.raises(InputError) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)
