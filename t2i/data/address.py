"""Parses addresses: the options after `?`, and the kind of data at a bare path."""

import re
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from t2i.data.folders.index import holds_images
from t2i.data.folders.metadata import METADATA_NAMES
from t2i.data.packed.tables import holds_bytes
from t2i.errors import InputError
from t2i.files import at_home, contents, open_regular, walk
from t2i.images import OTHER_SUFFIXES, SUFFIXES
from t2i.names import nearest, shown


class Address(NamedTuple):
    """The address of a data set: its kind, its path, and the options after `?`."""

    kind: str
    place: str
    options: Mapping[str, str]
    notice: str = ""  # for a bare path: a message that names the recognised kind and the reason

    def __str__(self) -> str:
        options = "&".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.kind}:{self.place}" + (f"?{options}" if options else "")


# kind -> patterns of file names; a folder has the first kind of which a pattern matches
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
# file name -> pattern of the beginning of the file, as other files may have the same name
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
_SEARCHED = 20_000  # number of files that are searched for images with captions

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
            what = "occurs twice" if key in options else "must read key=value"
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
        InputError: there is no known data; the message lists what was looked for and what was found.
    """
    path = at_home(place)
    lower = path.name.lower()
    for suffix, kind in _FILES.items():
        if lower.endswith(suffix):
            return kind, f"data {place}: read as {kind}:{place}"
    if lower.endswith(_PACKED):
        raise InputError(f"data {place!r} is a packed file; unpack it and name the folder, or plain .tar shards")
    if not path.is_dir():
        hint = ""
        if lower.startswith(("captions_", "dataset_coco")) and lower.endswith(".json"):
            hint = f": coco:{path.parent.parent if path.parent.name == 'annotations' else path.parent}"
        raise InputError(f"data {place!r} is a file, not a folder of captioned images; name the folder above it{hint}")
    if not any(path.iterdir()):
        raise InputError(f"data {place!r} is an empty folder; put images with captions there, or name another")
    if _has_captioned_images(path):
        return "folder", ""
    kind, mark = _marked(path)
    if mark:
        own = f"; for the images in it with captions beside them say folder:{place}" if holds_images(path) else ""
        return kind, f"data {place}: read as {kind}:{place}, as {mark} is there{own}"
    if not holds_images(path):
        if other := next((name for name in walk(path) if name.lower().endswith(OTHER_SUFFIXES)), ""):
            raise InputError(
                f"data {place!r} holds images in a format that is not read, such as {shown(other)}; convert them to PNG or JPEG"
            )
        looked = "; ".join(f"{', '.join(patterns[:2])} ({kind})" for kind, patterns in MARKS.items())
        raise InputError(
            f"data {place!r}: no known data there; looked for images with captions (folder); {looked}; found "
            f"{contents(path)}; name the folder of the data, or its kind, as in coco:{place}"
        )
    return "folder", ""


def _has_captioned_images(root: Path) -> bool:
    """Returns True if an image has a .txt file beside it, or there are images and a metadata file."""
    suffixes: dict[str, set[bool]] = {}  # path without suffix -> True for a text, False for an image
    metadata = image = False
    for path in islice(walk(root), _SEARCHED):
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
    """Returns the address of a data set of a known kind one or two levels below a folder, or ""."""
    inner = sorted(path for pattern in ("*", "*/*") for path in islice(root.glob(pattern), 1000) if path.is_dir())
    for path in inner:
        kind, mark = _marked(path)
        if mark:
            return f"{kind}:{path}"
    return ""


def _marked(root: Path) -> tuple[str, str]:
    """Returns the kind of a folder and the pattern that matches; two empty strings if none does."""
    for kind, patterns in MARKS.items():
        for pattern in patterns:
            if _has(root, pattern, kind):
                return kind, pattern
    return "", ""


def _has(folder: Path, pattern: str, kind: str) -> bool:
    try:
        paths = [path for path in islice(folder.glob(pattern), 100) if path.name != "metadata.parquet"]
    except OSError:
        return False
    if pattern == "captions.txt" and not (folder / "Images").is_dir():  # not Kaggle's copy
        return False
    if kind in ("shards", "parquet", "hub", "cub"):  # beside images, files of these names are something else
        paths = [] if any(entry.suffix.lower() in SUFFIXES for entry in folder.iterdir()) else paths
    return any(_is_mark(path, kind) for path in paths)


def _is_mark(path: Path, kind: str) -> bool:
    """Returns True unless the contents of the file show that it is something else."""
    if kind in ("shards", "flowers", "mirflickr"):
        return path.is_file()
    try:
        if kind == "parquet":
            import pyarrow.parquet as pq

            with open_regular(path) as file:
                return any(holds_bytes(field.type) for field in pq.read_schema(file))
        with open_regular(path) as file:
            start = file.read(_READ).decode("utf-8-sig", "replace")
    except Exception:  # the file is unreadable or damaged; the reader of this kind will say how
        return True
    begins = next((begins for name, begins in _BEGINS.items() if re.fullmatch(name, path.name)), None)
    return begins is not None and re.match(begins, start, re.DOTALL) is not None
