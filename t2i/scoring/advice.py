"""Error messages that advise no option which the program lacks: several programs share one library."""

import re
from collections.abc import Iterator
from typing import TypeVar

from t2i.config.options import Options, flag_of
from t2i.errors import InputError

Item = TypeVar("Item")

_FLAG = re.compile(r"--[a-z][a-z-]*")
_CLAUSE = re.compile(r"(; |, or |, )")  # what may follow one: advice, or another piece of it


def only_own_options(items: Iterator[Item], options: type[Options]) -> Iterator[Item]:
    """Yields `items`; an `InputError` in between loses the advice to use options that these are not."""
    try:
        yield from items
    except InputError as error:
        raise InputError(without_others(str(error), options)) from error


def without_others(message: str, options: type[Options]) -> str:
    """A message without the clauses that name an option of another program."""
    own = {flag_of(name, field) for name, field in options.model_fields.items()}
    parts = _CLAUSE.split(message)
    kept = parts[0]
    for joint, clause in zip(parts[1::2], parts[2::2], strict=True):
        if set(_FLAG.findall(clause)) <= own:
            kept += joint + clause
    return kept
