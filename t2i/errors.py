"""The one exception for mistakes of the user: the command line prints its message in one line and exits with status 2."""

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class InputError(ValueError):
    """Bad input: the message names the value, the file and the fix."""


class TruncationWarning(UserWarning):
    """Captions were longer than the encoder reads; one warning an `encode` call."""

    def __init__(self, count: int, name: str, limit: int):
        self.count = count
        self.limit = limit
        self.name = name
        super().__init__(
            f"{count:,} caption{'s are' if count > 1 else ' is'} longer than the {limit} tokens that the text encoder "
            f"{name} reads; the rest was cut off"
        )


def warn_truncated(count: int, name: str, limit: int) -> None:
    """Warns the caller of `encode` when `count` captions were cut."""
    if count:
        warnings.warn(TruncationWarning(count, name, limit), stacklevel=3)
