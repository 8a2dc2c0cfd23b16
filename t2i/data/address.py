"""Reads addresses: the options after `?`, and the kind of data at a bare path."""

import re
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from t2i.data.folders.index import holds_images
from t2i.data.folders.metadata import METADATA_NAMES
from t2i.errors import InputError
from t2i.files import open_regular, walk
from t2i.images import SUFFIXES
from t2i.names import nearest, shown


class Address(NamedTuple):
    """The place of a data set: its kind, its path, and the options after `?`."""

    kind: str
    place: str
    options: Mapping[str, str]
    notice: str = ""  # for a bare path: its recognised kind, and why

    def __str__(self) -> str:
        options = "&".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.kind}:{self.place}" + (f"?{options}" if options else "")


# kind -> patterns of file names below the folder, of which a data set of that kind has one; the first matching kind is used
MARKS: Mapping[str, tuple[str, ...]] = {
    "coco": ("annotations/captions_*.json", "captions_*.json", "annotations/dataset_coco.json", "dataset_coco.json"),
    "flickr8k": ("Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt", "dataset_flickr8k.json", "captions.txt"),
    "flickr30k": ("results_20130124.token", "results.csv", "flickr30k_images/results.csv", "dataset_flickr30k.json"),
    "cub": ("images.txt", "CUB_200_2011/images.txt"),
    "flowers": ("jpg/image_*.jpg", "102flowers/jpg/image_*.jpg"),
    "mirflickr": ("meta/tags/tags1.txt", "mirflickr/meta/tags/tags1.txt"),
    "vg": ("region_descriptions.json",),
    "vqa2": ("v2_OpenEnded_mscoco_*.json", "Questions/v2_OpenEnded_mscoco_*.json"),
    "hub": ("dataset_dict.json", "state.json"),
    "shards": ("*.tar", "train/*.tar"),
    "parquet": ("*.parquet", "data/*.parquet", "train/*.parquet"),
}
# file name -> pattern of the beginning of the file, since other files may have the same name
_BEGINS: Mapping[str, str] = {
    r"captions_(train|val)20\d\d\.json": r'\s*\{.*"(images|annotations|info)"\s*:',
    r"v2_OpenEnded_mscoco_.*\.json": r'\s*\{.*"(questions|info|data_subtype)"\s*:',
    r"dataset_(coco|flickr\w+)\.json": r'\s*\{.*"images"\s*:',
    r"(Flickr8k|results_20130124)\..*": r"[^\n]*\.jpg#\d",
    r"captions\.txt": r"image,caption\r?\n",
    r"results\.csv": r"[^\n]*\|[^\n]*\|",
    r"images\.txt": r"\d+ [^\n]+/[^\n]+\.jpg",
    r"region_descriptions\.json": r'\s*\[.*"regions"\s*:',
    r"dataset_dict\.json": r'\s*\{.*"splits"\s*:',
    r"state\.json": r'\s*\{.*"_data_files"\s*:',
}
_READ = 1 << 16  # number of bytes read from the beginning of a file
_LOOKED_THROUGH = 20_000  # number of files searched for images with captions

_FILES = {".tar": "shards", ".parquet": "parquet"}
_PACKED = (".tar.gz", ".tgz", ".zip", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """Splits `/a?b=c&d=e` into ("/a", {"b": "c", "d": "e"}); an existing path with `?` in its name has no options."""
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


def read_options(address: Address, function: Callable[..., object]) -> tuple[Any, ...]:
    """Returns the options of an address as the last argument of the function that opens it; () if its kind has none.

    Raises:
        InputError: the kind has no such option, or the value has the wrong type.
    """
    kind = get_type_hints(function).get("options")
    known = get_type_hints(kind) if kind else {}
    typed: dict[str, Any] = {}
    for key, value in address.options.items():
        if key not in known:
            takes = f"it takes {', '.join(known) or 'none'}"
            raise InputError(f"data {address}: {address.kind} has no option {key!r}{nearest(key, known)}; {takes}")
        typed[key] = _typed(value, known[key], f"data {address}: option {key}")
    return (kind(**typed),) if kind else ()


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
    """Returns the kind of data at a bare path, and a message about it.

    Raises:
        InputError: there is no known data; the message says what was looked for and what was found.
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
        raise InputError(f"data {place!r} is a file, not a folder of captioned images; name the folder above it{hint}")
    if path.is_dir() and not any(path.iterdir()):
        raise InputError(f"data {place!r} is an empty folder; put images with captions there, or name another")
    if _has_captioned_images(path):
        return "folder", ""
    kind, mark = _marked(path)
    if mark:
        own = f"; for the images in it with captions beside them say folder:{place}" if holds_images(path) else ""
        return kind, f"data {place}: read as {kind}:{place}, as {mark} is there{own}"
    if not holds_images(path):
        looked = "; ".join(f"{', '.join(patterns[:2])} ({kind})" for kind, patterns in MARKS.items())
        raise InputError(
            f"data {place!r}: no known data there; looked for images with captions (folder); {looked}; found "
            f"{_found(path)}; name the folder that holds them, or say the kind, as in coco:{place}"
        )
    return "folder", ""


def _has_captioned_images(root: Path) -> bool:
    """Returns True if an image has a .txt file beside it, or there are images and a metadata file; these take precedence."""
    suffixes: dict[str, set[bool]] = {}  # path without suffix -> whether it is an image, a text
    metadata = image = False
    for path in islice(walk(root), _LOOKED_THROUGH):
        stem, _, suffix = path.rpartition(".")
        suffix = f".{suffix.lower()}"
        image = image or suffix in SUFFIXES
        metadata = metadata or path.rpartition("/")[2].lower() in METADATA_NAMES and path.count("/") <= 1
        if suffix == ".txt" or suffix in SUFFIXES:
            suffixes.setdefault(stem, set()).add(suffix == ".txt")
            if len(suffixes[stem]) == 2:
                return True
    return metadata and image


def inner_data(root: Path) -> str:
    """Returns the address of a data set of a known kind in a folder one or two below, or ""."""
    inner = sorted(path for pattern in ("*", "*/*") for path in islice(root.glob(pattern), 1000) if path.is_dir())
    for path in inner:
        kind, mark = _marked(path)
        if mark:
            return f"{kind}:{path}"
    return ""


def _marked(root: Path) -> tuple[str, str]:
    """(kind, the pattern that fits) of a folder; two empty strings where none does."""
    for kind, patterns in MARKS.items():
        for pattern in patterns:
            if _has(root, pattern, kind):
                return kind, pattern
    return "", ""


def _has(folder: Path, pattern: str, kind: str) -> bool:
    try:
        found = [entry for entry in islice(folder.glob(pattern), 100) if entry.name != "metadata.parquet"]
    except OSError:
        return False
    if pattern == "captions.txt" and not (folder / "Images").is_dir():  # of Kaggle's copy
        return False
    if kind in ("shards", "parquet", "hub", "cub"):  # beside images, such names belong to something else
        found = [] if any(entry.suffix.lower() in SUFFIXES for entry in folder.iterdir()) else found
    return any(_is_mark(path, kind) for path in found)


def _is_mark(path: Path, kind: str) -> bool:
    """Returns True unless the contents of the file show that it is something else."""
    if kind in ("shards", "flowers", "mirflickr"):
        return path.is_file()
    try:
        if kind == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            with open_regular(path) as file:
                kinds = [field.type for field in pq.read_schema(file)]
            kinds = [kind.field("bytes").type if _has_bytes(kind) else kind for kind in kinds]
            return any(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in kinds)
        with open_regular(path) as file:
            start = file.read(_READ).decode("utf-8-sig", "replace")
    except Exception:  # unreadable, or damaged in any way: the kind's own reader says how
        return True
    begins = next((begins for name, begins in _BEGINS.items() if re.fullmatch(name, path.name)), None)
    return begins is not None and re.match(begins, start, re.DOTALL) is not None


def _has_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _found(folder: Path, most: int = 5) -> str:
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in folder.iterdir())
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(map(shown, names[:most])) + more) or "nothing"
