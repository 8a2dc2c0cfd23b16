"""Whether a resumed run finds what it was started with: its data, and the frozen networks that it keeps copies of.

The manifest of every checkpoint holds a digest of each. Contents decide: a folder may be moved or spelled otherwise.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2i.data import Dataset
from t2i.errors import InputError
from t2i.names import counted


def data_digest(dataset: Dataset) -> dict[str, Any]:
    """Returns what tells one split of a data set from another, as JSON values: counts, and digests over all rows."""
    ids, captions = hashlib.sha256(dataset.split.encode()), hashlib.sha256()
    number = 0
    for name, options in zip(dataset.ids, dataset.captions, strict=True):
        ids.update(json.dumps(name).encode())
        captions.update(json.dumps(list(options)).encode())
        number += len(options)
    counts = {"images": len(dataset), "number_of_captions": number}
    return counts | {"ids": ids.hexdigest(), "captions": captions.hexdigest(), "contents": dataset.digest()}


def refuse_other_data(directory: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises InputError when the run in `directory` was started with other data than it finds now."""
    changed = [
        f"{before.get(key):,} {what}, now {now[key]:,}"
        for key, what in (("images", "images"), ("number_of_captions", "captions"))
        if before.get(key) != now[key]
    ]
    changed += [
        f"other {what}"
        for key, what in (("ids", "names of images"), ("captions", "captions"))
        if before.get(key) != now[key]
    ]
    if not changed and before.get("contents") != now["contents"]:
        changed.append("other contents of image files")
    if changed:
        raise InputError(
            f"the data is not what run {directory} was started with ({'; '.join(changed)}); bring it back to resume, or "
            "name another run directory to train on the new data"
        )


def refuse_other_digest(directory: Path, what: str, before: str | None, now: str | None) -> None:
    """Raises InputError when a frozen part of the run in `directory` is not the one it was started with."""
    if before != now:
        raise InputError(
            f"the {what} is not what run {directory} was started with (digest {_short(before)}, now {_short(now)}); bring "
            "the old one back to resume, or name another run directory"
        )


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]


def describe_data(found: Mapping[str, Any]) -> str:
    """Returns a data set in a few words, for processes that were given different ones."""
    return f"{describe_counts(found)}, {str(found['ids'])[:8]}"


def describe_counts(found: Mapping[str, Any]) -> str:
    """Returns how much a data set holds."""
    return f"{counted(found['images'], 'image')}, {counted(found['number_of_captions'], 'caption')}"
