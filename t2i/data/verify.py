"""Finds broken pictures before training: every file is decoded once, and what was found is kept in the cache directory.

An entry counts while the file's size and modification time stay as they were, so a second look at an unchanged folder
costs one `stat` a file. Nothing is written into the folder itself.
"""

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import PIL

from t2i import images
from t2i.data.paths import cache_dir

MIN_SIDE = 2  # a picture one pixel wide is a placeholder or a failed download
_RULES = f"1/{images.MAX_PIXELS}/{images.MAX_SIDE}/{images.MAX_BYTES}/{MIN_SIDE}/{PIL.__version__}"
_RACE_NS = 2_000_000_000  # a file this young may change again without a new time stamp (FAT keeps even seconds)
_REPORT_EVERY_S = 10.0
_log = logging.getLogger(__name__)


class Verified(NamedTuple):
    """What one file holds. `reason` is empty for a good picture; `sha256` is of the file's bytes."""

    size: int
    mtime_ns: int
    width: int = 0
    height: int = 0
    format: str = ""
    sha256: str = ""
    reason: str = ""
    lasting: bool = True  # False: a fault of reading, which may pass without the file changing


def workers() -> int:
    """Threads for decoding: Pillow releases the interpreter lock."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def verify(root: Path, files: Mapping[str, str], wanted: Sequence[str]) -> dict[str, Verified]:
    """Decodes the pictures `wanted` that are not known from before.

    Args:
        root: the folder.
        files: all pictures of the folder, id -> path under `root`; entries of other ids leave the cache.
        wanted: ids to verify, keys of `files`.

    Returns:
        one `Verified` for each id of `wanted`.
    """
    store = _store_of(root)
    known = _load(store)
    stats = {name: _stat(root / files[name]) for name in wanted}
    todo = [name for name in wanted if name not in known or known[name][:2] != stats[name]]
    if todo:
        try:
            _decode_all(root, files, todo, known)
        finally:  # an interrupt keeps what was done
            _save(store, {name: found for name, found in known.items() if name in files and _may_keep(found)})
    return {name: known[name] for name in wanted}


def _decode_all(root: Path, files: Mapping[str, str], todo: Sequence[str], known: dict[str, Verified]) -> None:
    said = time.monotonic()
    _log.info("verifying %d pictures in %s", len(todo), root)
    with ThreadPoolExecutor(workers()) as pool:
        for start in range(0, len(todo), 256):
            names = todo[start : start + 256]
            known.update(zip(names, pool.map(_verify_one, [root / files[name] for name in names]), strict=True))
            if time.monotonic() - said > _REPORT_EVERY_S:
                said = time.monotonic()
                _log.info("verified %d of %d pictures", start + len(names), len(todo))


def _verify_one(path: Path) -> Verified:
    size, mtime_ns = _stat(path)
    try:
        data = images.read_limited(path)
    except OSError as error:
        return Verified(size, mtime_ns, reason=f"cannot be read: {error.strerror or error}", lasting=False)
    found = Verified(size, mtime_ns, sha256=hashlib.sha256(data).hexdigest())
    try:
        picture = images.decode(data)
    except images.BrokenImage as error:
        return found._replace(reason=str(error))
    width, height = picture.size
    small = f"{width}x{height} pixels: too small to be a picture" if min(width, height) < MIN_SIDE else ""
    return found._replace(width=width, height=height, format=picture.format or "", reason=small)


def _stat(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _may_keep(found: Verified) -> bool:
    return found.lasting and abs(time.time_ns() - found.mtime_ns) > _RACE_NS


def _store_of(root: Path) -> Path:
    name = hashlib.sha256(str(root.resolve()).encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return cache_dir() / "folders" / f"{name}.json"


def _load(store: Path) -> dict[str, Verified]:
    try:
        kept = json.loads(store.read_text("utf-8"))
        if kept["rules"] != _RULES:
            return {}
        return {name: Verified(*entry) for name, entry in kept["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # absent or damaged: verify again


def _save(store: Path, known: dict[str, Verified]) -> None:
    partial = store.with_name(f"{store.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"rules": _RULES, "files": known}), "utf-8")
        os.replace(partial, store)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        warnings.warn(
            f"cannot write {store} ({error.strerror or error}): pictures will be verified again next time; "
            "set T2I_CACHE to a folder that can be written",
            stacklevel=2,
        )
