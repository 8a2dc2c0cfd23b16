"""WebDataset tar shards, as img2dataset and `t2i data pack` write them: `shards:/path/{00000..00099}.tar`.

An index of the offsets of images gives random access to plain tars. Training therefore sees images in the same order as from
any other data, and resumes at any sample. docs/data.md shows the tree.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from t2i.data import View
from t2i.data.cached import stamp_of
from t2i.data.packed.dataset import PackedImages, PackedOptions, names_below, parts_of, stamp, warn_skipped
from t2i.data.packed.remote import Place, RemoteFile, find, is_remote, matching
from t2i.data.packed.tar import index_tar
from t2i.data.splits import split_of_name
from t2i.errors import InputError
from t2i.files import at_home, contents, open_regular
from t2i.images import MAX_BYTES, BrokenImage
from t2i.names import shown, some, verb

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_SHARDS = 100_000
INDEXED_AT_ONCE = 4  # number of remote shards that are copied to temporary files at one time
_NEWER = "the shard is newer than its index; start again to index it again"


class Shards(PackedImages):
    """One split of the samples of tar shards; the `data` of the parts are (shard, its stamp when it was opened)."""

    def source(self, i: int) -> bytes:
        part, row = self.locate(i)
        path, opened_as = part.data
        offset, size, digest = (part.index[name][row].as_py() for name in ("offset", "size", "sha256"))
        if size > MAX_BYTES:
            raise BrokenImage(f"more than the limit of {MAX_BYTES:,} bytes")
        if isinstance(path, RemoteFile):
            if hashlib.sha256(data := path.read(offset, size)).digest() != digest:
                raise BrokenImage(_NEWER)
            return data
        try:
            with open_regular(path) as file:
                if stamp_of(path) != opened_as[1:]:
                    raise BrokenImage(_NEWER)
                return os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise BrokenImage(f"cannot be read: {error.strerror or error}") from error

    def place(self, i: int) -> str:
        part, _ = self.locate(i)
        return f"{shown(part.data[1][0])}: {self.ids[i].rpartition('/')[2]}"


def open_shards(place: str, split: str, view: View, options: PackedOptions) -> Shards:
    """Opens one split of the shards that match a pattern, or of all in a folder and its subfolders.

    Args:
        place: `/path/{00000..00099}.tar`, `/path/*.tar`, one tar, or a folder; each also as a URL, `s3://bucket/path/...`.
    """
    paths = _find_shards(place)
    with ThreadPoolExecutor(INDEXED_AT_ONCE if isinstance(paths[0], RemoteFile) else 1) as pool:
        tables = pool.map(lambda path: index_tar(path, options.image.lower(), options.text), paths)
        parts = [
            part
            for name, table, path in zip(names_below([Path(str(path)) for path in paths]), tables, paths, strict=True)
            for part in parts_of(name, split_of_name(name), table, (path, stamp(path)))
        ]
    warn_skipped(parts, f"shards:{place}")
    return Shards(f"shards:{place}", split, view, parts, options.split)


def _find_shards(place: str) -> Sequence[Place]:
    """Returns the tar files of a place, in order.

    Raises:
        InputError: there are none, or some of a range do not exist; the message names the first.
    """
    if is_remote(place):
        return _find_remote(place)
    if place.startswith("pipe:"):
        raise InputError(
            f"shards {place!r} cannot be read through a pipe; copy them to a local disk and name them there"
        )
    path = at_home(place)
    if path.is_dir():
        found = sorted([*path.glob("*.tar"), *path.glob("*/*.tar")])
        if not found:
            raise InputError(f"no shards in {shown(path)}: looked for *.tar and */*.tar; found {contents(path)}")
        return found
    if not _BRACES.search(place) and any(sign in place for sign in "*?["):
        found = sorted(path.parent.glob(path.name))
        if not found:
            raise InputError(f"no shards match {place!r}; name them as /path/{{00000..00099}}.tar or by their folder")
        return found
    paths = [at_home(name) for name in expand_braces(place)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        near = missing[0].parent
        found = (
            (some(sorted(p.name for p in near.glob("*.tar")), 3) or "no .tar") if near.is_dir() else "no such folder"
        )
        many = f" ({len(missing):,} of {len(paths):,} {verb(len(missing))} missing)" if len(paths) > 1 else ""
        raise InputError(
            f"shard {shown(missing[0])} is not there{many}; found {found}; name a range of existing shards"
        )
    return paths


def _find_remote(place: str) -> list[RemoteFile]:
    listed = not _BRACES.search(place) and any(sign in place for sign in "*?[")
    if listed or not place.endswith(".tar"):
        folder = place.rstrip("/")
        return matching(*([place] if listed else [f"{folder}/*.tar", f"{folder}/*/*.tar"]))
    return find(expand_braces(place))


def expand_braces(pattern: str) -> list[str]:
    """Expands `a{08..10}` to a08, a09, a10, and `a{x,y}` to ax, ay; with several braces, the last one varies fastest.

    Raises:
        InputError: a brace is neither a range nor a list, runs backwards, or expands to over 100,000 names.
    """
    names = [""]
    end = 0
    for match in _BRACES.finditer(pattern):
        words = _words(match[1], pattern)
        if len(names) * len(words) > MAX_SHARDS:
            raise InputError(f"shards {pattern!r} are over {MAX_SHARDS:,} files; name fewer")
        names = [name + pattern[end : match.start()] + word for name in names for word in words]
        end = match.end()
    return [name + pattern[end:] for name in names]


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
