"""Reads addresses: the options after `?`, and what kind of data lies at a bare path."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from t2i.data.folders.index import holds_pictures
from t2i.errors import InputError
from t2i.images import SUFFIXES
from t2i.names import nearest, shown


class Address(NamedTuple):
    """Where a data set is: its kind, its place, and what the address says after `?`."""

    kind: str
    place: str
    options: Mapping[str, str]
    notice: str = ""  # of a bare path: what it was taken for, and why

    def __str__(self) -> str:
        options = "&".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.kind}:{self.place}" + (f"?{options}" if options else "")


# kind -> names that a data set of that kind has, any of them, as patterns below its folder; the first kind that fits wins
MARKS: Mapping[str, tuple[str, ...]] = {
    "coco": ("annotations/captions_*.json", "captions_*.json", "annotations/dataset_coco.json", "dataset_coco.json"),
    "flickr8k": ("Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt", "dataset_flickr8k.json", "captions.txt"),
    "flickr30k": ("results_20130124.token", "results.csv", "flickr30k_images/results.csv", "dataset_flickr30k.json"),
    "cub": ("images.txt", "CUB_200_2011/images.txt"),
    "flowers": ("jpg/image_*.jpg", "102flowers/jpg/image_*.jpg"),
    "vg": ("region_descriptions.json",),
    "hub": ("dataset_dict.json", "state.json"),
    "shards": ("*.tar", "train/*.tar"),
    "parquet": ("*.parquet", "data/*.parquet", "train/*.parquet"),
}


_FILES = {".tar": "shards", ".parquet": "parquet"}


_PACKED = (".tar.gz", ".tgz", ".zip", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """`/a?b=c&d=e` -> ("/a", {"b": "c", "d": "e"}); a path that exists as it stands has no options."""
    place, mark, tail = text.partition("?")
    if not mark or Path(text).exists():
        return text, {}
    options: dict[str, str] = {}
    for part in tail.split("&"):
        key, equals, value = part.partition("=")
        if not key or not equals or key in options:
            what = "is there twice" if key in options else "must read key=value"
            raise InputError(f"data {text!r}: {part!r} after `?` {what}, as in coco:/path?split=train2014")
        options[key] = value
    return place, options


def typed_options(address: Address, function: Callable[..., object]) -> dict[str, Any]:
    """The options of an address as keyword arguments of the function that opens it.

    Raises:
        InputError: the kind has no such option, or the value is not of its type.
    """
    hints = get_type_hints(function)
    words = inspect.signature(function).parameters.values()
    known = {"split" if w.name == "train" else w.name: w.name for w in words if w.kind is w.KEYWORD_ONLY}
    typed: dict[str, Any] = {}
    for key, value in address.options.items():
        if key not in known:
            there = f"it takes {', '.join(known)}" if known else "it takes none"
            raise InputError(f"data {address}: {address.kind} has no option {key!r}{nearest(key, known)}; {there}")
        typed[known[key]] = _typed(value, hints[known[key]], f"data {address}: option {key}")
    return typed


def _typed(value: str, hint: Any, where: str) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise InputError(f"{where} must be one of {', '.join(get_args(hint))}{nearest(value, get_args(hint))}")
    elif hint is bool:
        if value not in ("true", "false"):
            raise InputError(f"{where} must be true or false, got {value!r}")
        return value == "true"
    elif hint is int:
        if not value.isascii() or not value.isdigit():
            raise InputError(f"{where} must be a whole number, got {value!r}")
        return int(value)
    return value


def recognise(place: str) -> tuple[str, str]:
    """(kind, a sentence that says so) of a bare path.

    Raises:
        InputError: nothing that lies there is known; the message names what was looked for and what was found.
    """
    path = Path(place).expanduser()
    lower = path.name.lower()
    for suffix, kind in _FILES.items():
        if lower.endswith(suffix):
            return kind, f"data {place}: read as {kind}:{place}"
    if lower.endswith(_PACKED):
        raise InputError(f"data {place!r} is a packed file; unpack it and name the folder, or plain .tar shards")
    if path.is_file():
        hint = ""
        if lower.startswith(("captions_", "dataset_coco")) and lower.endswith(".json"):
            hint = f": coco:{path.parent.parent if path.parent.name == 'annotations' else path.parent}"
        raise InputError(
            f"data {place!r} is a file, not a folder of captioned pictures; name the folder above it{hint}"
        )
    if path.is_dir() and not any(path.iterdir()):
        raise InputError(f"data {place!r} is an empty folder; put pictures with captions there, or name another")
    for kind, patterns in MARKS.items():
        mark = next((pattern for pattern in patterns if _has(path, pattern, kind)), None)
        if mark:
            return kind, f"data {place}: read as {kind}:{place}, as {mark} is there"
    if not holds_pictures(path):
        looked = "; ".join(f"{', '.join(patterns[:2])} ({kind})" for kind, patterns in MARKS.items())
        raise InputError(
            f"data {place!r}: nothing known lies there; looked for pictures with captions (folder); {looked}; found "
            f"{_found(path)}; name the folder that holds them, or say the kind, as in coco:{place}"
        )
    return "folder", ""


def _has(folder: Path, pattern: str, kind: str) -> bool:
    try:
        found = next((entry for entry in folder.glob(pattern) if entry.name != "metadata.parquet"), None)
    except OSError:
        return False
    if found is None:
        return False
    if pattern == "captions.txt":  # of Kaggle's copy; a caption file of one's own has other columns
        return (folder / "Images").is_dir() and found.read_bytes()[:64].replace(b"\r", b"").startswith(
            b"image,caption\n"
        )
    if kind in ("shards", "parquet", "hub", "cub"):  # beside pictures, such names belong to something else
        return not any(entry.suffix.lower() in SUFFIXES for entry in folder.iterdir())
    return True


def _found(folder: Path, most: int = 5) -> str:
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in folder.iterdir())
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(map(shown, names[:most])) + more) or "nothing"
