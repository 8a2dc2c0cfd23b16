"""WebDataset tar shards, as img2dataset and `t2i data pack` write them: `shards:/path/{00000..00099}.tar`.

An index of the place of each image makes plain tars random-access, so the order of training is the same permutation of
(seed, epoch) as for any other data, resumable at any sample. docs/data.md shows the tree.
"""

import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from t2i.data import View
from t2i.data.cached import facts_of, stamp_of
from t2i.data.packed.dataset import IndexedPart, PackedImages, stamp
from t2i.data.packed.remote import Place, RemoteFile, find, is_remote, matching
from t2i.data.packed.tar import index_tar
from t2i.data.splits import split_of_name
from t2i.errors import InputError
from t2i.files import open_regular
from t2i.images import MAX_BYTES, BrokenImage
from t2i.names import numbered, shown, some

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_SHARDS = 100_000
INDEXED_AT_ONCE = 4  # remote shards, each of which is copied to a temporary file


class Shards(PackedImages):
    """One split of the samples of some shards."""

    def __init__(
        self,
        address: str,
        split: str,
        view: View,
        parts: Sequence[IndexedPart],
        paths: Sequence[Place],
        train: str | None,
    ) -> None:
        super().__init__(address, split, view, parts, train)
        self._files = list(paths)
        self._indexed_as = [stamp(path) for path in paths]

    def source(self, i: int) -> bytes:
        part, row = self.locate(i)
        path = self._files[part]
        offset, size, digest = (self._parts[part].index[name][row].as_py() for name in ("offset", "size", "sha256"))
        if size > MAX_BYTES:
            raise BrokenImage(f"more than the limit of {MAX_BYTES:,} bytes")
        if isinstance(path, RemoteFile):
            if hashlib.sha256(data := path.read(offset, size)).digest() != digest:
                raise BrokenImage("the shard is newer than its index; start again, and it is indexed anew")
            return data
        try:
            with open_regular(path) as file:
                if stamp_of(path) != self._indexed_as[part][1:]:
                    raise BrokenImage("the shard is newer than its index; start again, and it is indexed anew")
                return os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise BrokenImage(f"cannot be read: {error.strerror or error}") from error

    def place(self, i: int) -> str:
        part, _ = self.locate(i)
        return f"{shown(self._indexed_as[part][0])}: {self.ids[i].rpartition('/')[2]}"


def open_shards(
    place: str, split: str, view: View, *, train: str | None = None, image: str = "", text: str = ""
) -> Shards:
    """Opens one split of the shards that a pattern names, or of all in a folder and the folders in it.

    Args:
        place: `/path/{00000..00099}.tar`, `/path/*.tar`, one tar, or a folder; each also as a URL, `s3://bucket/path/...`.
        train: the split that is read as `train`, by the names of shards or their folders.
        image: the kind of member that is the image, as `input.jpg`.
        text: the kind of member that holds the captions, or their name in the .json.

    Raises:
        InputError: a shard is not there, is not a plain tar or holds no captioned image; no such split.
    """
    paths = find_shards(place)
    names = _names([Path(str(path)) for path in paths])
    if isinstance(paths[0], RemoteFile):
        with ThreadPoolExecutor(INDEXED_AT_ONCE) as pool:
            tables = list(pool.map(lambda path: index_tar(path, image.lower(), text), paths))
    else:
        tables = [index_tar(path, image.lower(), text) for path in paths]
    parts = [IndexedPart(name, split_of_name(name), table) for name, table in zip(names, tables, strict=True)]
    _warn_left_out(parts, place)
    return Shards(f"shards:{place}", split, view, parts, paths, train)


def _names(paths: Sequence[Path]) -> list[str]:
    """Paths below the folder that all are in, without the suffix."""
    root = paths[0].parent if len({path.parent for path in paths}) == 1 else Path(os.path.commonpath(paths))
    return [path.relative_to(root).with_suffix("").as_posix() for path in paths]


def find_shards(place: str) -> Sequence[Place]:
    """Returns the tar files that a place means, in order.

    Raises:
        InputError: none, or not all of a range, are there; the message names the first.
    """
    if is_remote(place):
        return _find_remote(place)
    if place.startswith("pipe:"):
        raise InputError(f"shards {place!r} are elsewhere; copy them to a local disk and name them there")
    path = Path(place).expanduser()
    if path.is_dir():
        found = sorted([*path.glob("*.tar"), *path.glob("*/*.tar")])
        if not found:
            there = some(sorted(os.listdir(path)), 5) or "nothing"
            raise InputError(f"no shards in {shown(path)}: looked for *.tar and */*.tar; found {there}")
        return found
    if not _BRACES.search(place) and any(sign in place for sign in "*?["):
        found = sorted(path.parent.glob(path.name))
        if not found:
            raise InputError(f"no shards fit {place!r}; name them as /path/{{00000..00099}}.tar or by their folder")
        return found
    paths = [Path(name).expanduser() for name in expand_braces(place)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        near = missing[0].parent
        there = some(sorted(p.name for p in near.glob("*.tar")), 3) or "no .tar"
        there = there if near.is_dir() else "no such folder"
        many = f" ({len(missing):,} of {len(paths):,} are missing)" if len(paths) > 1 else ""
        raise InputError(f"shard {shown(missing[0])} is not there{many}; found {there}; name a range of those that are")
    return paths


def _find_remote(place: str) -> list[RemoteFile]:
    listed = not _BRACES.search(place) and any(sign in place for sign in "*?[")
    if listed or not place.endswith(".tar"):
        folder = place.rstrip("/")
        return matching(*([place] if listed else [f"{folder}/*.tar", f"{folder}/*/*.tar"]))
    return find(expand_braces(place))


def expand_braces(pattern: str) -> list[str]:
    """`a{08..10}` -> a08, a09, a10; `a{x,y}` -> ax, ay; several braces: all combinations, the last running fastest.

    Raises:
        InputError: a brace is no range and no list, runs backwards, or means over 100,000 names.
    """
    found = [""]
    at = 0
    for match in _BRACES.finditer(pattern):
        words = _words(match[1], pattern)
        if len(found) * len(words) > MAX_SHARDS:
            raise InputError(f"shards {pattern!r} means over {MAX_SHARDS:,} files; name fewer")
        found = [name + pattern[at : match.start()] + word for name in found for word in words]
        at = match.end()
    return [name + pattern[at:] for name in found]


def _words(brace: str, pattern: str) -> Sequence[str]:
    span = _RANGE.fullmatch(brace)
    if span is None:
        if "," not in brace:
            raise InputError(
                f"shards {pattern!r}: {{{brace}}} is neither a range as {{00000..00099}} nor a list as {{a,b}}"
            )
        return brace.split(",")
    first, last = int(span[1]), int(span[2])
    if not first <= last < first + MAX_SHARDS:
        raise InputError(f"shards {pattern!r}: {{{brace}}} must run upwards, over at most {MAX_SHARDS:,}")
    return [f"{number:0{len(span[1])}d}" for number in range(first, last + 1)]


def _warn_left_out(parts: Sequence[IndexedPart], place: str) -> None:
    """Warns once of all that the indices passed over, but members of other kinds, which many shards have."""
    total: Counter[str] = Counter()
    first: dict[str, str] = {}
    for part in parts:
        for what, count in facts_of(part.index).items():
            total[what] += count
            first.setdefault(what, part.name)
    told = [
        f"{numbered(count, what)} (first in {first[what]})" for what, count in total.items() if what != "other members"
    ]
    if told:
        warnings.warn(f"shards {place}: passed over {'; '.join(told)}", stacklevel=3)
