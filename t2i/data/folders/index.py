"""What lies in a folder of captioned pictures: names, captions and splits, with nothing decoded.

docs/data.md describes the layouts that are read.
"""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from t2i import images
from t2i.data.folders.metadata import METADATA_NAMES, read_metadata, read_txt
from t2i.data.splits import VAL_SHARE, draw_splits, split_folder
from t2i.errors import InputError
from t2i.files import walk
from t2i.names import shown, some

OTHER_PICTURES = (".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".svg", ".jp2", ".psd", ".tga", ".ppm")


_NO_CAPTIONS = ("readme", "license", "licence", "classes")  # .txt files that caption no picture


@dataclass
class FolderIndex:
    """The pictures of a folder and their captions. An id is the picture's path below the root, with `/`, in NFC."""

    root: Path
    files: dict[str, str] = field(default_factory=dict)  # id -> path below root as the disk spells it, sorted by id
    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)  # id -> its captions, at least one
    missing: list[str] = field(default_factory=list)  # pictures that captions speak of and that are not there
    problems: list[str] = field(default_factory=list)  # captions files that cannot be read, a full sentence each
    unsupported: list[str] = field(default_factory=list)  # pictures in formats that are not read
    others: list[str] = field(default_factory=list)  # all other files
    kind: str = "folder"  # of its address
    parts: Mapping[str, str | None] | None = (
        None  # id -> split, where the data set itself says so; None: by folder or drawn
    )
    drawn_val: bool = False  # of `parts`: no split is for validation, so a share of train is drawn

    @property
    def seeded(self) -> bool:
        """True without split folders: the split is drawn by id."""
        return self.parts is None and not any(split_folder(name) for name in self.files)

    def splits(self, ids: Sequence[str], seed: int) -> list[str | None]:
        """The split of each id; None for a picture outside the split folders.

        The seeded split of an id depends on the id and the seed alone, so that new files move no others.
        """
        if self.parts is not None:
            own = [self.parts.get(name) for name in ids]
            if not self.drawn_val:
                return own
            drawn = draw_splits(ids, seed, {"train": 1 - VAL_SHARE, "val": VAL_SHARE})
            return [new if part == "train" else part for part, new in zip(own, drawn, strict=True)]
        if not self.seeded:
            return [split_folder(name) for name in ids]
        return list(draw_splits(ids, seed))


def index_folder(path: str | Path) -> FolderIndex:
    """Lists the pictures and reads the captions of a folder and all below it. Hidden files and folders are passed over.

    Raises:
        InputError: there is no such folder, it cannot be listed, or no picture is in it.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "not found"
        raise InputError(f"data folder '{shown(path)}' {what}; name an existing folder of captioned pictures")
    index = FolderIndex(root)
    listed = sorted(walk(root))
    _sort_out(index, listed)
    if not index.files:
        hint = "name the folder that holds them"
        if index.unsupported:
            hint = f"convert {some(index.unsupported)} to PNG or JPEG"
        kinds = " ".join(images.SUFFIXES)
        raise InputError(f"no pictures ({kinds}) among the {len(listed):,} files in {shown(root)} and below; {hint}")
    _gather_captions(index, listed)
    return index


def holds_pictures(root: Path) -> bool:
    """Whether a file there or below has the name of a picture."""
    return any(name.lower().endswith(images.SUFFIXES) for name in walk(root))


def _sort_out(index: FolderIndex, listed: Sequence[str]) -> None:
    files: dict[str, str] = {}
    for path in listed:
        suffix = PurePosixPath(path).suffix.lower()
        if suffix in images.SUFFIXES:
            name = nfc(path)
            files[path if name in files else name] = path
        elif suffix in OTHER_PICTURES:
            index.unsupported.append(path)
        else:
            index.others.append(path)
    index.files = dict(sorted(files.items()))


def nfc(name: str) -> str:
    """A file name as ids spell it: the same file is NFD on one system and NFC on another."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _gather_captions(index: FolderIndex, listed: Sequence[str]) -> None:
    found: dict[str, list[str]] = {}
    missing: list[str] = []
    for path in listed:
        folder, _, base = path.rpartition("/")
        if base.lower() not in METADATA_NAMES:
            continue
        try:
            rows = read_metadata(index.root / path)
        except InputError as error:
            index.problems.append(str(error))
            continue
        for file_name, captions in rows:
            name = _resolve(index, folder, file_name)
            if name in index.files:
                found.setdefault(name, []).extend(captions)
            else:
                missing.append(name)
    _gather_txt(index, listed, found, missing)
    index.captions = {name: tuple(dict.fromkeys(found[name])) for name in index.files if found.get(name)}
    index.missing = list(dict.fromkeys(missing))


def _resolve(index: FolderIndex, folder: str, file_name: str) -> str:
    """The id that a metadata file in `folder` means."""
    name = nfc(os.path.normpath(os.path.join(folder, file_name)).replace(os.sep, "/"))
    if name not in index.files and "\\" in name:  # written on Windows
        name = os.path.normpath(name.replace("\\", "/")).replace(os.sep, "/")
    return name


def _gather_txt(index: FolderIndex, listed: Sequence[str], found: dict[str, list[str]], missing: list[str]) -> None:
    """Adds the .txt files beside the pictures that no metadata names."""
    texts: Mapping[str, str] = {path[:-4]: path for path in listed if path[-4:].lower() == ".txt"}
    pictured: set[str] = set()
    for name, path in index.files.items():
        stem = path.rpartition(".")[0]
        if stem not in texts:
            continue
        pictured.add(stem)
        if name not in found:
            try:
                found[name] = read_txt(index.root / texts[stem])
            except InputError as error:
                index.problems.append(str(error))
    folders = {stem.rpartition("/")[0] for stem in pictured}
    for stem in sorted(texts.keys() - pictured):
        folder, _, base = stem.rpartition("/")
        if folder in folders and base.lower() not in _NO_CAPTIONS:
            missing.append(f"{stem} (of {texts[stem]})")
