"""Parquet files that hold the bytes of images, as on the Hugging Face hub: `parquet:/path?image=image&text=caption`.

Parquet is read by groups of rows, so reading images in random order would unpack each group many times. The first opening
therefore copies the rows into the cache, which takes as much space again; each row is then read by itself. docs/data.md shows
the tree.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.data import View
from t2i.data.cached import Keep, facts_of
from t2i.data.packed.dataset import (
    IndexedPart,
    PackedImages,
    PackedOptions,
    file_of,
    indexed,
    names_below,
    parts_of,
    schema,
    warn_skipped,
)
from t2i.data.packed.tables import ImageColumns, bad_table, choose_columns, index_rows
from t2i.data.splits import split_of_name
from t2i.errors import InputError
from t2i.files import at_home, contents, open_regular
from t2i.images import BrokenImage
from t2i.names import numbered, shown

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 64  # images in memory at one time


class CopiedRows(PackedImages):
    """One split of rows whose images are in the files of the indices, memory-mapped as the `data` of the parts."""

    def source(self, i: int) -> bytes:
        """Returns the bytes of row i.

        Raises:
            BrokenImage: the copy in the cache is damaged; it is removed, so that the next opening makes a new one.
        """
        part, row = self.locate(i)
        offset, size, expected = (part.index[name][row].as_py() for name in ("offset", "size", "sha256"))
        data = part.data.slice(offset, size).to_pybytes()
        if hashlib.sha256(data).digest() != expected:
            with suppress(OSError):
                os.unlink(file_of(part.index))
            raise BrokenImage("its copy in the cache was damaged and is removed; start again to copy it again")
        return data


def open_parquet(place: str, split: str, view: View, options: PackedOptions) -> CopiedRows:
    """Opens one split of a parquet file, of the files that match a pattern, or of all in a folder and its subfolders."""
    paths = _find(place)
    parts: list[IndexedPart] = []
    for path, name in zip(paths, names_below(paths), strict=True):
        index = _index(path, options.image, options.text)
        parts += parts_of(name, split_of_name(name), index, mapped(index))
    warn_skipped(parts, f"parquet:{place}")
    return CopiedRows(f"parquet:{place}", split, view, parts, options.split)


def _find(place: str) -> list[Path]:
    path = at_home(place)
    if path.is_dir():
        paths = [*path.glob("*.parquet"), *path.glob("*/*.parquet")]
    else:
        paths = [path] if path.is_file() else list(path.parent.glob(path.name))
    if not paths:
        near = path if path.is_dir() else path.parent
        found = contents(near) if near.is_dir() else "no such folder"
        raise InputError(f"no parquet files at {shown(place)}: looked for *.parquet and */*.parquet; found {found}")
    return sorted(paths)


def _index(path: Path, image: str, text: str) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    def rows(counts: dict[str, Any], keep: Keep) -> Iterator[dict[str, Any]]:
        try:
            with open_regular(path) as source, pq.ParquetFile(source) as file:
                columns = choose_columns(file.schema_arrow, image, text, str(path))
                batches = file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns.names)
                yield from copied((row for batch in batches for row in batch.to_pylist()), columns, counts, keep)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise bad_table(path, "a parquet file", error) from error

    return require_rows(indexed("tables", [path], [image, text, "copied"], copy_schema(), rows), str(path))


def copy_schema() -> "pa.Schema":
    """Returns the columns of an index whose file holds the images."""
    import pyarrow as pa

    return schema({"offset": pa.int64(), "size": pa.int64()})


def mapped(index: "pa.Table") -> "pa.Buffer":
    """Returns the memory-mapped file of an index."""
    import pyarrow as pa

    return pa.memory_map(file_of(index)).read_buffer()


def copied(
    rows: Iterable[Mapping[str, Any]], columns: ImageColumns, counts: dict[str, Any], keep: Keep
) -> Iterator[dict[str, Any]]:
    """Stores the images of rows in the file of the index, and yields the rows of the index."""
    for data, row in index_rows(rows, columns, counts):
        yield row | {"offset": keep(data), "size": len(data)}


def require_rows(index: "pa.Table", where: str) -> "pa.Table":
    """Returns the index; raises InputError if it is empty."""
    if not index.num_rows:
        found = ", ".join(numbered(count, what) for what, count in facts_of(index).items()) or "no rows"
        raise InputError(
            f"{where} holds no image with a caption, but {found}; name its columns with ?image=...&text=..."
        )
    return index
