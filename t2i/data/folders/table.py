"""Keeps names and captions of a folder of many images in a memory-mapped table, which opens in a second.

The table has the results of `index_folder` and stays in the cache directory until a captions file or a folder changes. Its rows
take no memory of their own and are shared by all workers.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i import seeding
from t2i.cache import cache_dir, writing_to
from t2i.data.cached import Keep, facts_of, read_table, stamp_of, write_table
from t2i.data.captions import REPLACED
from t2i.data.folders.hints import require_captions
from t2i.data.folders.index import FolderIndex, index_folder
from t2i.data.folders.metadata import METADATA_NAMES
from t2i.data.splits import SPLIT_FOLDERS, SPLITS, divide
from t2i.data.verified_index import Index
from t2i.errors import InputError
from t2i.names import counted, shown, some

if TYPE_CHECKING:
    import pyarrow as pa

LARGE_BYTES = 8 * 1024 * 1024  # size of captions files at the top or in the split folders: about 80,000 rows
FORMAT = 2  # raised when the same folder gives another table
_ROWS_AT_ONCE = 16_384


def is_large(root: Path) -> bool:
    """Returns True if the captions files at the top of a folder and in its split folders are large enough for a table."""
    folders = [root, *(root / name for name in SPLIT_FOLDERS)]
    paths = [path for folder in folders for name in METADATA_NAMES if (path := folder / name).is_file()]
    return sum(path.stat().st_size for path in paths) >= LARGE_BYTES


class FolderTable(NamedTuple):
    """The captioned images of a folder.

    Columns are `id`, `path`, `captions`, `key` (the id as a number) and `part` (`FolderIndex.split_numbers`).
    """

    root: Path
    rows: "pa.Table"

    def files(self) -> dict[str, str]:
        """Returns id -> path below the root of the images of all splits."""
        return dict(zip(*(self.rows[name].to_pylist() for name in ("id", "path")), strict=True))

    @property
    def left_out(self) -> list[str]:
        """Messages about the images and captions that the table does not have."""
        return facts_of(self.rows)["left_out"]

    @property
    def damaged(self) -> list[str]:
        """Captions with U+FFFD in place of letters, of all splits."""
        return facts_of(self.rows)["damaged"]

    @property
    def unknown_splits(self) -> str:
        """A warning about a column of splits that has none, or ""."""
        return facts_of(self.rows)["unknown_splits"]

    def splits(self, seed: int) -> dict[str, NDArray[np.int64]]:
        """Returns the rows of each split, which are those of `FolderIndex.splits`."""
        keys, needs_val = _numbers(self.rows["key"]), facts_of(self.rows)["drawn_val"]
        numbers = divide(_numbers(self.rows["part"]), keys.__getitem__, seed, needs_val)
        return {split: np.flatnonzero(numbers == k) for k, split in enumerate(SPLITS)}

    def without_broken(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[tuple[str, str]]]:
        """Returns `rows` without images that a check found broken and that have not changed since, and these with reasons."""
        import pyarrow as pa
        import pyarrow.compute

        pc: Any = pyarrow.compute
        known = Index(self.root.resolve()).load(only_broken=True)
        if not known:
            return rows, []
        ids = self.rows["id"].take(pa.array(rows))
        broken: list[tuple[str, str]] = []
        gone = np.zeros(len(rows), dtype=bool)
        for i in np.flatnonzero(pc.is_in(ids, pa.array(list(known))).to_numpy()).tolist():
            name = ids[i].as_py()
            if stamp_of(self.root / self.rows["path"][int(rows[i])].as_py()) == known[name].stamp:
                broken.append((name, known[name].reason))
                gone[i] = True
        return rows[~gone], broken


def open_table(root: Path) -> FolderTable:
    """Opens the table of a folder; it is written first if it does not exist or the folder has changed.

    Raises:
        InputError: errors of `index_folder` and `require_captions`, or the cache cannot be written.
    """
    name = hashlib.sha256(f"{FORMAT}:{root.resolve()}".encode("utf-8", "surrogatepass")).hexdigest()[:24]
    path = cache_dir() / "folders" / f"{name}.arrow"
    for _ in range(2):
        table = read_table(path)
        # the time of a folder changes if a file is added or removed
        if table is not None and all(list(stamp_of(root / at)) == stamp for at, stamp in facts_of(table)["stamps"]):
            return FolderTable(root, table)
        with writing_to(path.parent):
            _write(root, path)
    raise InputError(f"{root} changes while it is read; start again when it is complete")


def _write(root: Path, path: Path) -> None:
    import pyarrow as pa

    fields = [("id", pa.string()), ("path", pa.string()), ("captions", pa.list_(pa.string()))]
    schema = pa.schema([*fields, ("key", pa.int64()), ("part", pa.int8())])
    index = index_folder(root)
    require_captions(index)
    unread = [name for name, captions in index.entries.items() if captions and not _is_text(name)]
    facts = {"stamps": list(index.stamps.items()), "left_out": _left_out(index, unread), "drawn_val": index.needs_val}
    facts["unknown_splits"] = index.unknown_splits
    facts["damaged"] = [
        caption
        for own in index.entries.values()
        if REPLACED in own
        for caption in own.split("\n")
        if REPLACED in caption
    ]

    def batches(_: Keep) -> Iterator["pa.RecordBatch"]:
        names = (name for name, captions in index.entries.items() if captions and _is_text(name))
        while ids := list(islice(names, _ROWS_AT_ONCE)):
            columns: list[Iterable[Any]] = [
                ids,
                [index.path(name) for name in ids],
                [index.captions(name) for name in ids],
            ]
            columns += [seeding.ids_of(ids), index.split_numbers(ids)]
            arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    write_table(path, schema, batches, facts)


def _is_text(name: str) -> bool:
    """Returns False for a name with bytes that are not UTF-8."""
    try:
        return name.isascii() or bool(name.encode())
    except UnicodeEncodeError:
        return False


def _left_out(index: FolderIndex, unread: Sequence[str]) -> list[str]:
    bare = [name for name, captions in index.entries.items() if not captions]
    kinds = (
        ("caption", "without an image", index.missing),
        ("image", "without a caption", bare),
        ("image", "whose name is not text", [shown(name) for name in unread]),
    )
    return [
        f"{counted(len(names), noun)} in {shown(index.root)} {why}, as {some(names)}"
        for noun, why, names in kinds
        if names
    ]


def _numbers(column: "pa.ChunkedArray") -> NDArray[Any]:
    # not `to_numpy`, which imports pandas where it is installed: a second and 60 MB
    return np.concatenate([np.from_dlpack(chunk) for chunk in column.chunks])
