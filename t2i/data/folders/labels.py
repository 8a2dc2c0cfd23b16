"""Labels of a folder: the names of its class folders, and the column `label` of its metadata."""

from collections.abc import Callable, Sequence
from pathlib import Path

from t2i.data.folders.index import class_of, resolve_name
from t2i.data.folders.metadata import METADATA_NAMES, has_labels, read_labels
from t2i.data.splits import SPLIT_FOLDERS
from t2i.data.tools.classes import Values


def folder_labels(root: Path, ids: Sequence[str]) -> dict[str, Callable[[], Values]]:
    """Returns what reads the labels `class` and `label`, if the folder has them.

    Metadata files are read at the top and in the split folders.
    """
    labels: dict[str, Callable[[], Values]] = {}
    if any(class_of(name) for name in ids):
        labels["class"] = lambda: [(word,) if (word := class_of(name)) else None for name in ids]
    places = ["", *(name for name in SPLIT_FOLDERS if (root / name).is_dir())]
    files = [(place, path) for place in places for name in METADATA_NAMES if (path := root / place / name).is_file()]
    files = [(place, path) for place, path in files if has_labels(path)]
    if files:
        labels["label"] = lambda: _column(files, ids)
    return labels


def _column(files: Sequence[tuple[str, Path]], ids: Sequence[str]) -> Values:
    known = set(ids)
    values = {resolve_name(known, place, name): own for place, path in files for name, own in read_labels(path)}
    return [values.get(name) for name in ids]
