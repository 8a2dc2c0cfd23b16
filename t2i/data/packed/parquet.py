"""Parquet files that hold the bytes of pictures, as the hub keeps data sets: `parquet:/path?image=image&text=caption`.

A parquet file is read by groups of rows, so pictures in random order would be unpacked a hundred times over; the first opening
copies rows into the cache (as much space again), from where each is read by itself. docs/data.md shows the tree.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.data import View
from t2i.data.packed.dataset import Packed, Part, counts_of, indexed, schema
from t2i.data.packed.tables import PictureColumns, choose_columns, row_of
from t2i.data.splits import split_of_name
from t2i.errors import InputError
from t2i.names import shown, some

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_A_BATCH = 64  # pictures in memory at one time


class CopiedRows(Packed):
    """One split of rows whose pictures are in the index itself."""

    def source(self, i: int) -> bytes:
        part, row = self.locate(i)
        return self._parts[part].index["data"][row].as_py()


def open_parquet(
    place: str, split: str, view: View, *, train: str | None = None, image: str = "", text: str = ""
) -> CopiedRows:
    """Opens one split of a parquet file, of those that fit a pattern, or of all in a folder and those in it.

    Args:
        train: the split that is read as `train`, by the names of files or their folders.
        image: the column of pictures; "": `image`, `img`, `jpg` or `png`.
        text: the column of captions; "": `captions`, `caption` or `text`.

    Raises:
        InputError: no such file or column, no picture with a caption, no such split.
    """
    paths = _find(place)
    root = paths[0].parent if len({path.parent for path in paths}) == 1 else Path(os.path.commonpath(paths))
    names = [path.relative_to(root).with_suffix("").as_posix() for path in paths]
    parts = [
        Part(name, split_of_name(name), _index(path, image, text)) for name, path in zip(names, paths, strict=True)
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

    def rows(counts: dict[str, Any]) -> Iterator[dict[str, Any]]:
        try:
            with pq.ParquetFile(path) as file:
                columns = choose_columns(file.schema_arrow, image, text, str(path))
                number = 0
                for batch in file.iter_batches(batch_size=ROWS_A_BATCH, columns=list(columns)):
                    yield from copied(batch.to_pylist(), columns, number, counts)
                    number += batch.num_rows
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise InputError(f"{path} is not a parquet file that can be read ({reason}); write it again") from error

    return require_rows(indexed("tables", [path], [image, text, "copied"], copy_schema, rows, ROWS_A_BATCH), str(path))


def copy_schema() -> "pa.Schema":
    """Columns of an index that holds the pictures."""
    import pyarrow as pa

    return schema({"data": pa.large_binary()})


def copied(
    rows: Sequence[Mapping[str, Any]], columns: PictureColumns, first: int, counts: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Rows of an index that holds the pictures; those without a picture or a caption are counted."""
    for number, row in enumerate(rows, first):
        data, found = row_of(row, columns, number, counts)
        if found:
            yield found | {"data": data}


def require_rows(index: "pa.Table", where: str) -> "pa.Table":
    """The index; InputError where it is empty."""
    if not index.num_rows:
        found = ", ".join(f"{count:,} {what}" for what, count in counts_of(index).items()) or "no rows"
        raise InputError(
            f"{where} holds no picture with a caption, but {found}; name its columns with ?image=...&text=..."
        )
    return index


def warn_left_out(parts: Sequence[Part], address: str) -> None:
    """One warning for all rows that the indices passed over."""
    total: dict[str, int] = {}
    for part in parts:
        for what, count in counts_of(part.index).items():
            total[what] = total.get(what, 0) + count
    if total:
        told = ", ".join(f"{count:,} {what}" for what, count in total.items())
        warnings.warn(f"data {address}: passed over {told}", stacklevel=3)
