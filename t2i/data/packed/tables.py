"""Tables of captioned images: which columns hold what, and how a row becomes a row of an index."""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from t2i.data.captions import captions_of
from t2i.data.packed.captions import CAPTION_KEYS
from t2i.data.tools.classes import LABEL, classes_in
from t2i.errors import InputError
from t2i.names import nearest

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = ("image", "img", "jpg", "png")


class ImageColumns(NamedTuple):
    """Names of the columns, and of the classes whose numbers are in the column `label`."""

    image: str
    text: str
    split: str = ""  # "": there is none
    label: str = ""  # "": there is none
    classes: tuple[str, ...] = ()  # empty: labels are words, or numbers without names

    @property
    def names(self) -> list[str]:
        """The columns to read."""
        return [name for name in (self.image, self.text, self.split, self.label) if name]


def choose_columns(schema: "pa.Schema", image: str, text: str, where: str) -> ImageColumns:
    """Returns the columns of a table, those named or the first of the usual names.

    Raises:
        InputError: there is no such column, or the one of images holds no bytes.
    """
    import pyarrow as pa

    there = schema.names
    columns = []
    for option, named, usual in (("image", image, IMAGE_COLUMNS), ("text", text, CAPTION_KEYS)):
        found = named if named in there else None if named else next((name for name in usual if name in there), None)
        if found is None:
            wanted = f"{named!r}{nearest(named, there)}" if named else " or ".join(map(repr, usual))
            raise InputError(f"{where}: no column {wanted}; it has {', '.join(there)}; say which with ?{option}=NAME")
        columns.append(found)
    kind = schema.field(columns[0]).type
    inner = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        raise InputError(
            f"{where}: column {columns[0]!r} is {kind}, not the bytes of images; say which with ?image=NAME"
        )
    split = "split" if "split" in there and schema.field("split").type in (pa.string(), pa.large_string()) else ""
    label = LABEL if LABEL in there and LABEL not in columns and _holds_labels(schema.field(LABEL).type) else ""
    return ImageColumns(columns[0], columns[1], split, label, _class_names(schema) if label else ())


def _holds_labels(kind: "pa.DataType") -> bool:
    """Returns True for words, whole numbers, and lists of these."""
    import pyarrow.types as types

    while types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)


def _class_names(schema: "pa.Schema") -> tuple[str, ...]:
    """Returns the names of a ClassLabel of the datasets library, which notes them in the schema; empty if there are none."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][LABEL]
        names = (feature.get("feature") or feature)["names"]  # of a list: those of its items
        return tuple(names) if all(isinstance(name, str) for name in names) else ()
    except (KeyError, TypeError, ValueError, AttributeError):
        return ()


def _classes_of(value: Any, names: tuple[str, ...]) -> tuple[str, ...] | None:
    """Returns the classes of a row; None if they are unknown, as the library's -1 says."""
    if not names:
        return classes_in(value)
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(number, int) and 0 <= number < len(names) for number in numbers):
        return None
    return tuple(dict.fromkeys(names[number] for number in numbers))


def image_bytes(value: Any) -> bytes | None:
    """Returns the bytes of a cell: plain, or as the datasets library keeps them. Paths are not followed."""
    return value.get("bytes") if isinstance(value, dict) else value


def row_of(
    row: Mapping[str, Any], columns: ImageColumns, number: int, counts: dict[str, Any]
) -> tuple[bytes, dict[str, Any] | None]:
    """Returns (bytes of the image, its row of an index); None for the latter, and counted, where something is lacking."""
    data = image_bytes(row[columns.image])
    lacking = "" if data else "rows without the bytes of an image"
    captions: list[str] = []
    try:
        captions = captions_of(row[columns.text])
        lacking = lacking or ("" if captions else "rows without a caption")
    except ValueError as error:
        lacking = lacking or f"rows whose caption is not text (it {error})"
    if lacking or not data:
        counts[lacking] = counts.get(lacking, 0) + 1
        return b"", None
    found = {"key": str(number), "captions": captions, "sha256": hashlib.sha256(data).digest()}
    if columns.split:
        found["split"] = (row[columns.split] or "").strip()
    if columns.label:
        found[LABEL] = _classes_of(row[columns.label], columns.classes)
    return data, found
