"""Captions that a JSON object or the parquet beside a shard holds."""

from typing import Any

from t2i.data.captions import captions_of
from t2i.data.packed.remote import Place, opened
from t2i.errors import InputError

CAPTION_KEYS = ("captions", "caption", "text")


def captions_in(row: Any, key: str = "") -> list[str]:
    """Returns the cleaned captions that a JSON object names under `key` or, without one, `captions`, `caption` or `text`.

    Raises:
        ValueError: they are not text.
    """
    for name in (key,) if key and key != "json" else CAPTION_KEYS:
        value = row.get(name) if isinstance(row, dict) else None
        if value:
            return captions_of([own for own in value if isinstance(own, str)] if isinstance(value, list) else value)
    return []


def read_beside(path: Place) -> dict[str, list[str]]:
    """Returns key -> captions from the parquet that img2dataset writes beside a shard; empty where it has no such columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with opened(path) as file:
            names = pq.read_schema(file).names
            column = next((name for name in CAPTION_KEYS if name in names), None)
            if "key" not in names or column is None:
                return {}
            table = pq.read_table(file, columns=["key", column])
        keys, values = (table[name].to_pylist() for name in ("key", column))
        return {str(key): captions_of(value) for key, value in zip(keys, values, strict=True)}
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(
            f"{path} is not a parquet file that can be read ({reason}); remove it or write it again"
        ) from error
