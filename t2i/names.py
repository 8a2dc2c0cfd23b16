"""Resolves `module:name`, suggests the nearest known name, and formats names and counts for messages."""

import difflib
import importlib.util
import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any


def nearest(word: str, words: Iterable[str]) -> str:
    """Returns ` (did you mean X?)` if a known word is similar, else an empty string."""
    close = difflib.get_close_matches(word, list(words), 1)
    return f" (did you mean {close[0]}?)" if close else ""


def shown(name: str | Path) -> str:
    """Returns a file name that fits on one line of a message: line ends and bytes that are not text are escaped."""
    name = str(name)
    return name if name.isprintable() else ascii(name)[1:-1]


def some(names: Sequence[str], most: int = 3) -> str:
    """Returns the first names of a list as text, e.g. `a.png, b.png, c.png and 4 more`."""
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + rest


def counted(count: float, noun: str) -> str:
    """Returns a count with its noun in singular or plural, e.g. `1 image`, `5,000 images`, `2 classes` or `1.5 minutes`."""
    several = "es" if noun.endswith(("s", "x", "ch", "sh")) else "s"
    shown_count = f"{int(count):,}" if count == int(count) else f"{count:g}"
    return f"{shown_count} {noun}{'' if count == 1 else several}"


def verb(count: float, one: str = "is", several: str = "are") -> str:
    """Returns the form of a verb for a count: `1 of 5 images is`, `2 of 5 images are`."""
    return one if count == 1 else several


def numbered(count: int, things: str) -> str:
    """Returns a count with a plural phrase, in singular if needed: `1 caption without an image` for `captions without ...`."""
    return f"{count:,} {re.sub(r'(?<=[a-z])s(?![a-z])', '', things, count=1) if count == 1 else things}"


def number(value: float | None, digits: int = 3) -> str:
    """Formats a value with `digits` significant digits, or as an integer if that needs an exponent; `not finite` for None."""
    if value is None:
        return "not finite"
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e+" in text and abs(value) < 1e6 else text


def brief(error: BaseException, most: int = 120) -> str:
    """Returns the first line of an error's message, cut to `most` characters; the name of its class if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:most]


def installed(module: str) -> bool:
    """Returns True if there is such a module; only its parents are imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent is missing
        return False


def resolve(target: str) -> Any:
    """Imports and returns the object `module:name`."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)
