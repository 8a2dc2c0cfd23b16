"""Stores what is known of the images of one data set: sizes, hashes, and reasons why images are broken.

Layout: CACHE/index/KEY/TIME.arrow, where KEY hashes the path or address. Each file is written atomically and later files override
earlier ones, so a check that was killed continues. An entry is valid as long as the image's file keeps its size and times, or
its bytes keep their sha256. The folder may be deleted at any time; nothing is written beside the images.
"""

import hashlib
import os
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import PIL

from t2i import images
from t2i.cache import cache_dir
from t2i.data.cached import Stamp, facts_of, read_table, write_table

if TYPE_CHECKING:
    import pyarrow as pa

MIN_SIDE = 2  # an image one pixel wide is a placeholder or a failed download
_RULES = f"4/{images.MAX_PIXELS}/{images.MAX_SIDE}/{images.MAX_BYTES}/{MIN_SIDE}/{images.TRANSFORM}/{PIL.__version__}"


class Verified(NamedTuple):
    """Facts about one image."""

    size: int  # bytes; -1: unknown
    mtime_ns: int  # 0: not a separate file, so only `sha256` identifies it
    width: int = 0
    height: int = 0
    format: str = ""
    mode: str = ""  # mode of the file: RGB, CMYK, P, I;16, ...
    sha256: str = ""  # of the file's bytes, in hex; "": not decoded yet
    signature: bytes = b""  # hash and colours of the cells (phash.py)
    reason: str = ""  # why the image is broken; "": it is not
    ctime_ns: int = 0
    lasting: bool = True  # False: reading failed, which may be temporary, so the entry is not stored

    @property
    def stamp(self) -> Stamp:
        """Size and times of the file, as returned by `stamp_of`."""
        return self.size, self.mtime_ns, self.ctime_ns


class Index:
    """The entries of one data set, by the id of the image.

    Args:
        place: path of a folder, or address of data whose images are not separate files.
    """

    def __init__(self, place: str | Path) -> None:
        name = hashlib.sha256(str(place).encode("utf-8", "surrogatepass")).hexdigest()[:24]
        self.folder = cache_dir() / "index" / name
        self._files: list[Path] = []  # files that this process read or wrote, and may replace

    def load(self, only_broken: bool = False) -> dict[str, Verified]:
        """Returns all entries, or those of broken images; files that are damaged or of other rules are skipped."""
        known: dict[str, Verified] = {}
        for table in self.tables():
            if only_broken:
                import pyarrow.compute

                pc: Any = pyarrow.compute
                table = table.filter(pc.not_equal(table["reason"], ""))
            names = (name.decode("utf-8", "surrogatepass") for name in table["name"].to_pylist())
            columns = (table[column].to_pylist() for column in Verified._fields[:-1])
            known.update(zip(names, starmap(Verified, zip(*columns, strict=True)), strict=True))
        return known

    def tables(self) -> list["pa.Table"]:
        """Returns the intact files of the index, memory-mapped, oldest first."""
        self._files = sorted(self.folder.glob("*.arrow"))
        tables = map(read_table, self._files)
        return [table for table in tables if table is not None and facts_of(table).get("rules") == _RULES]

    def replace(self, entries: Mapping[str, Verified]) -> None:
        """Replaces the files that were read or written here by one file; files of other processes are kept."""
        old = list(self._files)
        if self.add(entries):
            for path in old:
                with suppress(OSError):
                    path.unlink()
            self._files = self._files[-1:]

    def __len__(self) -> int:
        return len(self._files)

    def add(self, entries: Mapping[str, Verified]) -> bool:
        """Writes entries to a new file; returns False with a warning if it cannot be written."""
        path = self.folder / f"{time.time_ns():020d}-{os.getpid()}.arrow"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(path, entries)
        except OSError as error:
            warnings.warn(
                f"cannot write {self.folder} ({error.strerror or error}): images will be verified again next time; "
                "set T2I_CACHE to a writable folder",
                stacklevel=2,
            )
            return False
        self._files.append(path)
        return True


def _write(path: Path, entries: Mapping[str, Verified]) -> None:
    import pyarrow as pa

    kinds = {int: pa.int64(), str: pa.string(), bytes: pa.binary()}
    stored = Verified._fields[:-1]  # without `lasting`
    schema = pa.schema([("name", pa.binary()), *((name, kinds[Verified.__annotations__[name]]) for name in stored)])
    columns: list[list[Any]] = [[name.encode("utf-8", "surrogatepass") for name in entries]]
    columns += [[getattr(entry, name) for entry in entries.values()] for name in stored]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
    write_table(path, schema, lambda _: [batch], {"rules": _RULES})
