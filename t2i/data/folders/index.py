"""Names, captions and splits of a folder of captioned images; nothing is decoded.

docs/data.md describes the layouts that are read.
"""

import os
import unicodedata
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from t2i import images
from t2i.data.cached import Stamp, stamp_of
from t2i.data.captions import clean_caption
from t2i.data.folders.metadata import METADATA_NAMES, read_metadata, read_txt
from t2i.data.splits import SPLIT_FOLDERS, VAL_SHARE, assign_splits, split_folder
from t2i.errors import InputError
from t2i.files import walk
from t2i.names import counted, shown, some

CLASS = "{class}"
_NO_CAPTIONS = ("readme", "license", "licence", "classes")  # .txt files that caption no image


class _Entries:
    """Captions and paths of the images of a folder in one dict; a million tuples and a second dict would take 200 MB."""

    def __init__(self, names: Iterable[str], paths: Mapping[str, str]) -> None:
        self.joined = dict.fromkeys(names, "")  # id -> its captions, joined by line ends: cleaned ones hold none
        self.paths = paths  # of the ids that the disk spells otherwise

    def add(self, name: str, captions: Sequence[str]) -> None:
        if self.joined[name]:
            captions = list(dict.fromkeys([*self.joined[name].split("\n"), *captions]))
        self.joined[name] = captions[0] if len(captions) == 1 else "\n".join(captions)


class _Files(Mapping[str, str]):
    """id -> path."""

    def __init__(self, entries: _Entries) -> None:
        self._joined, self._paths = entries.joined, entries.paths

    def __getitem__(self, name: str) -> str:
        if name not in self._joined:
            raise KeyError(name)
        return self._paths.get(name, name)

    def __contains__(self, name: object) -> bool:
        return name in self._joined

    def __iter__(self) -> Iterator[str]:
        return iter(self._joined)

    def __len__(self) -> int:
        return len(self._joined)


class _Captions(Mapping[str, tuple[str, ...]]):
    """id -> captions, of the images that have any."""

    def __init__(self, entries: _Entries) -> None:
        self._joined = entries.joined

    def __getitem__(self, name: str) -> tuple[str, ...]:
        if not self._joined[name]:
            raise KeyError(name)
        return tuple(self._joined[name].split("\n"))

    def __contains__(self, name: object) -> bool:
        return bool(self._joined.get(name))  # pyright: ignore[reportArgumentType, reportCallIssue]

    def __iter__(self) -> Iterator[str]:
        return (name for name, captions in self._joined.items() if captions)

    def __len__(self) -> int:
        return sum(map(bool, self._joined.values()))


@dataclass
class FolderIndex:
    """The images of a folder and their captions. An id is the image's path below the root, with `/`, in NFC."""

    root: Path
    files: Mapping[str, str] = field(default_factory=dict)  # id -> path below root as the disk spells it, sorted by id
    captions: Mapping[str, Sequence[str]] = field(default_factory=dict)  # id -> its captions, at least one
    missing: list[str] = field(default_factory=list)  # images that captions name and that are absent
    problems: list[str] = field(default_factory=list)  # captions files that cannot be read, a full sentence each
    unsupported: list[str] = field(default_factory=list)  # images in formats that are not read
    others: list[str] = field(default_factory=list)  # all other files
    sources: list[str] = field(default_factory=list)  # the captions files but .txt
    stamps: dict[str, Stamp] = field(default_factory=dict)  # of all folders and captions files, taken before reading
    kind: str = "folder"  # of its address
    # id -> split where the data set itself says so; None: by folder, or drawn
    parts: Mapping[str, str | None] | None = None
    labels: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)  # label -> id -> classes
    drawn_val: bool = False  # of `parts`: no split is for validation, so a share of train is drawn

    @property
    def seeded(self) -> bool:
        """True without split folders: the split is drawn by id."""
        return self.parts is None and not any(split_folder(name) for name in self.files)

    def splits(self, ids: Sequence[str], seed: int) -> list[str | None]:
        """Returns the split of each id; None for an image outside the split folders.

        The seeded split of an id depends on the id and the seed alone, so that new files move no others.
        """
        if self.parts is not None:
            own = [self.parts.get(name) for name in ids]
            if not self.drawn_val:
                return own
            drawn = assign_splits(ids, seed, {"train": 1 - VAL_SHARE, "val": VAL_SHARE})
            return [new if part == "train" else part for part, new in zip(own, drawn, strict=True)]
        if not self.seeded:
            return [split_folder(name) for name in ids]
        return list(assign_splits(ids, seed))


def index_folder(path: str | Path, template: str = "") -> FolderIndex:
    """Lists the images and reads the captions of a folder and all below it. Hidden files and folders are passed over.

    Args:
        template: the caption of images without one; `{class}` in it becomes the name of the image's folder.

    Raises:
        InputError: there is no such folder, it cannot be listed, or no image is in it.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "not found"
        raise InputError(f"data folder '{shown(path)}' {what}; name an existing folder of captioned images")
    if template and CLASS not in template:
        raise InputError(f"caption={template!r} must hold {CLASS}, as in caption=a photo of a {CLASS}")
    index = FolderIndex(root)
    entries, texts = _sort_out(index)
    if not index.files:
        hint = "name the folder that holds them"
        if index.unsupported:
            hint = f"convert {some(index.unsupported)} to PNG or JPEG"
        kinds = " ".join(images.SUFFIXES)
        count = len(index.unsupported) + len(index.others) + len(index.sources) + len(texts)
        raise InputError(f"no images ({kinds}) among {counted(count, 'file')} in {shown(root)} and below; {hint}")
    _gather_captions(index, entries, texts, template)
    return index


def holds_images(root: Path) -> bool:
    """Returns True if a file in the folder or below has the name of an image."""
    return any(name.lower().endswith(images.SUFFIXES) for name in walk(root))


def _sort_out(index: FolderIndex) -> tuple[_Entries, dict[str, str]]:
    """Fills the lists of files; returns the images, and the .txt files by their paths without the suffix."""
    names: list[str] = []
    composed: set[str] = set()
    decomposed: list[str] = []
    texts: dict[str, str] = {}

    def enter(folder: str) -> None:
        index.stamps[folder] = stamp_of(index.root / folder)

    for path in sorted(walk(index.root, enter)):
        suffix = "." + path.rpartition(".")[2].lower()
        if suffix in images.SUFFIXES:
            if path.isascii():
                names.append(path)
            elif nfc(path) == path:
                composed.add(path)
            else:
                decomposed.append(path)
        elif suffix in images.OTHER_SUFFIXES:
            index.unsupported.append(path)
        elif suffix == ".txt":
            texts[path[:-4]] = path
        elif path.rpartition("/")[2].lower() in METADATA_NAMES:
            index.sources.append(path)
        else:
            index.others.append(path)
    odd: dict[str, str] = {}  # id -> path that is spelled otherwise
    for path in decomposed:
        name = nfc(path)
        odd[path if name in composed or name in odd else name] = path
    entries = _Entries(sorted([*names, *composed, *odd]) if composed or odd else names, odd)
    index.files, index.captions = _Files(entries), _Captions(entries)
    return entries, texts


def nfc(name: str) -> str:
    """Returns a file name as ids spell it: the same file is NFD on one system and NFC on another."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _gather_captions(index: FolderIndex, found: _Entries, texts: Mapping[str, str], template: str) -> None:
    parts: dict[str, str | None] = {}
    missing: dict[str, None] = {}
    for path in index.sources:
        folder = path.rpartition("/")[0]
        index.stamps[path] = stamp_of(index.root / path)
        try:
            for row in read_metadata(index.root / path):
                name = resolve_name(found.joined, folder, row.file_name)
                if name not in found.joined:
                    missing[name] = None
                    continue
                found.add(name, row.captions)
                if row.split:
                    parts[name] = SPLIT_FOLDERS.get(row.split.lower())
        except InputError as error:
            index.problems.append(str(error))
    _gather_txt(index, texts, found, missing)
    if template:
        for name in index.files:
            if name not in index.captions and (own := _of_class(name, template)):
                found.add(name, [own])
    index.missing = list(missing)
    if any(parts.values()):  # a column of other words is not about splits
        index.parts, index.drawn_val = parts, "val" not in parts.values()


def resolve_name(names: Container[str], folder: str, file_name: str) -> str:
    """Returns the id, of those in `names`, that a metadata file in `folder` means."""
    name = f"{folder}/{file_name}" if folder else file_name
    if name in names:
        return name
    name = nfc(os.path.normpath(os.path.join(folder, file_name)).replace(os.sep, "/"))
    if name not in names and "\\" in name:  # written on Windows
        name = os.path.normpath(name.replace("\\", "/")).replace(os.sep, "/")
    return name


def _gather_txt(index: FolderIndex, texts: Mapping[str, str], found: _Entries, missing: dict[str, None]) -> None:
    """Adds the .txt files beside the images that no metadata names."""
    pictured: set[str] = set()
    for name, path in index.files.items() if texts else ():
        stem = path.rpartition(".")[0]
        if stem not in texts:
            continue
        pictured.add(stem)
        if name not in index.captions:
            index.stamps[texts[stem]] = stamp_of(index.root / texts[stem])
            try:
                found.add(name, read_txt(index.root / texts[stem]))
            except InputError as error:
                index.problems.append(str(error))
    folders = {stem.rpartition("/")[0] for stem in pictured}
    for stem in sorted(texts.keys() - pictured):
        folder, _, base = stem.rpartition("/")
        if folder in folders and base.lower() not in _NO_CAPTIONS:
            missing[f"{stem} (of {texts[stem]})"] = None
        else:
            index.others.append(texts[stem])


# ---- folders that are classes --------------------------------------------------------------------------------------


def class_of(name: str) -> str:
    """Returns the class that the folder of an id names, as words; "" at the top and in a split folder."""
    folder = PurePosixPath(name).parent
    if folder.name == "" or len(folder.parts) == 1 and split_folder(name):
        return ""
    return clean_caption(folder.name.replace("_", " ").replace("-", " "))


def _of_class(name: str, template: str) -> str:
    word = class_of(name)
    return clean_caption(template.replace(CLASS, word)) if word else ""


def classes(index: FolderIndex) -> Iterator[str]:
    """Yields the words that the folders of the images name, each once."""
    yield from dict.fromkeys(word for name in index.files if (word := class_of(name)))
