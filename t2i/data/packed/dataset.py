"""Data sets whose images are inside larger files: tar shards and tables. Each file is indexed once, in the cache directory.

An index is a memory-mapped table (cached.py): a million rows open at once, take no memory of their own, and are shared by all
workers. It has a row for each image: `key`, `captions` (cleaned, at least one), `sha256` of the image's bytes, and the columns
that locate the bytes. Its name hashes the file's path, size and times, so an index that is older than its file is never
read. A row may also have `labels`, the classes of its image by the name of each label.
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

from t2i import seeding
from t2i.cache import cache_dir, writing_to
from t2i.data import View
from t2i.data.cached import ArrowColumn, Keep, facts_of, read_table, stamp_of, write_table
from t2i.data.captions import REPLACED
from t2i.data.encoded import EncodedImages
from t2i.data.packed.remote import Place, find, locked
from t2i.data.splits import NONE, SEEDED, SPLIT_FOLDERS, SPLITS, divide, fallbacks, split_of_parts, unknown_splits
from t2i.data.tools.classes import LABELS, Values, by_label
from t2i.data.verify import known_broken, warn_damaged
from t2i.errors import InputError
from t2i.names import counted, numbered

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 6  # raised when the same file gives other rows than before, e.g. after a change in the cleaning of captions
_ROWS_AT_ONCE = 1024
_log = logging.getLogger(__name__)

# yields rows of an index; is called with a dict for the counts of what it skips, and a function that stores bytes in the index
MakeRows = Callable[[dict[str, Any], Keep], Iterable[dict[str, Any]]]


class PackedOptions(NamedTuple):
    """Options of data in tar shards and tables."""

    split: str | None = None  # the split that is read as `train`, by the names of files or their folders
    image: str = ""  # column of images, or suffix of members that are images, e.g. `input.jpg`; "": the usual ones
    text: str = ""  # column of captions, suffix of members with captions, or their key in the .json; "": the usual ones


class IndexedPart(NamedTuple):
    """One file, or one table, of a data set."""

    name: str  # prefix of the ids of its images
    split: str | None  # published name of its split
    index: "pa.Table"
    data: Any  # holds the bytes of the images

    def id_of(self, key: str) -> str:
        return f"{self.name}/{key}" if self.name else key


class PackedImages(EncodedImages):
    """One split of a data set made of `IndexedPart`s; a subclass reads the bytes of a row."""

    broken: Sequence[tuple[str, str]] = ()  # found by `t2i data check`; opening decodes nothing

    def __init__(
        self, address: str, split: str, view: View, parts: Sequence[IndexedPart], train: str | None = None
    ) -> None:
        import pyarrow as pa
        import pyarrow.compute

        pc: Any = pyarrow.compute
        self._parts = parts
        self._starts = list(accumulate((part.index.num_rows for part in parts), initial=0))
        table = pa.concat_tables([part.index.select(["key", "captions", "sha256", LABELS]) for part in parts])
        self._sha256, self._labels = table["sha256"], table[LABELS]
        splits = _roles([part.split for part in parts], train, address)
        found, rows = self._choose_rows(splits, split, view.seed, address)
        self._rows = self._without_broken(rows, address, table)[: view.limit]
        flat = pc.list_flatten(table["captions"])
        warn_damaged(address, flat.filter(pc.match_substring(flat, REPLACED)).to_pylist())
        ids = ArrowColumn(table["key"], self._rows, self._id)
        super().__init__(address, found, view, ids, ArrowColumn(table["captions"], self._rows))

    def _choose_rows(
        self, splits: Sequence[str | None], split: str, seed: int, address: str
    ) -> tuple[str, NDArray[np.int64]]:
        """Returns the split that is read, and its rows among those of all parts.

        Args:
            splits: the split of each part; all None: rows are assigned by id.
        """
        published = any(splits)
        numbers = [SPLITS.index(name) if name else NONE if published else SEEDED for name in splits]
        needs_val = published and "val" not in splits and bool({"train", "val"} & {*fallbacks(split)})
        splits_N = divide(np.repeat(numbers, np.diff(self._starts)), self._keys, seed, needs_val)
        rows_of = {name: np.flatnonzero(splits_N == k) for k, name in enumerate(SPLITS)}
        found = next((name for name in fallbacks(split) if len(rows_of.get(name, ()))), None)
        if found is None:
            known = ", ".join(name for name, rows in rows_of.items() if len(rows)) or "no split with a known name"
            named = sorted({part.split for part in self._parts if part.split})
            say = f", or name the one for training, as in ?split={named[0]}" if named else ""
            raise InputError(
                f"data {address}: no split {split!r}; there are: {known}; name files train-00000, val-00000, test-00000 "
                f"or put them into folders of these names{say}"
            )
        return found, rows_of[found]

    def _keys(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the keys of the ids of sorted rows."""
        keys = [np.empty(0, np.int64)]
        for part, start, end in zip(self._parts, self._starts, self._starts[1:], strict=False):
            first, last = np.searchsorted(rows, (start, end))
            own = part.index["key"].take(rows[first:last] - start).to_pylist()
            keys.append(seeding.ids_of([part.id_of(key) for key in own]))
        return np.concatenate(keys)

    def _without_broken(self, rows: NDArray[np.int64], address: str, table: "pa.Table") -> NDArray[np.int64]:
        import pyarrow as pa
        import pyarrow.compute as pc

        reasons = {bytes.fromhex(sha256): reason for sha256, reason in known_broken(address).items()}
        if not reasons:
            return rows
        contents = table["sha256"].take(rows)
        bad = pc.is_in(contents, pa.array(list(reasons), pa.binary(32))).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
        names = ArrowColumn(table["key"], rows[bad], self._id)
        hashes = contents.filter(pa.array(bad)).to_pylist()
        self.broken = [(name, reasons[sha256]) for name, sha256 in zip(names, hashes, strict=True)]
        if self.broken:
            what = f"{counted(len(self.broken), 'image')} that `t2i data check` found broken"
            warnings.warn(f"data {address}: skipped {what}", stacklevel=5)
        return rows[~bad]

    def _id(self, row: int, key: str) -> str:
        return self._parts[self._part_of(row)].id_of(key)

    def _part_of(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def locate(self, i: int) -> tuple[IndexedPart, int]:
        """Returns (part, row of its index) of row i of the split."""
        row = int(self._rows[i])
        number = self._part_of(row)
        return self._parts[number], row - self._starts[number]

    @property
    def labels(self) -> dict[str, Callable[[], Values]]:
        """Functions that return the classes of each image, by the name of the label."""
        if self._labels.null_count == len(self._labels):
            return {}
        rows = self._labels.take(self._rows).to_pylist()
        return by_label([{name: tuple(classes) for name, classes in row or ()} for row in rows])

    def contents(self, lasting: bool = False) -> Iterator[str]:
        """Returns the sha256 of the bytes of each image."""
        return (content.hex() for content in ArrowColumn(self._sha256, self._rows))


def _roles(published: Sequence[str | None], train: str | None, address: str) -> list[str | None]:
    """Returns the split of each part from its published name; all None if no name is that of a split.

    Args:
        train: the published name, or another name of its split, of the only part that is read as `train`.
    """
    split_of = {name: SPLIT_FOLDERS.get(name.lower()) for name in published if name}
    if train is not None and train not in split_of and train in SPLIT_FOLDERS:
        train = next((name for name, split in split_of.items() if split == SPLIT_FOLDERS[train]), train)
    named = {split: tuple(name for name, own in split_of.items() if own == split) for split in SPLITS}
    role_of = split_of_parts({name: name for name in split_of}, named, train, address) or {}
    roles = [role_of.get(name or "") for name in published]
    if train is None and any(roles) and None in roles:
        left_out = numbered(roles.count(None), "files or tables in no known split")
        warnings.warn(f"data {address}: skipped {left_out}", stacklevel=5)
    return roles


def warn_skipped(parts: Sequence[IndexedPart], address: str) -> None:
    """Warns once about skipped rows (except members of other kinds, which many shards have) and about unknown splits."""
    total, first, named = dict[str, int](), dict[str, str](), set[str]()
    for part in {file_of(part.index): part for part in reversed(parts)}.values():  # several parts may share a file
        named |= set(part.index["split"].unique().to_pylist()) - {""}
        for what, count in facts_of(part.index).items():
            if count and what != "other members":
                total[what] = total.get(what, 0) + count
                first[what] = part.name
    if total:
        counts = (
            numbered(count, what) + (f" (first in {first[what]})" if first[what] else "")
            for what, count in total.items()
        )
        warnings.warn(f"data {address}: skipped {'; '.join(counts)}", stacklevel=3)
    if unknown := unknown_splits(named, address):
        warnings.warn(unknown, stacklevel=3)


# ---- the index -----------------------------------------------------------------------------------------------------


def schema(extra: Mapping[str, "pa.DataType"]) -> "pa.Schema":
    """Returns the columns of an index: the common ones, then those that locate the bytes; only `labels` may be null."""
    import pyarrow as pa

    common = {"key": pa.string(), "captions": pa.list_(pa.string()), "sha256": pa.binary(32), "split": pa.string()}
    fields = [pa.field(name, kind, nullable=False) for name, kind in {**common, **extra}.items()]
    return pa.schema([*fields, pa.field(LABELS, pa.map_(pa.string(), pa.list_(pa.string())))])


def stamp(path: Place) -> tuple[Any, ...]:
    """Returns what identifies the contents of a file: path, size and times, or URL, size and tag.

    Raises:
        InputError: the file does not exist.
    """
    if not isinstance(path, Path):
        return tuple(path)
    found = stamp_of(path)
    if found[0] < 0:
        raise InputError(f"cannot read {path}: No such file or directory; check its name and permissions")
    return str(path.absolute()), *found


def parts_of(name: str, split: str | None, index: "pa.Table", data: Any) -> list[IndexedPart]:
    """Returns one file as one part, or as a part for each split if its rows name their splits."""
    import pyarrow.compute

    pc: Any = pyarrow.compute
    named = sorted(set(index["split"].unique().to_pylist()) - {""})
    if not any(SPLIT_FOLDERS.get(own.lower()) for own in named):  # the column is not about splits
        return [IndexedPart(name, split, index, data)]
    parts = [(own, index.filter(pc.equal(index["split"], own))) for own in [*named, ""]]
    return [IndexedPart(name, own or None, rows, data) for own, rows in parts if rows.num_rows]


def names_below(paths: Sequence[Path]) -> list[str]:
    """Returns the paths relative to their common folder, without the suffix."""
    root = paths[0].parent if len({path.parent for path in paths}) == 1 else Path(os.path.commonpath(paths))
    return [path.relative_to(root).with_suffix("").as_posix() for path in paths]


def indexed(
    kind: str, files: Sequence[Place], settings: Sequence[Any], columns: "pa.Schema", rows: MakeRows
) -> "pa.Table":
    """Returns the index of some files from the cache, where it is written first if it does not exist.

    Args:
        kind: folder of the cache.
        files: the index is valid as long as size and times of all of them stay the same.
        settings: everything else that the rows depend on.

    Raises:
        InputError: the cache cannot be written, or the files change while they are read; errors of `rows`.
    """
    stamps = [stamp(path) for path in files]
    name = hashlib.sha256(json.dumps([FORMAT, kind, stamps, list(settings)]).encode()).hexdigest()[:32]
    path = cache_dir() / kind / f"{name}.arrow"
    remote = any(not isinstance(file, Path) for file in files)
    # one process of a machine copies a remote file, the others wait for its index
    with locked(path) if remote and not path.exists() else nullcontext():
        table = read_table(path)
        if table is None:
            what, started = files[0] if files else settings[0], time.monotonic()
            _log.info("indexing %s", what)
            _write(path, files, stamps, columns, rows)
            _log.info("indexed %s in %.0f s", what, time.monotonic() - started)
            table = read_table(path)
    if table is None:
        raise InputError(f"the index cannot be read back from the cache {path.parent}; check that disk")
    facts = dict(table.schema.metadata) | {b"path": str(path).encode("utf-8", "surrogatepass")}
    return table.replace_schema_metadata(facts)


def _write(path: Path, files: Sequence[Place], stamps: Sequence[Any], columns: "pa.Schema", rows: MakeRows) -> None:
    import pyarrow as pa

    counts: dict[str, Any] = {}

    def batches(keep: Keep) -> Iterator["pa.RecordBatch"]:
        remaining = ({"split": "", LABELS: None} | row for row in rows(counts, keep))
        while batch := list(islice(remaining, _ROWS_AT_ONCE)):
            yield pa.RecordBatch.from_pylist(batch, schema=columns)
        if [stamp(file if isinstance(file, Path) else find([file.url])[0]) for file in files] != stamps:
            raise InputError(f"{files[0]} changed while it was indexed; start again when it is complete")

    with writing_to(path.parent):
        write_table(path, columns, batches, counts)


def file_of(table: "pa.Table") -> str:
    """Returns the file of an index, which also holds the bytes that were stored with it."""
    return os.fsdecode(table.schema.metadata[b"path"])
