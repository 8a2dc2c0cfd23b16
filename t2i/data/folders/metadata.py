"""Reads the captions of an image folder: metadata.jsonl, .csv or .parquet, or a .txt file beside each image.

The columns are those of ImageFolder in the `datasets` library: `file_name`, relative to the metadata file, and `text` or
`caption`, a string or a list of strings; `split` is optional. Captions are cleaned, and empty ones are dropped.
"""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from t2i.data.captions import captions_of
from t2i.data.packed.tables import bad_table, class_names, holds_bytes, named
from t2i.data.splits import split_column, split_in
from t2i.errors import InputError, os_errors
from t2i.files import open_regular, text_lines
from t2i.names import counted

_EMPTY = ("nan", "NaN", "None", "null", "<NA>")  # what table programs write for a missing caption
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
TEXT_COLUMNS = ("text", "caption")
EXAMPLE = '{"file_name": "0001.png", "text": "a red circle"}'


class CaptionRow(NamedTuple):
    """One row of a captions file."""

    file_name: str  # as written
    captions: list[str]
    split: str  # as written; "": none


def read_metadata(path: Path) -> Iterator[CaptionRow]:
    """Yields the rows of a captions file without reading all of it into memory.

    Raises:
        InputError: the file cannot be read in the format of its suffix, or a row lacks a column or has another type.
    """
    suffix = path.suffix.lower()
    with _reading(path):
        for place, row in _ROWS[suffix](path):
            try:
                yield _captions_of(row)
            except ValueError as error:
                raise InputError(f"{path} {'row' if suffix == '.parquet' else 'line'} {place}: {error}") from error


def read_further(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yields the number, the file name, and the further entries of each row of a captions file: labels, a licence, ...

    Entries that are empty or no JSON values are omitted.

    Raises:
        InputError: the file cannot be read.
    """
    suffix = path.suffix.lower()
    with _reading(path):
        for place, row in _rows_parquet(path, every=True) if suffix == ".parquet" else _ROWS[suffix](path):
            own = {"file_name", *TEXT_COLUMNS, split_column(row)}
            if isinstance(row.get("file_name"), str):
                further = {key: value for key, value in row.items() if key not in own and value not in (None, "")}
                yield place, row["file_name"], {key: value for key, value in further.items() if _is_json(value)}


def _is_json(value: Any) -> bool:
    try:
        return bool(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return False


def read_txt(path: Path) -> list[str]:
    """Returns the cleaned captions of a text file, one per non-empty line.

    Raises:
        InputError: the file cannot be read or is not UTF-8.
    """
    with _reading(path):
        lines = [part for line in text_lines(path) for part in line.splitlines() if part.strip()]
    try:
        return captions_of(lines)
    except ValueError as error:
        raise InputError(f"{path}: a caption {error}") from error


def _reading(path: Path) -> AbstractContextManager[None]:
    return os_errors(f"cannot read captions file {path}", "check its permissions")


def _captions_of(row: dict[str, Any]) -> CaptionRow:
    """Returns the captions of a row; raises ValueError if a column is missing or has another type."""
    if "file_name" not in row or not ("text" in row or "caption" in row):
        missing = "'file_name'" if "file_name" not in row else "'text' or 'caption'"
        columns = ", ".join(map(repr, row)) or "no columns"
        raise ValueError(f"no column {missing}; it has {columns}; rename one of them")
    name = row["file_name"]
    if not isinstance(name, str) or not name:
        raise ValueError(f"'file_name' must name an image, got {name!r}")
    column = "text" if row.get("text") is not None else "caption"
    try:
        captions = captions_of(row.get(column))
    except ValueError as error:
        raise ValueError(f"{column!r} {error}") from error
    return CaptionRow(name, captions, split_in(row.get(split_column(row))))


def _rows_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # not splitlines(), as JSON strings may contain U+2028 and similar line ends
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise InputError(
                f"{path} line {number} is not JSON ({why}); write one object per line, such as {EXAMPLE}"
            ) from error
        if not isinstance(row, dict):
            raise InputError(
                f"{path} line {number} is a JSON {type(row).__name__}; write one object per line, such as {EXAMPLE}"
            )
        yield number, row


def _rows_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    first = next(text_lines(path), "").partition("\r")[0]
    delimiter = max(",;\t", key=first.count)  # spreadsheets write semicolons in some countries
    lines = (f"{part}\n" for line in text_lines(path) for part in line.split("\r"))  # old programs end lines with CR
    reader = csv.reader(lines, delimiter=delimiter)
    columns: list[str] = []
    try:
        for fields in reader:
            if not columns:
                columns = [column.strip() for column in fields]
            elif not any(fields):
                continue
            elif len(fields) != len(columns):
                what = f"{counted(len(fields), 'field')} under {counted(len(columns), 'column')}"
                raise InputError(
                    f"{path} line {reader.line_num} has {what}; put captions that contain {delimiter!r} in quotation marks"
                )
            else:
                row = dict(zip(columns, fields, strict=True))
                empty = {key: "" for key in TEXT_COLUMNS if row.get(key, "").strip() in _EMPTY}
                yield reader.line_num, row | empty
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is not CSV ({error}); save it again as CSV") from error


def _rows_parquet(path: Path, every: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_regular(path) as source, pq.ParquetFile(source) as file:
            schema = file.schema_arrow
            own = ("file_name", *TEXT_COLUMNS, split_column(schema.names))
            further = [name for name in schema.names if every and not holds_bytes(schema.field(name).type)]
            columns = [name for name in schema.names if name in own or name in further]
            if "file_name" not in columns or not any(column in columns for column in TEXT_COLUMNS):
                try:
                    _captions_of(dict.fromkeys(schema.names))  # raises, naming the columns
                except ValueError as error:
                    raise InputError(f"{path}: {error}") from error
            classes = {name: words for name in columns if (words := class_names(schema, name))}
            batches = file.iter_batches(columns=columns)
            for place, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
                yield place, row | {name: named(row[name], words) for name, words in classes.items()}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise bad_table(path, "a parquet file", error) from error


_ROWS: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".jsonl": _rows_jsonl,
    ".csv": _rows_csv,
    ".parquet": _rows_parquet,
}
