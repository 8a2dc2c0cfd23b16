"""Writes and reads Arrow tables in the cache directory; a checksum is verified each time, and damaged tables are written again.

Layout of a file: a header of 64 bytes (magic, offset and crc32 of the table), bytes that rows may point to (images copied from
parquet files), then the table in Arrow's file format, which is memory-mapped.
"""

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from t2i.files import new_file, open_regular

if TYPE_CHECKING:
    import pyarrow as pa

_MAGIC = b"t2i table 1"
_HEADER = 64  # bytes; Arrow aligns its buffers to 64
_CHUNK = 1 << 20
Stamp = tuple[int, int, int]
Keep = Callable[[bytes], int]  # stores bytes in the file of a table and returns their offset


def stamp_of(path: Path | str) -> Stamp:
    """Returns (bytes, modification time, change time) of a file, times in ns; -1 for each if it does not exist.

    Copying tools may set the modification time; the change time moves whenever contents are replaced.
    """
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1, -1
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def write_table(
    path: Path,
    schema: "pa.Schema",
    batches: Callable[[Keep], Iterable["pa.RecordBatch"]],
    facts: Mapping[str, Any],
) -> None:
    """Writes a table atomically.

    Args:
        batches: yields the rows; it is called with a function that stores further bytes in the file.
        facts: JSON values that are stored with the table; `batches` may add some while it runs.

    Raises:
        OSError: the file cannot be written.
    """
    import pyarrow as pa

    with new_file(path) as temporary, open(temporary, "wb") as file, tempfile.TemporaryFile(dir=path.parent) as body:
        file.write(bytes(_HEADER))

        def keep(data: bytes) -> int:
            start = file.tell()
            file.write(data)
            return start

        with pa.ipc.new_file(pa.PythonFile(body, "w"), schema) as writer:
            for batch in batches(keep):
                writer.write_batch(batch)
            # the metadata of an empty batch, as facts are known only at the end
            empty = pa.RecordBatch.from_pylist([], schema=schema)
            writer.write_batch(empty, custom_metadata={"facts": json.dumps(dict(facts))})
        file.write(bytes(-file.tell() % _HEADER))
        start = file.tell()
        body.seek(0)
        shutil.copyfileobj(body, file, _CHUNK)
        file.flush()
        file.seek(0)
        file.write(_header(start, _checksum(temporary, start)))


def _header(start: int, crc: int) -> bytes:
    return b"%s %020d %08x" % (_MAGIC, start, crc) + b"\n" * (_HEADER - len(_MAGIC) - 30)


def _checksum(path: Path, start: int) -> int:
    crc = 0
    with open_regular(path) as file:
        file.seek(start)
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def read_table(path: Path) -> "pa.Table | None":
    """Returns a table, memory-mapped, with its facts as metadata; None if it does not exist or is damaged."""
    import pyarrow as pa

    try:
        with open_regular(path) as file:
            head = file.read(_HEADER)
        start = int(head[len(_MAGIC) + 1 :][:20])
        if head != _header(start, _checksum(path, start)):
            return None
        with pa.memory_map(str(path)) as source:
            source.seek(start)
            reader = pa.ipc.open_file(pa.BufferReader(source.read_buffer()))
            facts = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1).custom_metadata
            return reader.read_all().replace_schema_metadata(facts)
    except (OSError, ValueError, pa.ArrowException):
        return None


def facts_of(table: "pa.Table") -> dict[str, Any]:
    """Returns the facts that are stored with a table."""
    return json.loads((table.schema.metadata or {})[b"facts"])


class ArrowColumn(Sequence[Any]):
    """Some rows of an Arrow column as a sequence of Python values, each of which is read when it is accessed.

    Args:
        form: converts a value, from its row and the value.
    """

    def __init__(
        self,
        column: "pa.ChunkedArray",
        rows: NDArray[np.int64],
        form: Callable[[int, Any], Any] = lambda row, value: value,
    ) -> None:
        self._column, self._rows, self._form = column, rows, form

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = int(self._rows[index])
        return self._form(row, self._column[row].as_py())
