"""Lines on stderr."""

import warnings

import pytest
from rich.console import Console

from t2i.console import warnings_as_lines, warnings_of
from t2i.errors import warn_truncated


def cut(*counts: int) -> None:
    for count in counts:
        warn_truncated(count, "bow", 8)


def test_training_tells_at_once_what_is_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings_of(True):
        cut(3, 3)
        first = capsys.readouterr().err
        warnings.warn("something else", stacklevel=1)
    rest = capsys.readouterr().err
    assert first.startswith("warning: 3 captions are longer than the 8 tokens") and first.count("\n") == 1
    assert rest == "warning: something else\n"


def test_batches_are_told_once_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings_as_lines(Console(stderr=True)):
        cut(3, 4)
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err.startswith("warning: 7 captions are longer than the 8 tokens")
