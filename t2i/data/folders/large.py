"""A folder with captions of hundreds of thousands of pictures: the same layouts, kept as columns and opened in seconds.

Names and captions are brought together once, into an Arrow file of the cache directory that is memory-mapped from then on: a
million rows take no memory of their own and are shared by all workers. It counts as long as no captions file and no folder
changes. Nothing is decoded for the opening; what `t2i data check` found broken is left out.
"""

import hashlib
import json
import warnings
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from t2i import seeding
from t2i.cache import cache_dir
from t2i.data import View
from t2i.data.folders.columns import Columns, numpy_of, read_columns
from t2i.data.folders.index import nfc
from t2i.data.folders.metadata import METADATA_NAMES
from t2i.data.pictures import Column, Pictures
from t2i.data.splits import SEEDED_SHARES, SPLIT_FOLDERS, SPLITS
from t2i.data.verified_index import Index
from t2i.data.verify import stat_of, warn_unverified
from t2i.errors import InputError
from t2i.files import new_file
from t2i.images import TRANSFORM
from t2i.names import shown, some

if TYPE_CHECKING:
    import pyarrow as pa

LARGE_BYTES = 8 * 1024 * 1024  # of captions files at the top or in the split folders: about 80,000 rows


def is_large(root: Path) -> bool:
    """Whether the captions files at the top of a folder, or of its split folders, are so large that columns are worth it."""
    return sum(path.stat().st_size for path in _captions_files(root)) >= LARGE_BYTES


def _captions_files(root: Path) -> list[Path]:
    places = [root, *(root / folder for folder in SPLIT_FOLDERS)]
    return [path for place in places for name in METADATA_NAMES if (path := place / name).is_file()]


class LargeFolder(Pictures):
    """One split of a folder, a row a picture of `table`. An id is the picture's path below the root, with `/`, in NFC."""

    def __init__(
        self,
        root: Path,
        split: str,
        view: View,
        table: "pa.Table",
        rows: NDArray[np.int64],
        broken: Sequence[tuple[str, str]],
    ) -> None:
        self.root, self.broken = root, list(broken)
        self._table = table
        self._paths = Column(table["path"], rows, _value)
        ids = Column(table["path"], rows, lambda _, path: nfc(path))
        super().__init__(f"folder:{root}", split, view, ids, Column(table["captions"], rows, _captions))

    @property
    def files(self) -> dict[str, str]:
        """id -> path below the root, of all splits."""
        return {nfc(path): path for path in self._table["path"].to_pylist()}

    def source(self, i: int) -> Path:
        return self.root.absolute() / self._paths[i]

    def place(self, i: int) -> str:
        return shown(self.source(i))

    def fingerprint(self) -> str:
        """sha256 of ids, contents, captions, split and transform; of contents that no check has seen, size and time."""
        view = self._view
        transform = [TRANSFORM, view.resolution, view.fit, view.seed if view.fit == "random" else None]
        digest = hashlib.sha256(json.dumps([self.split, *transform]).encode())
        known = Index(self.root.resolve()).load()
        root = str(self.root)
        for name, path, captions in zip(self.ids, self._paths, self.captions, strict=True):
            stat, its = stat_of(f"{root}/{path}"), known.get(name)
            content = its.sha256 if its is not None and its[:2] == stat else list(stat)
            digest.update(json.dumps([name, content, captions]).encode())
        return digest.hexdigest()


def _value(_: int, value: Any) -> Any:
    return value


def _captions(_: int, captions: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(captions))


def open_large(root: Path, split: str, view: View) -> LargeFolder:
    """Opens one split of a folder with many pictures; `heldout` falls back to `test`, then to `val`.

    Raises:
        InputError: no such split, no pictures, no captions or unreadable ones, or the cache cannot be written.
    """
    table = _table_of(root)
    rows_of = _splits(table, view.seed)
    wanted = ("heldout", "test", "val") if split == "heldout" else (split,)
    part = next((name for name in wanted if len(rows_of.get(name, ()))), None)
    if part is None:
        there = ", ".join(name for name, rows in rows_of.items() if len(rows)) or "none with captions"
        raise InputError(
            f"no split '{split}' in {shown(root)}, which has: {there}; put its pictures into a folder of that name"
        )
    for what, (count, first) in json.loads(table.schema.metadata[b"left_out"]).items():
        if count:
            warnings.warn(f"{count:,} {what} in {shown(root)}, as {some(first)}", stacklevel=4)
    index = Index(root.resolve())
    rows, broken = _without_broken(root, table, rows_of[part], index)
    if broken:
        names = "; ".join(f"{shown(name)}: {reason}" for name, reason in broken[:3])
        warnings.warn(f"{len(broken):,} pictures in {shown(root)} are broken and left out: {names}", stacklevel=4)
    rows = rows[: view.limit]
    warn_unverified(f"folder:{root}", max(0, len(rows) - sum(part.num_rows for part in index.tables())))
    return LargeFolder(root, part, view, table, rows, broken)


def _splits(table: "pa.Table", seed: int) -> dict[str, NDArray[np.int64]]:
    """Rows of each split: by the folders at the top, or drawn by the ids and the seed."""
    folders = json.loads(table.schema.metadata[b"split_folders"])  # split -> [first row, last row]
    if folders:
        parts = {split: [np.arange(*rows) for rows in folders.get(split, ())] for split in SPLITS}
        return {split: np.concatenate([np.empty(0, np.int64), *rows]) for split, rows in parts.items()}
    draws = seeding.uniform(seed, "split", np.concatenate([numpy_of(part) for part in table["key"].chunks]), 1)[:, 0]
    chosen = np.searchsorted(np.cumsum(list(SEEDED_SHARES.values()))[:-1], draws, side="right")
    return {split: np.flatnonzero(chosen == k) for k, split in enumerate(SEEDED_SHARES)}


def _without_broken(
    root: Path, table: "pa.Table", rows: NDArray[np.int64], index: Index
) -> tuple[NDArray[np.int64], list[tuple[str, str]]]:
    """(rows without those that a check found broken and that are as they were, the broken ones)."""
    import pyarrow as pa
    import pyarrow.compute

    pc: Any = pyarrow.compute
    known: dict[str, tuple[str, tuple[int, int]]] = {}
    for part in index.tables():
        bad = part.filter(pc.not_equal(part["reason"], ""))
        names = [name.decode("utf-8", "surrogatepass") for name in bad["name"].to_pylist()]
        stamps = zip(bad["size"].to_pylist(), bad["mtime_ns"].to_pylist(), strict=True)
        known |= dict(zip(names, zip(bad["reason"].to_pylist(), stamps, strict=True), strict=True))
    if not known:
        return rows, []
    own = table["path"].take(pa.array(rows))
    candidates = np.flatnonzero(pc.is_in(own, pa.array(list(known))).to_numpy())
    broken: list[tuple[str, str]] = []
    gone = np.zeros(len(rows), dtype=bool)
    for i in candidates.tolist():
        name = nfc(path := own[i].as_py())
        reason, stamp = known[name]
        if stat_of(root / path) == stamp:
            broken.append((name, reason))
            gone[i] = True
    return rows[~gone], broken


# ---- the columns ---------------------------------------------------------------------------------------------------


def _table_of(root: Path) -> "pa.Table":
    """`path`, `captions` and `key` of the captioned pictures, from the cache while nothing has changed, else made now."""
    name = hashlib.sha256(str(root.resolve()).encode("utf-8", "surrogatepass")).hexdigest()[:24]
    path = cache_dir() / "folders" / f"{name}.arrow"
    table = _mapped(path, root)
    if table is not None:
        return table
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as temporary:
            _write(root, temporary)
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"cannot write the cache {path.parent}: {why}; free some space or set T2I_CACHE") from error
    table = _mapped(path, root)
    if table is None:
        raise InputError(f"{shown(root)} changes while it is read; start again when it is whole")
    return table


def _mapped(path: Path, root: Path) -> "pa.Table | None":
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        # the time of a folder changes when a file comes or goes
        stamps = json.loads(table.schema.metadata[b"stamps"])
        return table if all(list(stat_of(root / name)) == stamp for name, stamp in stamps) else None
    except (OSError, pa.ArrowInvalid, KeyError, TypeError):
        return None  # absent or damaged: made anew


def _write(root: Path, path: Path) -> None:
    import pyarrow as pa

    found = read_columns(root)
    if not len(found.paths):
        raise InputError(f"the captions files in {shown(root)} caption no picture that is there; {_first_lost(found)}")
    left_out = {
        "captions without a picture": found.missing,
        "pictures without a caption": found.bare,
        "pictures whose names are no text": found.unread,
    }
    facts = {"stamps": found.sources, "left_out": left_out, "split_folders": _split_folders(found)}
    fields = [("path", pa.string()), ("captions", pa.list_(pa.string())), ("key", pa.int64())]
    schema = pa.schema(fields, metadata={name: json.dumps(fact) for name, fact in facts.items()})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in found.batches():
            writer.write_batch(batch.cast(schema))


def _first_lost(found: Columns) -> str:
    missing = f"they speak of '{shown(found.missing[1][0])}'" if found.missing[1] else "they hold no caption"
    return f"{missing}, there is '{shown(found.bare[1][0])}'; write file_name relative to the captions file"


def _split_folders(found: Columns) -> dict[str, list[tuple[int, int]]]:
    """split -> first row and one past the last of each of its folders; the paths are sorted."""
    rows: dict[str, list[tuple[int, int]]] = {}
    places = range(len(found.paths))
    for name, _ in found.sources:
        split = SPLIT_FOLDERS.get(name[:-1].lower())
        if split is not None and name.endswith("/"):
            # "0" follows "/": all that begins with the folder lies between
            ends = [bisect_left(places, name[:-1] + sign, key=lambda i: found.paths[i].as_py()) for sign in "/0"]
            if ends[0] < ends[1]:
                rows.setdefault(split, []).append((ends[0], ends[1]))
    return rows
