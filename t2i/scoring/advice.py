"""Removes advice from error messages that names options which the running program does not have."""

import re
from collections.abc import Iterator
from typing import TypeVar

from t2i.config.options import Options, flag_of
from t2i.errors import InputError

Item = TypeVar("Item")

_FLAG = re.compile(r"--[a-z][a-z-]*")
_CLAUSE = re.compile(r"(; |, or |, )")  # separates a message from its advice, and pieces of advice


def only_own_options(items: Iterator[Item], options: type[Options]) -> Iterator[Item]:
    """Yields `items`; removes advice about other options from an `InputError` of the iterator."""
    try:
        yield from items
    except InputError as error:
        raise InputError(without_others(str(error), options)) from error


def without_others(message: str, options: type[Options]) -> str:
    """Returns the message without the clauses that name an option of another program."""
    flags = {flag_of(name, field) for name, field in options.model_fields.items()}
    first, *rest = _CLAUSE.split(message)
    clauses = zip(rest[::2], rest[1::2], strict=True)
    return first + "".join(joint + clause for joint, clause in clauses if set(_FLAG.findall(clause)) <= flags)
