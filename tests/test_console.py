"""Lines on stderr."""

import warnings

import pytest

from t2i.console import plain_console, table, warnings_as_lines, warnings_of
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
    with warnings_as_lines(plain_console()):
        cut(3, 4)
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err.startswith("warning: 7 captions are longer than the 8 tokens")


@pytest.mark.parametrize("terminal", [True, False])
def test_names_are_printed_as_they_are(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code names of emoji, such as in `emoji:bomb`, and brackets are part of paths and captions."""
    name = "emoji:bomb: [b]a[/b]"
    with warnings_of(True):
        warnings.warn(name, stacklevel=1)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    table(["name"], [[name]])
    printed = capsys.readouterr()
    assert printed.err == f"warning: {name}\n" and name in printed.out


def test_a_part_of_a_command_does_not_repeat_its_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # two commands of one process
        with warnings_of(True):
            warnings.warn("the folder has an odd file", stacklevel=1)
            with warnings_as_lines(plain_console()):
                warnings.warn("the folder has an odd file", stacklevel=1)
                warnings.warn("another", stacklevel=1)
        lines = capsys.readouterr().err.splitlines()
        assert lines == ["warning: the folder has an odd file", "warning: another"]
