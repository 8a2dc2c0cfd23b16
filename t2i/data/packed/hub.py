"""Data sets of the `datasets` library: `hub:org/name`, or a folder that `save_to_disk` wrote.

Their Arrow files are read where they lie, without the library; only fetching from the hub needs it (`pip install t2i[hub]`), and
no code of a data set is run. docs/data.md shows the trees.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.data import View
from t2i.data.cached import Keep
from t2i.data.packed.dataset import IndexedPart, PackedImages, indexed, parts_of, schema
from t2i.data.packed.parquet import (
    ROWS_A_BATCH,
    CopiedRows,
    copied,
    copy_schema,
    open_parquet,
    require_rows,
    warn_left_out,
)
from t2i.data.packed.tables import ImageColumns, choose_columns, image_bytes, row_of
from t2i.errors import InputError
from t2i.files import open_regular, read_json
from t2i.images import BrokenImage
from t2i.names import shown, some

if TYPE_CHECKING:
    import pyarrow as pa


class MappedRows(PackedImages):
    """One split of rows whose images are in memory-mapped tables."""

    def __init__(
        self,
        address: str,
        split: str,
        view: View,
        parts: Sequence[IndexedPart],
        images: Sequence["pa.ChunkedArray"],
        train: str | None,
    ) -> None:
        super().__init__(address, split, view, parts, train)
        self._images = images

    def source(self, i: int) -> bytes:
        """Returns the bytes of row i.

        Raises:
            BrokenImage: they are not those that were indexed.
        """
        part, row = self.locate(i)
        index = self._parts[part].index
        data = image_bytes(self._images[part][index["row"][row].as_py()].as_py()) or b""
        if hashlib.sha256(data).digest() != index["sha256"][row].as_py():
            raise BrokenImage("its table was changed since the data was opened; start again")
        return data


def open_hub(
    place: str,
    split: str,
    view: View,
    *,
    train: str | None = None,
    image: str = "",
    text: str = "",
    config: str = "",
    revision: str = "main",
    streaming: bool = False,
    rows: int = 0,
) -> MappedRows | CopiedRows:
    """Opens one split.

    Args:
        place: `org/name` on the hub, or a folder that `save_to_disk` wrote or that holds parquet files.
        train: the published split that is read as `train`.
        image, text: columns, as of `parquet:`.
        config: of a data set that has several.
        revision: branch, tag or commit.
        streaming: rows are fetched once, straight into the cache, without a copy of the whole data set.
        rows: with `streaming`: so many of each split; 0: all.

    Raises:
        InputError: no such data set, split or column; it cannot be fetched.
    """
    address = f"hub:{place}"
    folder = Path(place).expanduser()
    if rows and not streaming:
        raise InputError(f"data {address}: ?rows={rows} needs streaming=true: without it all is fetched")
    if folder.is_dir():
        if not (folder / "state.json").is_file() and not (folder / "dataset_dict.json").is_file():
            return open_parquet(place, split, view, train=train, image=image, text=text)
        return _open_files(_saved(folder), address, split, view, train, image, text)
    if place.startswith(("/", "./", "../", "~")):
        raise InputError(f"data {address}: there is no folder {shown(folder)}; name one, or org/name on the hub")
    if streaming:
        parts = _stream(place, config, revision, rows, image, text)
        warn_left_out(parts, address)
        return CopiedRows(address, split, view, parts, train)
    return _open_files(_fetch(place, config, revision), address, split, view, train, image, text)


def _open_files(
    files: Mapping[str, Sequence[Path]], address: str, split: str, view: View, train: str | None, image: str, text: str
) -> MappedRows:
    """Opens one split of data sets given as the Arrow files of each published split."""
    parts: list[IndexedPart] = []
    images: list[pa.ChunkedArray] = []
    for name, paths in files.items():
        table = _table(paths)
        columns = choose_columns(table.schema, image, text, address)
        index = require_rows(_index(paths, table, columns), f"{address}, split {name},")
        own = parts_of(name, name, index)
        parts += own
        images += [table[columns.image]] * len(own)
    warn_left_out(parts, address)
    return MappedRows(address, split, view, parts, images, train)


def _index(paths: Sequence[Path], table: "pa.Table", columns: ImageColumns) -> "pa.Table":
    import pyarrow as pa

    def rows(counts: dict[str, Any], keep: Keep) -> Iterator[dict[str, Any]]:
        number = 0
        for batch in table.select(columns.names).to_batches(max_chunksize=ROWS_A_BATCH):
            for row in batch.to_pylist():
                _, found = row_of(row, columns, number, counts)
                if found:
                    yield found | {"row": number}
                number += 1

    return indexed("tables", paths, list(columns), lambda: schema({"row": pa.int64()}), rows)


def _table(paths: Sequence[Path]) -> "pa.Table":
    """The rows of Arrow files in the library's stream layout, memory-mapped."""
    import pyarrow as pa

    tables = []
    for path in paths:
        try:
            open_regular(path).close()
            tables.append(pa.ipc.open_stream(pa.memory_map(str(path))).read_all())
        except (OSError, pa.ArrowException) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise InputError(
                f"{path} is not an Arrow file that can be read ({reason}); save the data set again"
            ) from error
    return pa.concat_tables(tables)


def _saved(folder: Path) -> dict[str, list[Path]]:
    """Returns split -> its Arrow files, of a folder that `save_to_disk` wrote."""
    splits = {"": folder}
    if (folder / "dataset_dict.json").is_file():
        content = read_json(folder / "dataset_dict.json")
        named = content.get("splits") if isinstance(content, dict) else None
        if not isinstance(named, list):
            raise InputError(f"{folder / 'dataset_dict.json'} names no splits; save the data set again")
        # a name is a name, not a way out of the folder
        splits = {name: folder / name for name in (Path(str(split)).name for split in named)}
    found: dict[str, list[Path]] = {}
    for name, below in splits.items():
        state = below / "state.json"
        if not state.is_file():
            there = some(sorted(os.listdir(folder)), 5) or "nothing"
            raise InputError(f"{state} is not there: {shown(folder)} holds {there}; save the data set again")
        try:
            names = [entry["filename"] for entry in read_json(state)["_data_files"]]
        except (KeyError, TypeError) as error:
            raise InputError(f"{state} names no _data_files ({error!r}); save the data set again") from error
        found[name] = [below / Path(str(file)).name for file in names]
    return found


# ---- the hub -------------------------------------------------------------------------------------------------------


def _load(place: str, config: str, revision: str, streaming: bool) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"data hub:{place} needs the datasets library; install it: pip install 't2i[hub]'") from error
    try:
        return datasets.load_dataset(place, config or None, revision=revision, streaming=streaming)
    except Exception as error:  # the library and what it calls raise anything; nothing of ours runs in there
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"data hub:{place} cannot be fetched ({type(error).__name__}: {reason}); check name and network, or name a "
            "folder that save_to_disk wrote"
        ) from error


def _fetch(place: str, config: str, revision: str) -> dict[str, list[Path]]:
    splits = _load(place, config, revision, streaming=False)
    return {name: [Path(file["filename"]) for file in data.cache_files] for name, data in splits.items()}


def _stream(place: str, config: str, revision: str, count: int, image: str, text: str) -> list[IndexedPart]:
    splits = _load(place, config, revision, streaming=True)
    parts: list[IndexedPart] = []
    for name, data in splits.items():
        settings = [place, config, revision, name, count, image, text]

        def rows(counts: dict[str, Any], keep: Keep, data: Any = data) -> Iterator[dict[str, Any]]:
            columns, plain = _plain(data.take(count) if count else data, place, image, text)
            for number, row in enumerate(plain):
                yield from copied([row], columns, number, counts, keep)

        table = indexed("tables", [], settings, copy_schema, rows, ROWS_A_BATCH)
        parts += parts_of(name, name, require_rows(table, f"hub:{place}, split {name},"))
    return parts


def _plain(data: Any, place: str, image: str, text: str) -> tuple[ImageColumns, Any]:
    """The columns to read, and the rows with images as bytes."""
    import datasets

    features = data.features if data.features is not None else data._resolve_features().features
    columns = choose_columns(features.arrow_schema, image, text, f"hub:{place}")
    return columns, data.select_columns(columns.names).cast_column(columns.image, datasets.Image(decode=False))
