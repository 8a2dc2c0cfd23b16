"""Data sets whose images lie inside larger files: tar shards, tables. An index of each file is made once and kept.

An index is a table in the cache directory (cached.py), memory-mapped: a million rows open at once, take no memory of their own,
and are shared by all workers. It has a row for each image: `key`, `captions` (cleaned, at least one), `sha256` of the image's
bytes, and what finds the bytes. Its name hashes the file's path, size and times, so that one that is older than the file is
never read. A row may also have `label`, the classes of its image. The folder may be deleted at any time.
"""

import hashlib
import json
import logging
import os
import time
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.cache import cache_dir
from t2i.data import View
from t2i.data.cached import ArrowColumn, Keep, read_table, stamp_of, write_table
from t2i.data.captions import REPLACED
from t2i.data.encoded import EncodedImages
from t2i.data.packed.remote import Place, find, locked
from t2i.data.splits import SEEDED_SHARES, SPLIT_FOLDERS, SPLITS, VAL_SHARE, assign_splits
from t2i.data.tools.classes import LABEL, Values
from t2i.data.verify import known_broken, warn_damaged
from t2i.errors import InputError
from t2i.names import counted, nearest, numbered

if TYPE_CHECKING:
    import pyarrow as pa


FORMAT = 3  # raised when the same file comes to give other rows, as by another cleaning of captions


_log = logging.getLogger(__name__)


class IndexedPart(NamedTuple):
    """One file, or one table, of a data set."""

    name: str  # begins the ids of its images
    split: str | None  # by its published name
    index: "pa.Table"

    def id_of(self, key: str) -> str:
        return f"{self.name}/{key}" if self.name else key


class PackedImages(EncodedImages):
    """One split of a data set made of `IndexedPart`s; a subclass says where the bytes of a row are."""

    broken: Sequence[tuple[str, str]] = ()  # found by `t2i data check`: an opening decodes nothing

    def __init__(
        self, address: str, split: str, view: View, parts: Sequence[IndexedPart], train: str | None = None
    ) -> None:
        import pyarrow as pa
        import pyarrow.compute

        pc: Any = pyarrow.compute
        self._parts = list(parts)
        self._starts = list(accumulate((part.index.num_rows for part in parts), initial=0))
        table = pa.concat_tables([part.index.select(["key", "captions", "sha256", "label"]) for part in parts])
        self._sha256, self._label = table["sha256"], table["label"]
        part, rows = _choose_rows(parts, self._starts, split, view, train, address)
        self._rows = self._without_broken(rows, address, table)[: view.limit]
        flat = pc.list_flatten(table["captions"])
        warn_damaged(address, flat.filter(pc.match_substring(flat, REPLACED)).to_pylist())
        ids = ArrowColumn(table["key"], self._rows, self._id)
        super().__init__(address, part, view, ids, ArrowColumn(table["captions"], self._rows))

    def _without_broken(self, rows: NDArray[np.int64], address: str, table: "pa.Table") -> NDArray[np.int64]:
        import pyarrow as pa
        import pyarrow.compute as pc

        reasons = {bytes.fromhex(sha256): reason for sha256, reason in known_broken(address).items()}
        if not reasons:
            return rows
        contents = table["sha256"].take(rows)
        bad = pc.is_in(contents, pa.array(list(reasons), pa.binary(32))).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
        named = ArrowColumn(table["key"], rows[bad], self._id)
        found = contents.filter(pa.array(bad)).to_pylist()
        self.broken = [(name, reasons[content]) for name, content in zip(named, found, strict=True)]
        if self.broken:
            what = f"{counted(len(self.broken), 'image')} that its check found broken"
            warnings.warn(f"data {address}: left out {what}", stacklevel=5)
        return rows[~bad]

    def _id(self, row: int, key: str) -> str:
        return self._parts[self._part_of(row)].id_of(key)

    def _part_of(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def locate(self, i: int) -> tuple[int, int]:
        """Returns (number of the part, row of its index) of row i of the split."""
        row = int(self._rows[i])
        part = self._part_of(row)
        return part, row - self._starts[part]

    @property
    def labels(self) -> dict[str, Callable[[], Values]]:
        """The label `label` if an image of the data has one, and a function that reads the classes of each image."""
        if self._label.null_count == len(self._label):
            return {}
        own = ArrowColumn(self._label, self._rows)
        return {LABEL: lambda: [None if classes is None else tuple(classes) for classes in own]}

    def contents(self, lasting: bool = False) -> Iterator[str]:
        """sha256 of the bytes of each image."""
        return (content.hex() for content in ArrowColumn(self._sha256, self._rows))


def _choose_rows(
    parts: Sequence[IndexedPart], starts: list[int], split: str, view: View, train: str | None, address: str
) -> tuple[str, NDArray[np.int64]]:
    """(split that is read, its rows among those of all parts)."""
    roles = _roles([part.split for part in parts], train, address)
    wanted = ("heldout", "test", "val") if split == "heldout" else (split,)

    def rows_with(role: str | None) -> NDArray[np.int64]:
        own = [np.arange(starts[k], starts[k + 1]) for k, its in enumerate(roles or [None] * len(parts)) if its == role]
        return np.concatenate(own) if own else np.arange(0)

    rows_of = {name: rows_with(name) for name in SPLITS}
    if roles is None:
        rows_of = _assign(parts, starts, rows_with(None), view.seed, SEEDED_SHARES)
    elif not len(rows_of["val"]) and {"train", "val"} & set(wanted):
        rows_of = rows_of | _assign(
            parts, starts, rows_of["train"], view.seed, {"train": 1 - VAL_SHARE, "val": VAL_SHARE}
        )
    found = next((name for name in wanted if len(rows_of.get(name, ()))), None)
    if found is None:
        there = ", ".join(name for name, rows in rows_of.items() if len(rows)) or "no split with a known name"
        named = sorted({part.split for part in parts if part.split})
        say = f", or say which is for training, as in ?split={named[0]}" if named else ""
        raise InputError(
            f"data {address}: no split {split!r}; there are: {there}; name files train-00000, val-00000, test-00000 "
            f"or put them into folders of these names{say}"
        )
    return found, rows_of[found]


def _assign(
    parts: Sequence[IndexedPart], starts: list[int], rows: NDArray[np.int64], seed: int, shares: Mapping[str, float]
) -> dict[str, NDArray[np.int64]]:
    """`rows` by split, each drawn by its id and the seed alone."""
    drawn: list[NDArray[Any]] = [np.empty(0, dtype=str)]
    for k, part in enumerate(parts):
        first, last = np.searchsorted(rows, starts[k : k + 2])
        own = rows[first:last] - starts[k]
        keys = part.index["key"].take(own).to_pylist()
        drawn.append(np.array(assign_splits([part.id_of(key) for key in keys], seed, shares), dtype=str))
    names = np.concatenate(drawn)
    return {name: rows[names == name] for name in shares}


def _roles(published: Sequence[str | None], train: str | None, address: str) -> list[str | None] | None:
    """The role of each part; None where no name says anything and the split is drawn."""
    names = sorted({name for name in published if name})
    if train is not None:
        meant = next((name for name in names if name == train), None)
        meant = meant or next(
            (name for name in names if SPLIT_FOLDERS.get(train) == SPLIT_FOLDERS.get(name, name)), None
        )
        if meant is None:
            there = f"there are: {', '.join(names)}" if names else "no file's name says its split"
            raise InputError(f"data {address}: no split {train!r}{nearest(train, names)}; {there}")
        others = [None if role == "train" else role for role in (SPLIT_FOLDERS.get(name or "") for name in published)]
        return ["train" if name == meant else other for name, other in zip(published, others, strict=True)]
    roles = [SPLIT_FOLDERS.get((name or "").lower()) for name in published]
    if not any(roles):
        return None
    unknown = [name for name, role in zip(published, roles, strict=True) if role is None]
    if unknown:
        warnings.warn(
            f"data {address}: left out: {numbered(len(unknown), 'files or tables in no known split')}", stacklevel=6
        )
    return roles


# ---- the index -----------------------------------------------------------------------------------------------------


def schema(extra: Mapping[str, "pa.DataType"]) -> "pa.Schema":
    """Returns the columns of an index: the common ones, then those that find the bytes; only `label` may be null."""
    import pyarrow as pa

    common = {"key": pa.string(), "captions": pa.list_(pa.string()), "sha256": pa.binary(32), "split": pa.string()}
    fields = [pa.field(name, kind, nullable=False) for name, kind in {**common, **extra}.items()]
    return pa.schema([*fields, pa.field(LABEL, pa.list_(pa.string()))])


def stamp(path: Place) -> tuple[Any, ...]:
    """Returns what an index of this file is valid for: path, size and times, or URL, size and tag.

    Raises:
        InputError: there is no such file.
    """
    if not isinstance(path, Path):
        return path.stamp
    found = stamp_of(path)
    if found[0] < 0:
        raise InputError(f"cannot read {path}: No such file or directory; check its name and permissions")
    return str(path.absolute()), *found


def parts_of(name: str, split: str | None, index: "pa.Table") -> list[IndexedPart]:
    """Returns one file as a part or, where its rows name their splits, a part for each of these."""
    import pyarrow.compute

    pc: Any = pyarrow.compute
    named = sorted(set(index["split"].unique().to_pylist()) - {""})
    if not any(SPLIT_FOLDERS.get(own.lower()) for own in named):  # a column of other words is not about splits
        return [IndexedPart(name, split, index)]
    parts = [(own, index.filter(pc.equal(index["split"], own))) for own in [*named, ""]]
    return [IndexedPart(name, own or None, rows) for own, rows in parts if rows.num_rows]


def indexed(
    kind: str,
    files: Sequence[Place],
    settings: Sequence[Any],
    columns: Callable[[], "pa.Schema"],
    rows: Callable[[dict[str, Any], Keep], Iterable[dict[str, Any]]],
    rows_a_batch: int = 1024,
) -> "pa.Table":
    """Returns the index of some files, from the cache where it is there, else made now and kept.

    Args:
        kind: names the folder of the cache.
        files: the index is valid while size and times of all of them stay the same.
        settings: what else decides the index.
        columns: its schema.
        rows: makes the rows, given a dict for counts of what was left out, which are kept with them, and a function
            that stores bytes in the index and returns their place.

    Raises:
        InputError: the cache cannot be written, or what `rows` raises.
    """
    stamps = [stamp(path) for path in files]
    name = hashlib.sha256(json.dumps([FORMAT, kind, stamps, list(settings)]).encode()).hexdigest()[:32]
    path = cache_dir() / kind / f"{name}.arrow"
    remote = [file for file in files if not isinstance(file, Path)]
    # one process of a machine copies a remote file, the others wait for its index
    with locked(path) if remote and not path.exists() else nullcontext():
        table = read_table(path)
        if table is None:
            table = _make_index(path, files, stamps, settings, columns, rows, rows_a_batch)
    return _located(table, path)


def _make_index(
    path: Path,
    files: Sequence[Place],
    stamps: Sequence[Any],
    settings: Sequence[Any],
    columns: Callable[[], "pa.Schema"],
    rows: Callable[[dict[str, Any], Keep], Iterable[dict[str, Any]]],
    rows_a_batch: int,
) -> "pa.Table":
    started = time.monotonic()
    what = files[0] if files else settings[0]
    _log.info("indexing %s", what)
    counts: dict[str, Any] = {}

    def batches(keep: Keep) -> Iterator["pa.RecordBatch"]:
        import pyarrow as pa

        for batch in _batches(({"split": "", LABEL: None} | row for row in rows(counts, keep)), rows_a_batch):
            yield pa.RecordBatch.from_pylist(batch, schema=columns())
        now = [stamp(file if isinstance(file, Path) else find([file.url])[0]) for file in files]
        if now != stamps:
            raise InputError(f"{what} changed while it was indexed; start again when it is whole")

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, columns(), batches, counts)
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"cannot write the cache {path.parent}: {why}; free some space or set T2I_CACHE") from error
    _log.info("indexed %s in %.0f s", what, time.monotonic() - started)
    table = read_table(path)
    if table is None:
        raise InputError(f"the index cannot be read back from the cache {path.parent}; check that disk")
    return table


def file_of(table: "pa.Table") -> str:
    """Returns the file of an index, which also holds the bytes that were stored with it."""
    return os.fsdecode(table.schema.metadata[b"path"])


def _located(table: "pa.Table", path: Path) -> "pa.Table":
    """The table with its own path among its facts, for rows that point into the file."""
    metadata = dict(table.schema.metadata) | {b"path": str(path).encode("utf-8", "surrogatepass")}
    return table.replace_schema_metadata(metadata)


def _batches(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch
