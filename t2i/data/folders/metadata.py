"""Reads the captions of an image folder: metadata.jsonl, .csv or .parquet, or a .txt beside each picture.

The convention is that of the `datasets` library's ImageFolder: a column `file_name`, relative to the metadata file, and
`text` or `caption`, a string or a list of strings. Captions come out cleaned, empty ones dropped.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t2i.data.captions import clean_caption
from t2i.errors import InputError
from t2i.files import read_utf8

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


TEXT_COLUMNS = ("text", "caption")


EXAMPLE = '{"file_name": "0001.png", "text": "a red circle"}'


def read_metadata(path: Path) -> list[tuple[str, list[str]]]:
    """(file_name as written, cleaned captions) of each row.

    Raises:
        InputError: the file cannot be read as what its suffix says, or a row lacks a column or holds another type.
    """
    rows = {".jsonl": _rows_jsonl, ".csv": _rows_csv, ".parquet": _rows_parquet}[path.suffix.lower()]
    try:
        return [_captions_of(row, where) for where, row in rows(path)]
    except OSError as error:
        raise _unreadable(path, error) from error


def read_txt(path: Path) -> list[str]:
    """The cleaned captions of a text file, one a non-empty line.

    Raises:
        InputError: the file cannot be read or is not UTF-8.
    """
    try:
        return _clean(read_utf8(path).splitlines())
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot read captions file {path}: {error.strerror or error}; check its permissions")


def _clean(captions: list[str]) -> list[str]:
    return [cleaned for caption in captions if (cleaned := clean_caption(caption))]


def _captions_of(row: dict[str, Any], where: str) -> tuple[str, list[str]]:
    if "file_name" not in row or not any(column in row for column in TEXT_COLUMNS):
        missing = "'file_name'" if "file_name" not in row else "'text' or 'caption'"
        raise InputError(f"{where}: no column {missing}; it has {_listed(row)}; rename one of them")
    name = row["file_name"]
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: 'file_name' must name a picture, got {name!r}")
    column = next((column for column in TEXT_COLUMNS if row.get(column) is not None), None)
    value = row[column] if column else []
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise InputError(f"{where}: {column!r} must be a string or a list of strings, got {str(value)[:60]!r}")
    return name, _clean(captions)


def _listed(row: dict[str, Any]) -> str:
    return ", ".join(repr(column) for column in row) or "no columns"


def _rows_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # not splitlines(): JSON strings may hold U+2028 and its like
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise InputError(f"{where} is not JSON ({why}); write one object a line, such as {EXAMPLE}") from error
        if not isinstance(row, dict):
            raise InputError(f"{where} is a JSON {type(row).__name__}; write one object a line, such as {EXAMPLE}")
        yield where, row


def _rows_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = read_utf8(path)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)  # spreadsheets of some countries write semicolons
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns: list[str] = []
    try:
        for fields in reader:
            where = f"{path} line {reader.line_num}"
            if not columns:
                columns = [column.strip() for column in fields]
            elif not any(fields):
                continue
            elif len(fields) != len(columns):
                found = f"{len(fields)} fields under {len(columns)} columns"
                raise InputError(f"{where} has {found}; put captions that hold {delimiter!r} into quotation marks")
            else:
                yield where, dict(zip(columns, fields, strict=True))
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is not CSV ({error}); save it again as CSV") from error


def _rows_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = [column for column in ("file_name", *TEXT_COLUMNS) if column in names]
            if "file_name" not in wanted or len(wanted) < 2:
                _captions_of(dict.fromkeys(names), str(path))  # raises, naming the columns
            number = 0
            for batch in file.iter_batches(columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(f"{path} is not a parquet file that can be read ({reason}); write it again") from error
