"""An index of the images of one place: size, contents, why one is broken. `t2i data check` fills it, training reads it.

Layout: CACHE/index/KEY/TIME.arrow, where KEY hashes the place. Each file is written whole and later ones win, so a check that
was killed continues. An entry is valid while the image's file keeps its size and times, or its bytes their sha256. The
folder may be deleted at any time; nothing is ever written beside the images.
"""

import hashlib
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import PIL

from t2i import images
from t2i.cache import cache_dir
from t2i.data.cached import Stamp, facts_of, read_table, write_table

if TYPE_CHECKING:
    import pyarrow as pa

MIN_SIDE = 2  # an image one pixel wide is a placeholder or a failed download
_RULES = f"4/{images.MAX_PIXELS}/{images.MAX_SIDE}/{images.MAX_BYTES}/{MIN_SIDE}/{images.TRANSFORM}/{PIL.__version__}"


class Verified(NamedTuple):
    """Facts about one image. `reason` is empty for a good one; `sha256` is of the file's bytes, in hex."""

    size: int  # bytes
    mtime_ns: int  # 0: not a file of its own, `sha256` tells whether it is the same
    width: int = 0
    height: int = 0
    format: str = ""
    mode: str = ""  # of the file: RGB, CMYK, P, I;16, ...
    sha256: str = ""
    signature: bytes = b""  # phash.py: the hash and the colours of the cells
    reason: str = ""
    ctime_ns: int = 0
    lasting: bool = True  # False: a fault of reading, which may pass without the file changing; never kept

    @property
    def stamp(self) -> Stamp:
        """Size and times of the file, as `stamp_of` gives them."""
        return self.size, self.mtime_ns, self.ctime_ns


class Index:
    """The entries of one place, by the id of the image."""

    def __init__(self, place: str | Path) -> None:
        name = hashlib.sha256(str(place).encode("utf-8", "surrogatepass")).hexdigest()[:24]
        self.folder = cache_dir() / "index" / name
        self._files: list[Path] = []  # those that this process read or wrote, and may replace

    def load(self) -> dict[str, Verified]:
        """Returns all entries; none where the folder is absent, damaged or of other rules."""
        known: dict[str, Verified] = {}
        for table in self.tables():
            names = (name.decode("utf-8", "surrogatepass") for name in table["name"].to_pylist())
            columns = (table[column].to_pylist() for column in Verified._fields[:-1])
            known.update(zip(names, starmap(Verified, zip(*columns, strict=True)), strict=True))
        return known

    def tables(self) -> list["pa.Table"]:
        """Returns the intact files of the index, memory-mapped, oldest first."""
        self._files = sorted(self.folder.glob("*.arrow"))
        found = map(read_table, self._files)
        return [table for table in found if table is not None and facts_of(table).get("rules") == _RULES]

    def add(self, entries: Mapping[str, Verified]) -> None:
        """Adds entries."""
        if entries:
            self._save(entries)

    def replace(self, entries: Mapping[str, Verified]) -> None:
        """Replaces what was read or written here by these entries, in one file; files of other processes stay."""
        old = list(self._files)
        if self._save(entries):
            for path in old:
                with suppress(OSError):
                    path.unlink()
            self._files = self._files[-1:]

    def __len__(self) -> int:
        return len(self._files)

    def _save(self, entries: Mapping[str, Verified]) -> bool:
        path = self.folder / f"{time.time_ns():020d}-{os.getpid()}.arrow"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(path, entries.keys(), entries.values())
        except OSError as error:
            warnings.warn(
                f"cannot write {self.folder} ({error.strerror or error}): images will be verified again next time; "
                "set T2I_CACHE to a folder that can be written",
                stacklevel=2,
            )
            return False
        self._files.append(path)
        return True


def _write(path: Path, names: Iterable[str], entries: Iterable[Verified]) -> None:
    import pyarrow as pa

    kinds = {int: pa.int64(), str: pa.string(), bytes: pa.binary()}
    fields = [("name", pa.binary()), *((name, kinds[Verified.__annotations__[name]]) for name in Verified._fields[:-1])]
    columns = [[name.encode("utf-8", "surrogatepass") for name in names], *zip(*entries, strict=True)][: len(fields)]
    columns = columns if len(columns) == len(fields) else [[] for _ in fields]
    schema = pa.schema(fields)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
    write_table(path, schema, lambda _: [batch], {"rules": _RULES})
