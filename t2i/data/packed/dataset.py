"""Data sets whose pictures lie inside larger files: tar shards, tables. An index of each file is made once and kept.

An index is an Arrow file in the cache directory, memory-mapped: a million rows open at once, take no memory of their own, and
are shared by all workers. It has a row a picture: `key`, `captions` (cleaned, at least one), `sha256` of the picture's
bytes, and what finds the bytes. Its name hashes the file's path, size and time, so that one that is older than the file is
never read. The folder may be deleted at any time.
"""

import hashlib
import json
import logging
import time
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.cache import cache_dir
from t2i.data import View
from t2i.data.pictures import Column, Pictures
from t2i.data.splits import SEEDED_SHARES, SPLIT_FOLDERS, SPLITS, VAL_SHARE, draw_splits
from t2i.data.verify import known_broken
from t2i.errors import InputError
from t2i.files import new_file
from t2i.images import TRANSFORM
from t2i.names import nearest

if TYPE_CHECKING:
    import pyarrow as pa


FORMAT = 1  # raised when the same file comes to give other rows, as by another cleaning of captions


_YOUNG_NS = 2_000_000_000  # a file this young may change again under the same time stamp


_log = logging.getLogger(__name__)


class Part(NamedTuple):
    """One file, or one table, of a data set."""

    name: str  # begins the ids of its pictures
    split: str | None  # by its published name
    index: "pa.Table"

    def id_of(self, key: str) -> str:
        return f"{self.name}/{key}" if self.name else key


class Packed(Pictures):
    """One split of a data set made of `Part`s; a subclass says where the bytes of a row are."""

    broken: Sequence[tuple[str, str]] = ()  # found by `t2i data check`: an opening decodes nothing

    def __init__(self, address: str, split: str, view: View, parts: Sequence[Part], train: str | None = None) -> None:
        import pyarrow as pa

        self._parts = list(parts)
        self._starts = list(accumulate((part.index.num_rows for part in parts), initial=0))
        table = pa.concat_tables([part.index.select(["key", "captions", "sha256"]) for part in parts])
        self._sha256 = table["sha256"]
        part, rows = _choose_rows(parts, self._starts, split, view, train, address)
        self._rows = self._without_broken(rows, address, table)[: view.limit]
        ids = Column(table["key"], self._rows, self._id)
        super().__init__(address, part, view, ids, Column(table["captions"], self._rows, _second))

    def _without_broken(self, rows: NDArray[np.int64], address: str, table: "pa.Table") -> NDArray[np.int64]:
        import pyarrow as pa
        import pyarrow.compute as pc

        reasons = {bytes.fromhex(sha256): reason for sha256, reason in known_broken(address).items()}
        if not reasons:
            return rows
        contents = table["sha256"].take(rows)
        bad = pc.is_in(contents, pa.array(list(reasons), pa.binary(32))).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
        named = Column(table["key"], rows[bad], self._id)
        found = contents.filter(pa.array(bad)).to_pylist()
        self.broken = [(name, reasons[content]) for name, content in zip(named, found, strict=True)]
        if self.broken:
            what = f"{len(self.broken):,} pictures are broken and left out, as its check found"
            warnings.warn(f"data {address}: {what}", stacklevel=5)
        return rows[~bad]

    def _id(self, row: int, key: str) -> str:
        return self._parts[self._part_of(row)].id_of(key)

    def _part_of(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1

    def locate(self, i: int) -> tuple[int, int]:
        """(number of the part, row of its index) of row i of the split."""
        row = int(self._rows[i])
        part = self._part_of(row)
        return part, row - self._starts[part]

    def fingerprint(self) -> str:
        """sha256 of ids, contents, captions, split and transform."""
        view = self._view
        transform = [TRANSFORM, view.resolution, view.fit, view.seed if view.fit == "random" else None]
        digest = hashlib.sha256(json.dumps([self.split, *transform]).encode())
        contents = Column(self._sha256, self._rows, _second)
        for name, content, captions in zip(self.ids, contents, self.captions, strict=True):
            digest.update(json.dumps([name, content.hex(), captions]).encode())
        return digest.hexdigest()


def _second(_: int, value: Any) -> Any:
    return value


def _choose_rows(
    parts: Sequence[Part], starts: list[int], split: str, view: View, train: str | None, address: str
) -> tuple[str, NDArray[np.int64]]:
    """(split that is read, its rows among those of all parts)."""
    roles = _roles([part.split for part in parts], train, address)
    wanted = ("heldout", "test", "val") if split == "heldout" else (split,)

    def rows_with(role: str | None) -> NDArray[np.int64]:
        own = [np.arange(starts[k], starts[k + 1]) for k, its in enumerate(roles or [None] * len(parts)) if its == role]
        return np.concatenate(own) if own else np.arange(0)

    rows_of = {name: rows_with(name) for name in SPLITS}
    if roles is None:
        rows_of = _draw(parts, starts, rows_with(None), view.seed, SEEDED_SHARES)
    elif not len(rows_of["val"]) and {"train", "val"} & set(wanted):
        rows_of = rows_of | _draw(
            parts, starts, rows_of["train"], view.seed, {"train": 1 - VAL_SHARE, "val": VAL_SHARE}
        )
    found = next((name for name in wanted if len(rows_of.get(name, ()))), None)
    if found is None:
        there = ", ".join(name for name, rows in rows_of.items() if len(rows)) or "no split with a known name"
        raise InputError(
            f"data {address}: no split {split!r}; there are: {there}; name files train-00000, val-00000, test-00000, "
            "put them into folders of these names, or say which is for training, as in ?split=train"
        )
    return found, rows_of[found]


def _draw(
    parts: Sequence[Part], starts: list[int], rows: NDArray[np.int64], seed: int, shares: Mapping[str, float]
) -> dict[str, NDArray[np.int64]]:
    """`rows` by split, each drawn by its id and the seed alone."""
    drawn: list[NDArray[Any]] = [np.empty(0, dtype=str)]
    for k, part in enumerate(parts):
        first, last = np.searchsorted(rows, starts[k : k + 2])
        own = rows[first:last] - starts[k]
        keys = part.index["key"].take(own).to_pylist()
        drawn.append(np.array(draw_splits([part.id_of(key) for key in keys], seed, shares), dtype=str))
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
        warnings.warn(f"data {address}: {len(unknown):,} files or tables in no known split are left out", stacklevel=6)
    return roles


# ---- the index -----------------------------------------------------------------------------------------------------


def schema(extra: Mapping[str, "pa.DataType"]) -> "pa.Schema":
    """Columns of an index: the common ones, then those that find the bytes."""
    import pyarrow as pa

    common = {"key": pa.string(), "captions": pa.list_(pa.string()), "sha256": pa.binary(32)}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in {**common, **extra}.items()])


def stamp(path: Path) -> tuple[str, int, int]:
    """What an index of this file holds for: path, size, time."""
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check its name and permissions") from error
    return str(path.absolute()), status.st_size, status.st_mtime_ns


def indexed(
    kind: str,
    files: Sequence[Path],
    settings: Sequence[Any],
    columns: Callable[[], "pa.Schema"],
    rows: Callable[[dict[str, Any]], Iterable[dict[str, Any]]],
    rows_a_batch: int = 1024,
) -> "pa.Table":
    """The index of some files, from the cache where it is there, else made now and kept.

    Args:
        kind: names the folder of the cache.
        files: the index holds as long as size and time of all of them stay as they are.
        settings: what else decides the index.
        columns: its schema.
        rows: makes the rows; what it puts into the dict (counts of what was left out) is kept with them.

    Raises:
        InputError: the cache cannot be written, or what `rows` raises.
    """
    stamps = [stamp(path) for path in files]
    name = hashlib.sha256(json.dumps([FORMAT, kind, stamps, list(settings)]).encode()).hexdigest()[:32]
    path = cache_dir() / kind / f"{name}.arrow"
    table = _mapped(path)
    if table is not None:
        return table
    started = time.monotonic()
    what = files[0] if files else settings[0]
    _log.info("indexing %s", what)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as temporary:
            _write(temporary, columns(), rows, rows_a_batch)
            if any(stamp(file) != before for file, before in zip(files, stamps, strict=True)):
                raise InputError(f"{what} changed while it was indexed; start again when it is whole")
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"cannot write the cache {path.parent}: {why}; free some space or set T2I_CACHE") from error
    _log.info("indexed %s in %.0f s", what, time.monotonic() - started)
    table = _mapped(path)
    if table is None:
        raise InputError(f"the index cannot be read back from the cache {path.parent}; check that disk")
    if any(abs(time.time_ns() - mtime_ns) < _YOUNG_NS for _, _, mtime_ns in stamps):
        with suppress(OSError):  # mapped memory outlives the name
            path.unlink()
    return table


def _mapped(path: Path) -> "pa.Table | None":
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            counts = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1).custom_metadata
            return reader.read_all().replace_schema_metadata(counts)
    except (OSError, pa.ArrowInvalid):
        return None  # absent or damaged: made anew


def counts_of(index: "pa.Table") -> dict[str, Any]:
    """What the maker of an index counted."""
    return json.loads((index.schema.metadata or {})[b"counts"])


def _write(
    path: Path, columns: "pa.Schema", rows: Callable[[dict[str, Any]], Iterable[dict[str, Any]]], rows_a_batch: int
) -> None:
    import pyarrow as pa

    counts: dict[str, Any] = {}
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, columns) as writer:
        for batch in _batches(rows(counts), rows_a_batch):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=columns))
        # known only now: an empty batch carries them
        empty = pa.RecordBatch.from_pylist([], schema=columns)
        writer.write_batch(empty, custom_metadata={"counts": json.dumps(counts)})


def _batches(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
