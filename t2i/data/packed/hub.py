"""Data sets of the `datasets` library: `hub:org/name`, or a folder that `save_to_disk` wrote.

Arrow files are read in place and without the library, which only fetching from the hub needs (`pip install t2i[hub]`). No code
of a data set is run. docs/data.md shows the trees.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from t2i.data import View
from t2i.data.cached import Keep
from t2i.data.packed.dataset import (
    IndexedPart,
    PackedImages,
    PackedOptions,
    indexed,
    parts_of,
    schema,
    warn_skipped,
)
from t2i.data.packed.parquet import ROWS_AT_ONCE, CopiedRows, copied, copy_schema, mapped, open_parquet, require_rows
from t2i.data.packed.tables import ImageColumns, bad_table, choose_columns, image_bytes, index_rows
from t2i.errors import InputError
from t2i.files import at_home, contents, open_regular, read_json
from t2i.images import BrokenImage
from t2i.names import shown

if TYPE_CHECKING:
    import pyarrow as pa


class HubOptions(NamedTuple):
    """Options of data sets of the `datasets` library."""

    split: str | None = None  # the published split that is read as `train`
    image: str = ""  # column of images; "": the usual names
    text: str = ""  # column of captions; "": the usual names
    config: str = ""  # name of the configuration, if the data set has several
    revision: str = "main"  # branch, tag or commit
    streaming: bool = False  # fetch each row once, straight into the cache, without a copy of the whole data set
    rows: int = 0  # with `streaming`: number of rows of each split; 0: all


class MappedRows(PackedImages):
    """One split of rows whose images are in memory-mapped tables, the `data` of the parts."""

    def source(self, i: int) -> bytes:
        """Returns the bytes of row i.

        Raises:
            BrokenImage: the bytes are not those that were indexed.
        """
        part, row = self.locate(i)
        data = image_bytes(part.data[part.index["row"][row].as_py()].as_py()) or b""
        if hashlib.sha256(data).digest() != part.index["sha256"][row].as_py():
            raise BrokenImage("its table was changed since the data was opened; start again")
        return data


def open_hub(place: str, split: str, view: View, options: HubOptions) -> MappedRows | CopiedRows:
    """Opens one split of `org/name` on the hub, or of a folder that `save_to_disk` wrote or that holds parquet files."""
    address, folder = f"hub:{place}", at_home(place)
    if options.rows and not options.streaming:
        raise InputError(f"data {address}: ?rows={options.rows} needs streaming=true; without it, all rows are fetched")
    if folder.is_dir():
        if not (folder / "state.json").is_file() and not (folder / "dataset_dict.json").is_file():
            return open_parquet(place, split, view, PackedOptions(*options[:3]))
        return _open_files(_saved(folder), address, split, view, options)
    if place.startswith(("/", "./", "../", "~")):
        raise InputError(f"data {address}: there is no folder {shown(folder)}; name one, or org/name on the hub")
    fetched = _load(place, options)
    if not options.streaming:
        files = {name: [Path(file["filename"]) for file in data.cache_files] for name, data in fetched.items()}
        return _open_files(files, address, split, view, options)
    parts: list[IndexedPart] = []
    for name, rows in fetched.items():
        index = require_rows(_stream(rows, name, place, options), f"{address}, split {name},")
        parts += parts_of(name, name, index, mapped(index))
    warn_skipped(parts, address)
    return CopiedRows(address, split, view, parts, options.split)


def _open_files(
    files: Mapping[str, Sequence[Path]], address: str, split: str, view: View, options: HubOptions
) -> MappedRows:
    """Opens one split of a data set, given the Arrow files of each published split."""
    parts: list[IndexedPart] = []
    for name, paths in files.items():
        table = _table(paths)
        columns = choose_columns(table.schema, options.image, options.text, address)
        index = require_rows(_index(paths, table, columns), f"{address}, split {name},")
        parts += parts_of(name, name, index, table[columns.image])
    warn_skipped(parts, address)
    return MappedRows(address, split, view, parts, options.split)


def _index(paths: Sequence[Path], table: "pa.Table", columns: ImageColumns) -> "pa.Table":
    import pyarrow as pa

    def rows(counts: dict[str, Any], keep: Keep) -> Iterator[dict[str, Any]]:
        batches = table.select(columns.names).to_batches(max_chunksize=ROWS_AT_ONCE)
        for _, row in index_rows((row for batch in batches for row in batch.to_pylist()), columns, counts):
            yield row | {"row": int(row["key"])}

    return indexed("tables", paths, list(columns), schema({"row": pa.int64()}), rows)


def _table(paths: Sequence[Path]) -> "pa.Table":
    """Returns the memory-mapped rows of Arrow files in the library's stream layout."""
    import pyarrow as pa

    tables = []
    for path in paths:
        try:
            open_regular(path).close()
            tables.append(pa.ipc.open_stream(pa.memory_map(str(path))).read_all())
        except (OSError, pa.ArrowException) as error:
            raise bad_table(path, "an Arrow file", error, "save the data set again") from error
    return pa.concat_tables(tables)


def _saved(folder: Path) -> dict[str, list[Path]]:
    """Returns split -> its Arrow files, for a folder that `save_to_disk` wrote."""
    folders = {"": folder}
    if (folder / "dataset_dict.json").is_file():
        content = read_json(folder / "dataset_dict.json")
        splits = content.get("splits") if isinstance(content, dict) else None
        if not isinstance(splits, list):
            raise InputError(f"{folder / 'dataset_dict.json'} names no splits; save the data set again")
        # only the last part of each path, so that no file outside the folder is read
        folders = {name: folder / name for name in (Path(str(split)).name for split in splits)}
    files: dict[str, list[Path]] = {}
    for name, below in folders.items():
        state = below / "state.json"
        if not state.is_file():
            raise InputError(f"{state} is not there: {shown(folder)} holds {contents(folder)}; save the data set again")
        try:
            names = [entry["filename"] for entry in read_json(state)["_data_files"]]
        except (KeyError, TypeError) as error:
            raise InputError(f"{state} names no _data_files ({error!r}); save the data set again") from error
        files[name] = [below / Path(str(file)).name for file in names]
    return files


# ---- the hub -------------------------------------------------------------------------------------------------------


def _load(place: str, options: HubOptions) -> Any:
    """Returns the splits of a data set on the hub, fetched whole or as streams."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"data hub:{place} needs the datasets library; install it: pip install 't2i[hub]'") from error
    try:
        config, streaming = options.config or None, options.streaming
        return datasets.load_dataset(place, config, revision=options.revision, streaming=streaming)
    except Exception as error:  # the library and the code that it calls raise anything
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"data hub:{place} cannot be fetched ({type(error).__name__}: {reason}); check name and network, or name a "
            "folder that save_to_disk wrote"
        ) from error


def _stream(data: Any, name: str, place: str, options: HubOptions) -> "pa.Table":
    """Returns the index of a streamed split, whose rows are copied into the cache."""

    def rows(counts: dict[str, Any], keep: Keep) -> Iterator[dict[str, Any]]:
        import datasets

        taken = data.take(options.rows) if options.rows else data
        features = taken.features if taken.features is not None else taken._resolve_features().features
        columns = choose_columns(features.arrow_schema, options.image, options.text, f"hub:{place}")
        as_bytes = taken.select_columns(columns.names).cast_column(columns.image, datasets.Image(decode=False))
        yield from copied(as_bytes, columns, counts, keep)

    settings = [place, options.config, options.revision, name, options.rows, options.image, options.text]
    return indexed("tables", [], settings, copy_schema(), rows)
