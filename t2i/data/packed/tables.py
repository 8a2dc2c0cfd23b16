"""What tables of captioned pictures have in common: which columns hold what, and what a row means."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from t2i.data.packed.tar import CAPTION_KEYS, captions_in, clean
from t2i.errors import InputError
from t2i.names import nearest

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = ("image", "img", "jpg", "png")


class PictureColumns(NamedTuple):
    """Names of the two columns."""

    image: str
    text: str


def choose_columns(schema: "pa.Schema", image: str, text: str, where: str) -> PictureColumns:
    """The columns of a table, those named or the first of the usual names.

    Raises:
        InputError: there is no such column, or the one of pictures holds no bytes.
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
            f"{where}: column {columns[0]!r} is {kind}, not the bytes of pictures; say which with ?image=NAME"
        )
    return PictureColumns(*columns)


def picture_bytes(value: Any) -> bytes | None:
    """The bytes of a cell: plain, or as the datasets library keeps them. Paths are not followed."""
    return value.get("bytes") if isinstance(value, dict) else value


def row_of(
    row: Mapping[str, Any], columns: PictureColumns, number: int, counts: dict[str, Any]
) -> tuple[bytes, dict[str, Any] | None]:
    """(bytes of the picture, its row of an index); None for the latter, and counted, where something is lacking."""
    data = picture_bytes(row[columns.image])
    captions = clean(captions_in({"caption": row[columns.text]}))
    lacking = "rows without the bytes of a picture" if not data else "" if captions else "rows without a caption"
    if lacking or not data:
        counts[lacking] = counts.get(lacking, 0) + 1
        return b"", None
    return data, {"key": str(number), "captions": captions, "sha256": hashlib.sha256(data).digest()}
