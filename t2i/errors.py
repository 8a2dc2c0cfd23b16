"""The exception for invalid input: the command line prints its message as one line and exits with status 2."""

import warnings


class InputError(ValueError):
    """Invalid input; the message names the value, the file and the fix."""


def reason_of(error: Exception) -> str:
    """Returns the type and the message of an exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


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
