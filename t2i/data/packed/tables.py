"""Finds images and captions in the rows of tables: parquet files, Arrow files, and JSON objects of tar shards."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from t2i.data.captions import captions_of
from t2i.data.packed.remote import Place, opened
from t2i.data.splits import split_column, split_in
from t2i.data.tools.classes import LABEL, LABELS, classes_in
from t2i.errors import InputError
from t2i.names import brief, nearest

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = ("image", "img", "jpg", "png")
CAPTION_COLUMNS = ("captions", "caption", "text")


class ImageColumns(NamedTuple):
    """Names of the columns.

    Attributes:
        label: the column of classes; "": there is none.
        classes: the names of the classes that `label` numbers; empty if it has words, or numbers without names.
        splits: the same for `split`.
    """

    image: str
    text: str
    split: str = ""  # "": there is none
    label: str = ""
    classes: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The columns to read."""
        return [name for name in (self.image, self.text, self.split, self.label) if name]


def choose_columns(schema: "pa.Schema", image: str, text: str, where: str) -> ImageColumns:
    """Returns the columns of a table: those named by `image` and `text`, or the first of the usual names.

    Raises:
        InputError: there is no such column, or the column of images holds no bytes.
    """
    columns = []
    for option, named, usual in (("image", image, IMAGE_COLUMNS), ("text", text, CAPTION_COLUMNS)):
        found = next((name for name in ((named,) if named else usual) if name in schema.names), None)
        if found is None:
            choices = f"{named!r}{nearest(named, schema.names)}" if named else " or ".join(map(repr, usual))
            raise InputError(
                f"{where}: no column {choices}; it has {', '.join(schema.names)}; say which with ?{option}=NAME"
            )
        columns.append(found)
    kind = schema.field(columns[0]).type
    if not holds_bytes(kind):
        raise InputError(
            f"{where}: column {columns[0]!r} is {kind}, not the bytes of images; say which with ?image=NAME"
        )
    split = split_column(name for name in schema.names if name not in columns)
    split = split if split and _holds_classes(schema.field(split).type) else ""
    label = LABEL if LABEL in schema.names and LABEL not in columns and _holds_classes(schema.field(LABEL).type) else ""
    return ImageColumns(columns[0], columns[1], split, label, class_names(schema, label), class_names(schema, split))


def holds_bytes(kind: "pa.DataType") -> bool:
    """Returns True for a column of bytes, or of structs with bytes as the datasets library writes them."""
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds_classes(kind: "pa.DataType") -> bool:
    """Returns True for a column of words, whole numbers or lists of these."""
    import pyarrow.types as types

    while types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind):
        kind = kind.value_type
    words = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return words or types.is_integer(kind)


def class_names(schema: "pa.Schema", column: str) -> tuple[str, ...]:
    """Returns the names of a ClassLabel column, which the datasets library writes into the schema; empty if there are none."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        names = (feature.get("feature") or feature)["names"]  # a list has those of its items
        return tuple(names) if all(isinstance(name, str) for name in names) else ()
    except (KeyError, TypeError, ValueError, AttributeError):
        return ()


def named(value: Any, names: tuple[str, ...]) -> Any:
    """Returns the names of the classes that a row numbers; None if they are unknown, for which the datasets library writes -1.

    Without names, returns the value.
    """
    numbers = value if isinstance(value, list) else [value]
    if names and not all(isinstance(number, int) and 0 <= number < len(names) for number in numbers):
        return None
    words = [names[number] for number in numbers] if names else numbers
    return words if isinstance(value, list) else words[0]


def image_bytes(value: Any) -> bytes | None:
    """Returns the bytes of an image cell; paths in a struct are not followed."""
    return value.get("bytes") if isinstance(value, dict) else value


def index_rows(
    rows: Iterable[Mapping[str, Any]], columns: ImageColumns, counts: dict[str, Any]
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields (bytes of the image, row of an index) for each row with an image and a caption; adds the others to `counts`."""
    for number, row in enumerate(rows):
        data = image_bytes(row[columns.image])
        why = "" if data else "rows without the bytes of an image"
        captions: list[str] = []
        try:
            captions = captions_of(row[columns.text])
            why = why or ("" if captions else "rows without a caption")
        except ValueError as error:
            why = why or f"rows whose caption is not text (it {error})"
        if why or not data:
            counts[why] = counts.get(why, 0) + 1
            continue
        split = split_in(named(row[columns.split], columns.splits)) if columns.split else ""
        label = classes_in(named(row[columns.label], columns.classes)) if columns.label else None
        labels = None if label is None else [(LABEL, label)]
        sha256 = hashlib.sha256(data).digest()
        yield data, {"key": str(number), "captions": captions, "sha256": sha256, "split": split, LABELS: labels}


def captions_in(row: Any, key: str = "") -> list[str]:
    """Returns the cleaned captions of a JSON object under `key` or, without one, under `captions`, `caption` or `text`.

    Raises:
        ValueError: the captions are not text.
    """
    for name in (key,) if key and key != "json" else CAPTION_COLUMNS:
        value = row.get(name) if isinstance(row, dict) else None
        if value:
            return captions_of([one for one in value if isinstance(one, str)] if isinstance(value, list) else value)
    return []


def read_beside(path: Place) -> dict[str, list[str]]:
    """Returns key -> captions from the parquet that img2dataset writes beside a shard; empty without such columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with opened(path) as file:
            names = pq.read_schema(file).names
            column = next((name for name in CAPTION_COLUMNS if name in names), None)
            if "key" not in names or column is None:
                return {}
            table = pq.read_table(file, columns=["key", column])
        keys, values = (table[name].to_pylist() for name in ("key", column))
        return {str(key): captions_of(value) for key, value in zip(keys, values, strict=True)}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise bad_table(path, "a parquet file", error, "remove it or write it again") from error


def bad_table(path: Path | Place, kind: str, error: Exception, fix: str = "write it again") -> InputError:
    """Returns the error for a table that cannot be read."""
    return InputError(f"{path} is not {kind} that can be read ({brief(error)}); {fix}")
