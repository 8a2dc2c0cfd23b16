"""Reads the classes of images from tables, JSON objects and metadata files, and the entries that keep them in new data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t2i.errors import InputError

LABEL = "label"  # the column of a table, and the key of a JSON object, with the classes of an image
LABELS = "labels"  # the key of an object with the classes of an image by the name of each label, e.g. {"class": "tern"}
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


def classes_or_none(value: Any) -> tuple[str, ...] | None:
    """Returns the classes in a value, or None if it has none or is not about classes."""
    try:
        return classes_in(value)
    except ValueError:
        return None


def labels_in(row: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Returns the classes of an image by the name of the label, from the entries LABEL and LABELS of a row.

    Raises:
        ValueError: the value of LABEL is not a word, a whole number or a list of these.
    """
    found = {LABEL: classes_in(row.get(LABEL))}
    found |= {name: classes_or_none(value) for name, value in _object(row.get(LABELS)).items()}
    return {name: classes for name, classes in found.items() if classes is not None}


def by_label(rows: Sequence[Mapping[str, tuple[str, ...]]]) -> dict[str, Callable[[], Values]]:
    """Returns functions that return the classes of each image, by the name of the label, from the labels of each image."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: lambda name=name: [row.get(name) for row in rows] for name in names}


def entries_of(dataset: Any) -> list[dict[str, Any]]:
    """Returns what a copy of the data says of each image beside its captions: the labels, and further entries of its metadata."""
    entries = [dict(own) for own in getattr(dataset, "metadata", None) or [{}] * len(dataset)]
    for name, read in (getattr(dataset, "labels", None) or {}).items():
        try:
            values = read()
        except InputError:  # a label that is not one, e.g. a fraction: it stays as the metadata has it
            continue
        single = all(own is None or len(own) == 1 for own in values)  # else all are lists, as tables need one type
        for entry, own in zip(entries, values, strict=True):
            if own is not None:
                plain = own[0] if single else list(own)
                entry |= {LABEL: plain} if name == LABEL else {LABELS: _object(entry.get(LABELS)) | {name: plain}}
    return entries


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
