"""Lists the images, captions and splits of a folder, without decoding an image. docs/data.md describes the layouts."""

import os
import unicodedata
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from t2i import images, seeding
from t2i.data.cached import Stamp, stamp_of
from t2i.data.captions import clean_caption
from t2i.data.folders.metadata import METADATA_NAMES, read_metadata, read_txt
from t2i.data.splits import NONE, SEEDED, SPLIT_FOLDERS, SPLITS, divide, split_folder, unknown_splits
from t2i.errors import InputError
from t2i.files import at_home, walk
from t2i.names import counted, shown, some

CLASS = "{class}"
_NO_CAPTIONS = ("readme", "license", "licence", "classes")  # .txt files that are not captions
_NUMBER_OF: Mapping[str | None, int] = {name: number for number, name in enumerate(SPLITS)}


@dataclass
class FolderIndex:
    """The images of a folder and their captions. The id of an image is its path below the root, with `/`, in NFC."""

    root: Path
    # id -> captions joined by line ends, which cleaned captions do not have; "": none. Sorted by id. Lists of captions would
    # take 100 MB more per million images
    entries: dict[str, str] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)  # id -> path below root as on the disk, if another
    missing: list[str] = field(default_factory=list)  # images that captions name and that do not exist
    problems: list[str] = field(default_factory=list)  # a message for each captions file that cannot be read
    unsupported: list[str] = field(default_factory=list)  # images in formats that are not read
    others: list[str] = field(default_factory=list)  # all other files
    sources: list[str] = field(default_factory=list)  # captions files, except .txt
    stamps: dict[str, Stamp] = field(default_factory=dict)  # of all folders and captions files, taken before reading
    kind: str = "folder"  # kind of the address
    parts: Mapping[str, str | None] | None = None  # id -> split by the data set's own lists; None: it has none
    labels: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)  # label -> id -> classes
    unknown_splits: str = ""  # a warning about a column of splits that has none
    needs_val: bool = False  # `parts` has no split for validation, so a share of train is assigned to it

    def path(self, name: str) -> str:
        """Returns the path of an image below the root, as on the disk."""
        return self.paths.get(name, name)

    def files(self) -> dict[str, str]:
        """Returns id -> path of all images."""
        return {name: self.path(name) for name in self.entries}

    def captions(self, name: str) -> tuple[str, ...]:
        """Returns the captions of an image."""
        return tuple(filter(None, self.entries[name].split("\n")))

    def captioned(self) -> list[str]:
        """Returns the ids of the images that have captions."""
        return [name for name, captions in self.entries.items() if captions]

    def add(self, name: str, captions: Iterable[str]) -> None:
        """Adds captions to those of an image; equal ones are kept once."""
        if self.entries[name]:
            captions = dict.fromkeys([*self.captions(name), *captions])
        self.entries[name] = "\n".join(captions)

    @cached_property
    def seeded(self) -> bool:
        """True without lists of splits and without split folders: images are assigned by id."""
        return self.parts is None and not any(split_folder(name) for name in self.entries)

    def split_numbers(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Returns the index in SPLITS of each id's split; SEEDED if it is assigned by id, NONE outside the split folders."""
        if self.seeded:
            return np.full(len(ids), SEEDED)
        split_of = split_folder if self.parts is None else self.parts.get
        return np.array([_NUMBER_OF.get(split_of(name), NONE) for name in ids], np.int64)

    def splits(self, ids: Sequence[str], seed: int) -> list[str | None]:
        """Returns the split of each id; None for an image outside the split folders.

        An assigned split depends on the id and the seed alone, so new files move no others.
        """
        numbers = self.split_numbers(ids)
        numbers = divide(numbers, lambda rows: seeding.ids_of([ids[int(i)] for i in rows]), seed, self.needs_val)
        return [SPLITS[number] if number >= 0 else None for number in numbers.tolist()]


def index_folder(path: str | Path, template: str = "") -> FolderIndex:
    """Lists the images and reads the captions in a folder and below; skips hidden files and folders.

    Args:
        template: caption of images that have none; `{class}` in it is replaced by the name of the image's folder.

    Raises:
        InputError: the folder does not exist, cannot be listed, or has no images.
    """
    root = at_home(path)
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "not found"
        raise InputError(f"data folder '{shown(path)}' {what}; name an existing folder of captioned images")
    if template and CLASS not in template:
        raise InputError(f"caption={template!r} must contain {CLASS}, as in caption=a photo of a {CLASS}")
    index = FolderIndex(root)
    texts = _list_files(index)
    if not index.entries:
        hint = "name the folder that holds them"
        if index.unsupported:
            hint = f"convert {some(index.unsupported)} to PNG or JPEG"
        kinds = " ".join(images.SUFFIXES)
        count = len(index.unsupported) + len(index.others) + len(index.sources) + len(texts)
        raise InputError(f"no images ({kinds}) among {counted(count, 'file')} in {shown(root)} and below; {hint}")
    _gather_captions(index, texts, template)
    return index


def holds_images(root: Path) -> bool:
    """Returns True if a file in the folder or below has the suffix of an image."""
    return any(name.lower().endswith(images.SUFFIXES) for name in walk(root))


def _list_files(index: FolderIndex) -> dict[str, str]:
    """Lists the files of the index by kind; returns the .txt files by their paths without the suffix."""
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
    odd: dict[str, str] = {}  # id -> path, where they differ
    for path in decomposed:
        name = nfc(path)
        odd[path if name in composed or name in odd else name] = path
    index.entries = dict.fromkeys(sorted([*names, *composed, *odd]) if composed or odd else names, "")
    index.paths = odd
    return texts


def nfc(name: str) -> str:
    """Returns a file name in NFC, as ids have it; some systems store the same name in NFD."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _gather_captions(index: FolderIndex, texts: Mapping[str, str], template: str) -> None:
    """Adds the captions of metadata files, of .txt files, and by `template`, in this order of precedence."""
    parts: dict[str, str | None] = {}
    named: set[str] = set()  # splits as written
    missing: dict[str, None] = {}
    for path in index.sources:
        folder = path.rpartition("/")[0]
        index.stamps[path] = stamp_of(index.root / path)
        try:
            for row in read_metadata(index.root / path):
                name = resolve_name(index.entries, folder, row.file_name)
                if name not in index.entries:
                    missing[name] = None
                    continue
                index.add(name, row.captions)
                if row.split:
                    parts[name] = SPLIT_FOLDERS.get(row.split.lower())
                    named.add(row.split)
        except InputError as error:
            index.problems.append(str(error))
    _gather_txt(index, texts, missing)
    if template:
        for name, captions in index.entries.items():
            if not captions and (word := class_of(name)):
                index.add(name, [clean_caption(template.replace(CLASS, word))])
    index.missing = list(missing)
    index.unknown_splits = unknown_splits(named, f"{index.kind}:{shown(index.root)}")
    if any(parts.values()):  # otherwise the column is not about splits
        index.parts, index.needs_val = parts, "val" not in parts.values()


def resolve_name(names: Container[str], folder: str, file_name: str) -> str:
    """Returns the id in `names` of a file that a metadata file in `folder` names; an id that is not in `names` if none is."""
    name = f"{folder}/{file_name}" if folder else file_name
    if name in names:
        return name
    name = nfc(os.path.normpath(os.path.join(folder, file_name)).replace(os.sep, "/"))
    if name not in names and "\\" in name:  # written on Windows
        name = os.path.normpath(name.replace("\\", "/")).replace(os.sep, "/")
    return name


def _gather_txt(index: FolderIndex, texts: Mapping[str, str], missing: dict[str, None]) -> None:
    """Adds the captions of .txt files beside images that have no captions yet."""
    used: set[str] = set()
    for name, captions in index.entries.items() if texts else ():
        stem = index.path(name).rpartition(".")[0]
        if stem not in texts:
            continue
        used.add(stem)
        if not captions:
            index.stamps[texts[stem]] = stamp_of(index.root / texts[stem])
            try:
                index.add(name, read_txt(index.root / texts[stem]))
            except InputError as error:
                index.problems.append(str(error))
    folders = {stem.rpartition("/")[0] for stem in used}
    for stem in sorted(texts.keys() - used):
        folder, _, base = stem.rpartition("/")
        if folder in folders and base.lower() not in _NO_CAPTIONS:
            missing[f"{stem} (of {texts[stem]})"] = None
        else:
            index.others.append(texts[stem])


def class_of(name: str) -> str:
    """Returns the words in the name of an image's folder, its class; "" at the top and in a split folder."""
    folder = PurePosixPath(name).parent
    if folder.name == "" or len(folder.parts) == 1 and split_folder(name):
        return ""
    return clean_caption(folder.name.replace("_", " ").replace("-", " "))
