"""Reads the classes of images from tables, JSON objects and metadata files."""

from collections.abc import Sequence
from typing import Any

LABEL = "label"  # the column of a table, and the key of a JSON object, with the classes of an image
Values = Sequence[tuple[str, ...] | None]  # the classes of each image, which may be none or several; None: unknown


def classes_in(value: Any) -> tuple[str, ...] | None:
    """Returns the classes in a value of LABEL, or None if it is empty.

    Raises:
        ValueError: the value is not a word, a whole number or a list of these.
    """
    if value is None or value == "":
        return None
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str | int) for one in values):
        raise ValueError(f"label {str(value)[:40]!r} is not a word, a whole number or a list of these")
    return tuple(dict.fromkeys(str(one).strip() for one in values))
