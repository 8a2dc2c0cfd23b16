"""The exception for invalid input: the command line prints its message as one line and exits with status 2."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class InputError(ValueError):
    """Invalid input; the message names the value, the file and the fix."""


def reason_of(error: Exception) -> str:
    """Returns the type and the message of an exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@contextmanager
def os_errors(what: str, fix: str, *others: type[Exception]) -> Iterator[None]:
    """Converts an OSError in the block, or another of these errors, to an InputError with the message `what: reason; fix`."""
    try:
        yield
    except (OSError, *others) as error:
        raise InputError(f"{what}: {getattr(error, 'strerror', None) or error}; {fix}") from error


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
}


def plain(kind: str, message: str) -> str:
    """Returns pydantic's description of a problem in plain words: `must be a whole number`."""
    expected, _, problem = kind.partition("_")
    if expected in _KINDS and problem in ("type", "parsing", "parsing_size", "from_float"):
        return f"must be {_KINDS[expected]}"
    return re.sub(r"^(Value error|Assertion failed), ", "", message).replace("Input should", "must")


def first_problem(error: "ValidationError") -> str:
    """Returns the first problem of a pydantic model as `key: problem`."""
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {plain(problem['type'], problem['msg'])}"


class TruncationWarning(UserWarning):
    """Captions were longer than the encoder's limit; given once per `encode` call."""

    def __init__(self, count: int, name: str, limit: int):
        self.count = count
        self.limit = limit
        self.name = name
        super().__init__(
            f"{count:,} caption{'s are' if count > 1 else ' is'} longer than the {limit} tokens that the text encoder "
            f"{name} reads; the rest was cut off"
        )


def warn_truncated(count: int, name: str, limit: int) -> None:
    """Warns the caller of `encode` that `count` captions were cut off."""
    if count:
        warnings.warn(TruncationWarning(count, name, limit), stacklevel=3)
