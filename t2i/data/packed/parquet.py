"""Parquet files that hold the bytes of images, as the hub keeps data sets: `parquet:/path?image=image&text=caption`.

A parquet file is read by groups of rows, so images in random order would be unpacked a hundred times over; the first opening
copies rows into the cache (as much space again), from where each is read by itself. docs/data.md shows the tree.
"""

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.data import View
from t2i.data.cached import Keep, facts_of
from t2i.data.packed.dataset import IndexedPart, PackedImages, file_of, indexed, parts_of, schema
from t2i.data.packed.tables import ImageColumns, choose_columns, row_of
from t2i.data.splits import split_of_name
from t2i.errors import InputError
from t2i.files import open_regular
from t2i.images import BrokenImage
from t2i.names import numbered, shown, some

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_A_BATCH = 64  # images in memory at one time


class CopiedRows(PackedImages):
    """One split of rows whose images are in the file of the index."""

    def __init__(
        self, address: str, split: str, view: View, parts: Sequence[IndexedPart], train: str | None = None
    ) -> None:
        import pyarrow as pa

        super().__init__(address, split, view, parts, train)
        paths = [file_of(part.index) for part in parts]
        mapped = {path: pa.memory_map(path).read_buffer() for path in dict.fromkeys(paths)}
        self._files = [(path, mapped[path]) for path in paths]

    def source(self, i: int) -> bytes:
        """Returns the bytes of row i.

        Raises:
            BrokenImage: the copy in the cache is damaged; it is removed, so that the next opening makes it anew.
        """
        part, row = self.locate(i)
        path, file = self._files[part]
        index = self._parts[part].index
        offset, size, expected = (index[name][row].as_py() for name in ("offset", "size", "sha256"))
        data = file.slice(offset, size).to_pybytes()
        if hashlib.sha256(data).digest() != expected:
            with suppress(OSError):
                os.unlink(path)
            raise BrokenImage("its copy in the cache was damaged and is removed; start again, and it is made anew")
        return data


def open_parquet(
    place: str, split: str, view: View, *, train: str | None = None, image: str = "", text: str = ""
) -> CopiedRows:
    """Opens one split of a parquet file, of those that fit a pattern, or of all in a folder and those in it.

    Args:
        train: the split that is read as `train`, by the names of files or their folders.
        image: the column of images; "": `image`, `img`, `jpg` or `png`.
        text: the column of captions; "": `captions`, `caption` or `text`.

    Raises:
        InputError: no such file or column, no image with a caption, no such split.
    """
    paths = _find(place)
    root = paths[0].parent if len({path.parent for path in paths}) == 1 else Path(os.path.commonpath(paths))
    names = [path.relative_to(root).with_suffix("").as_posix() for path in paths]
    parts = [
        part
        for name, path in zip(names, paths, strict=True)
        for part in parts_of(name, split_of_name(name), _index(path, image, text))
    ]
    warn_left_out(parts, f"parquet:{place}")
    return CopiedRows(f"parquet:{place}", split, view, parts, train)


def _find(place: str) -> list[Path]:
    path = Path(place).expanduser()
    if path.is_dir():
        found = [*path.glob("*.parquet"), *path.glob("*/*.parquet")]
    else:
        found = [path] if path.is_file() else list(path.parent.glob(path.name))
    if not found:
        near = path if path.is_dir() else path.parent
        there = (some(sorted(os.listdir(near)), 5) or "nothing") if near.is_dir() else "no such folder"
        raise InputError(f"no parquet files at {shown(place)}: looked for *.parquet and */*.parquet; found {there}")
    return sorted(found)


def _index(path: Path, image: str, text: str) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    def rows(counts: dict[str, Any], keep: Keep) -> Iterator[dict[str, Any]]:
        try:
            with open_regular(path) as source, pq.ParquetFile(source) as file:
                columns = choose_columns(file.schema_arrow, image, text, str(path))
                number = 0
                for batch in file.iter_batches(batch_size=ROWS_A_BATCH, columns=columns.names):
                    yield from copied(batch.to_pylist(), columns, number, counts, keep)
                    number += batch.num_rows
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise InputError(f"{path} is not a parquet file that can be read ({reason}); write it again") from error

    return require_rows(indexed("tables", [path], [image, text, "copied"], copy_schema, rows, ROWS_A_BATCH), str(path))


def copy_schema() -> "pa.Schema":
    """Returns the columns of an index whose file holds the images."""
    import pyarrow as pa

    return schema({"offset": pa.int64(), "size": pa.int64()})


def copied(
    rows: Sequence[Mapping[str, Any]], columns: ImageColumns, first: int, counts: dict[str, Any], keep: Keep
) -> Iterator[dict[str, Any]]:
    """Yields rows of an index whose file holds the images; those without an image or a caption are counted."""
    for number, row in enumerate(rows, first):
        data, found = row_of(row, columns, number, counts)
        if found:
            yield found | {"offset": keep(data), "size": len(data)}


def require_rows(index: "pa.Table", where: str) -> "pa.Table":
    """Returns the index; raises InputError where it is empty."""
    if not index.num_rows:
        found = ", ".join(numbered(count, what) for what, count in facts_of(index).items()) or "no rows"
        raise InputError(
            f"{where} holds no image with a caption, but {found}; name its columns with ?image=...&text=..."
        )
    return index


def warn_left_out(parts: Sequence[IndexedPart], address: str) -> None:
    """Warns once of all rows that the indices passed over."""
    total: dict[str, int] = {}
    for index in {(part.index.schema.metadata or {}).get(b"path"): part.index for part in parts}.values():
        for what, count in facts_of(index).items():
            total[what] = total.get(what, 0) + count
    if total:
        told = ", ".join(numbered(count, what) for what, count in total.items())
        warnings.warn(f"data {address}: passed over {told}", stacklevel=3)
