"""Labels of a folder: the names of its class folders, and the entries `label` and `labels` of its metadata."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from t2i.data.folders.index import class_of, resolve_name
from t2i.data.folders.metadata import METADATA_NAMES, read_further
from t2i.data.splits import SPLIT_FOLDERS
from t2i.data.tools.classes import LABEL, Values, by_label, labels_in
from t2i.errors import InputError


def folder_labels(root: Path, ids: Sequence[str]) -> dict[str, Callable[[], Values]]:
    """Returns what reads the label `class` and those of the metadata, if the folder has them.

    Reading `label` raises InputError if one is not a word, a whole number or a list of these.
    """
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    problem = ""
    for where, name, entries in _rows(root, ids):
        try:
            found[name] = labels_in(entries)
        except ValueError as error:
            problem = problem or f"{where}: {error}"

    def refuse() -> Values:
        raise InputError(problem)

    rows = [{"class": (word,)} if (word := class_of(name)) else {} for name in ids]
    labels = by_label([own | found.get(name, {}) for name, own in zip(ids, rows, strict=True)])
    return labels | ({LABEL: refuse} if problem else {})


def further_entries(root: Path, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the entries of each image's metadata beside its captions and split."""
    found = {name: entries for _, name, entries in _rows(root, ids)}
    return [found.get(name, {}) for name in ids]


def _rows(root: Path, ids: Sequence[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields (place for messages, id, entries) of the metadata at the top and in the split folders."""
    known = set(ids)
    for folder in ("", *SPLIT_FOLDERS):
        for path in (root / folder / name for name in METADATA_NAMES):
            for number, file_name, entries in read_further(path) if path.is_file() else ():
                yield f"{path} row {number}", resolve_name(known, folder, file_name), entries
