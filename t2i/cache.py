"""Finds the cache directory, writes its shards, lists it and prunes it (`t2i cache list`, `t2i cache prune`).

All files can be created again, and no file depends on another: pruning may be interrupted at any time, and a process that has
a deleted file open can still read it.
"""

import os
import re
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from safetensors import SafetensorError, safe_open

from t2i.errors import InputError, os_errors
from t2i.files import at_home, new_file, open_regular

if TYPE_CHECKING:
    from torch import Tensor

# what the folders of the cache hold
KINDS = {
    "text": "features of captions",
    "features": "features of images that were searched",
    "codes": "codes of images",
    "index": "facts about images: t2i data check",
    "folders": "names and captions of large folders",
    "shards": "positions of images in tar files",
    "tables": "images of parquet files and of the hub",
    "emoji": "rendered emoji",
    "looks": "appearance of training images",
}


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([mhdw])", re.IGNORECASE)
_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


class Entry(NamedTuple):
    """All cached files of one data set or one encoder."""

    kind: str
    name: str
    files: int
    bytes: int
    used: float  # time of the last use of any of the files, in seconds since the epoch


class Pruned(NamedTuple):
    files: int
    bytes: int
    left: int  # bytes


def entries() -> list[Entry]:
    """Lists the cache; recently used entries come first."""
    groups: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for path, size, used in _files():
        kind, name, *_ = path.relative_to(cache_dir()).parts + ("",)
        groups.setdefault((kind, Path(name).stem), []).append((size, used))
    rows = [
        Entry(kind, name, len(files), sum(size for size, _ in files), max(used for _, used in files))
        for (kind, name), files in groups.items()
    ]
    return sorted(rows, key=lambda row: -row.used)


def prune(max_size: str | None = None, older_than: str | None = None) -> Pruned:
    """Removes files that were not used for a given time, then the least recently used ones until the cache is small enough.

    Args:
        max_size: maximum size of the remaining files, e.g. `10GB` or `500MB`.
        older_than: removes all files that were not used for this long, e.g. `30d` or `12h`.

    Raises:
        InputError: both are None, one is not valid, or a file cannot be removed.
    """
    if max_size is None and older_than is None:
        raise InputError("nothing to prune by; name --max-size 10GB, --older-than 30d or both")
    most = None if max_size is None else parse_size(max_size)
    oldest = None if older_than is None else time.time() - parse_age(older_than)
    files = sorted(_files(), key=lambda row: row[2])
    left = sum(size for _, size, _ in files)
    count = gone = 0
    for path, size, used in files:
        if not (oldest is not None and used < oldest or most is not None and left > most):
            continue
        with os_errors(f"cannot remove {path}", "check its permissions"):
            path.unlink(missing_ok=True)
        count, gone, left = count + 1, gone + size, left - size
        with suppress(OSError):  # still holds files
            path.parent.rmdir()
    return Pruned(count, gone, left)


def _files() -> Iterator[tuple[Path, int, float]]:
    """Yields (file, bytes, time of last use) of the known kinds; other files are ignored."""
    for kind in KINDS:
        for path in (cache_dir() / kind).rglob("*"):
            with suppress(OSError):  # removed meanwhile
                status = path.lstat()
                # files that are being written end in .tmp; one that is a day old was left by a killed process
                written = path.suffix == ".tmp" and time.time() - status.st_mtime < _SECONDS["d"]
                if path.is_file() and not path.is_symlink() and not written:
                    yield path, status.st_size, max(status.st_mtime, status.st_atime)


def parse_size(text: str) -> int:
    """Converts `10GB` to bytes, where 1 GB is 10^9 bytes."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"--max-size {text!r} is not a size; write it as 10GB or 500MB")
    return int(float(match[1]) * 1000 ** " kmgt".index(match[2].lower() or " "))


def parse_age(text: str) -> float:
    """Converts `30d` to seconds."""
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"--older-than {text!r} is not an age; write it as 30d, 12h or 2w")
    return float(match[1]) * _SECONDS[match[2].lower()]


_STALE_SECONDS = 24 * 3600


def checksum(tensors: dict[str, "Tensor"]) -> str:
    """Returns the CRC-32 of the bytes of all tensors, in the order of their names."""
    import torch

    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def write_shard(path: Path, tensors: dict[str, "Tensor"], **facts: str) -> None:
    """Writes one shard with a checksum, atomically.

    Args:
        facts: entries of the header beside the checksum.

    Raises:
        InputError: the disk is full or not writable.
    """
    from safetensors.torch import save

    with writing_to(path.parent):
        _remove_leftovers(path.parent)
        with new_file(path, durable=True) as temporary:
            temporary.write_bytes(save(tensors, metadata={"crc32": checksum(tensors), **facts}))


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Creates a folder of the cache, and converts errors of writing in the block to InputError."""
    with os_errors(f"cannot write the cache {folder}", "free some space or set T2I_CACHE", SafetensorError):
        folder.mkdir(parents=True, exist_ok=True)
        yield


def read_shard(
    path: Path, cache: str, check: Callable[[dict[str, "Tensor"]], bool]
) -> tuple[dict[str, "Tensor"], dict[str, str]] | None:
    """Returns tensors, memory-mapped, and header of a shard; None if it is not needed, or is damaged and therefore deleted.

    Args:
        cache: name of the cache, for the warning about a damaged shard.
        check: returns False if the shard is not needed; raises ValueError or KeyError for unexpected tensors.
    """
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            header = file.metadata() or {}
        if not check(tensors):
            return None
        if header.get("crc32") != checksum(tensors):
            raise ValueError("its checksum is wrong")
        return tensors, header
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        warnings.warn(f"{cache} cache: {path} is damaged ({error}); its contents are computed again", stacklevel=5)
        with suppress(OSError):
            path.unlink()
        return None


def _remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of killed writers, which are older than a day."""
    for leftover in folder.glob("*.tmp"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                leftover.unlink()


def cache_dir() -> Path:
    """Returns the cache directory: the environment variable T2I_CACHE, or ~/.cache/t2i. It may not exist."""
    named = os.environ.get("T2I_CACHE")
    return at_home(named) if named else Path.home() / ".cache" / "t2i"
