"""Finds the usual mistakes in a folder whose captions cannot be used, and suggests a fix for each."""

import json
from pathlib import Path, PurePosixPath

from t2i.data.address import inner_data
from t2i.data.folders.index import FolderIndex, class_of, nfc
from t2i.data.folders.metadata import EXAMPLE, METADATA_NAMES
from t2i.data.splits import SPLIT_FOLDERS
from t2i.errors import InputError
from t2i.files import open_regular
from t2i.names import counted, shown, some

_TABLES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".xlsx", ".ods")
_CAPTION_SUFFIXES = (".caption", ".captions", ".cap", ".text", ".prompt", ".tags")


def require_captions(index: FolderIndex) -> None:
    """Raises InputError with a likely cause if a captions file cannot be read or no image has a caption."""
    root = shown(index.root)
    if index.problems:
        more = len(index.problems) - 1
        raise InputError(
            index.problems[0]
            + (f" (and {counted(more, 'more captions file')}; `t2i data check` lists all)" if more else "")
        )
    if any(index.entries.values()):
        return
    if index.missing:
        raise InputError(
            f"captions in {root} name {counted(len(index.missing), 'image')} and none is there: {_lost(index)}"
        )
    kinds = (_empty_metadata, _inner_data, _near_metadata, _other_suffix, _text_folder, _class_folders)
    hint = next((hint for kind in kinds if (hint := kind(index))), "")
    tables = [name for name in index.others if name.lower().endswith(_TABLES)]
    raise InputError(
        f"{counted(len(index.entries), 'image')} in {root} but no captions{f', only {some(tables)}' if tables else ''}: "
        f"{hint or f'put a metadata.jsonl there with lines such as {EXAMPLE}, or a .txt beside each image'}"
    )


def _lost(index: FolderIndex) -> str:
    """Describes an image that captions name, the nearest existing one, and how to fix it."""
    first = index.missing[0]
    if first.startswith("/") or first[1:3] in (":/", ":\\"):
        return f"'{shown(first)}' is an absolute path; write file_name relative to the metadata file"
    if not index.entries:
        return f"not '{shown(first)}'; put the images into that folder"
    same_case = {nfc(name).casefold(): name for name in index.entries}.get(nfc(first).casefold())
    if same_case:
        return f"not '{shown(first)}', but '{shown(same_case)}'; write file_name in the same upper and lower case"
    stem = PurePosixPath(first).stem.casefold()
    near = next(
        (name for name in index.entries if PurePosixPath(name).stem.casefold() == stem), next(iter(index.entries))
    )
    return f"not '{shown(first)}', but '{shown(near)}'; write file_name relative to the metadata file, with its suffix"


def _empty_metadata(index: FolderIndex) -> str:
    """A captions file that names images, or nothing, and has no caption."""
    if not index.sources:
        return ""
    return f"{some(index.sources)} has no caption that is not empty; write lines such as {EXAMPLE}"


def _inner_data(index: FolderIndex) -> str:
    """Suggests a data set of a known kind in a subfolder."""
    address = inner_data(index.root)
    return f"name {shown(address)}, which is inside" if address else ""


def _near_metadata(index: FolderIndex) -> str:
    """Suggests another name for a captions file whose name is not read."""
    for name in index.others:
        base = name.rpartition("/")[2].lower()
        stem, _, suffix = base.partition(".")
        near = base.replace(" ", "").startswith(("metadata.", "metadata_", "metadata(", "metadata-"))
        if not near and not (
            stem in ("captions", "caption", "labels", "prompts") and suffix in ("jsonl", "csv", "parquet")
        ):
            continue
        if suffix == "json" and not _is_jsonl(index.root / name):
            return f"{shown(name)} is not read: write it as metadata.jsonl, one object per line such as {EXAMPLE}"
        kind = next((kind for kind in ("parquet", "jsonl", "csv") if suffix.startswith(kind)), "")
        kind = kind or {"json1": "jsonl", "ndjson": "jsonl", "tsv": "csv", "txt": "csv"}.get(suffix, "jsonl")
        return f"{shown(name)} is not read under that name; rename it to metadata.{kind} ({', '.join(METADATA_NAMES)} are read)"
    return ""


def _is_jsonl(path: Path) -> bool:
    """Returns True if the first line is an object with a file name, i.e. the file is .jsonl under another name."""
    try:
        with open_regular(path) as file:
            row = json.loads(file.readline(1 << 20))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(row, dict) and "file_name" in row


def _other_suffix(index: FolderIndex) -> str:
    """Suggests .txt for captions such as 1.caption or 1.png.txt beside 1.png."""
    paths = set(index.files().values())
    stems = {path.rpartition(".")[0] for path in paths}
    for name in index.others:
        if name.lower().endswith(_CAPTION_SUFFIXES) and name.rpartition(".")[0] in stems:
            return f"{shown(name)} and similar files are not read; rename them to .txt"
    for name in index.others:
        if name.lower().endswith(".txt") and name[:-4] in paths:
            right = PurePosixPath(name).with_suffix("").with_suffix(".txt").name
            return f"{shown(name)} and similar files are not read; rename it to {shown(right)}, and the others likewise"
    return ""


def _text_folder(index: FolderIndex) -> str:
    """Suggests moving captions that are in another folder than their images, as in text/1.txt and images/1.png."""
    texts = {PurePosixPath(name).stem: name for name in index.others if name.lower().endswith(".txt")}
    for name, path in index.files().items():
        text = texts.get(PurePosixPath(name).stem)
        if text:
            beside = PurePosixPath(path).with_suffix(".txt")
            fix = f"move {shown(text)} to {shown(str(beside))}, and the others likewise"
            return f"captions are read beside their images only; {fix}"
    return ""


def _class_folders(index: FolderIndex) -> str:
    """Suggests captions from the names of folders."""
    names = list(dict.fromkeys(word for name in index.entries if (word := class_of(name))))
    if len(names) < 2:
        return ""
    return (
        f"if the folders are classes ({some(names)}), have captions made from their names, as in "
        f"'folder:{shown(index.root)}?caption=a photo of a {{class}}'; or put a metadata.jsonl there with lines such as {EXAMPLE}"
    )


def inner_folder(index: FolderIndex) -> str:
    """Returns a warning if split folders are one or two levels too deep, so images are assigned by name; otherwise ""."""
    if not index.seeded or index.kind != "folder":
        return ""
    for name in index.entries:
        folders = PurePosixPath(name).parts[:-1]
        for k, folder in enumerate(folders[1:3], 1):
            above = "/".join(folders[:k])
            if folder.lower() in SPLIT_FOLDERS and all(other.startswith(f"{above}/") for other in index.entries):
                return (
                    f"the folder {folder}/ in {shown(index.root / above)} is ignored as a split, as it is not at the top; "
                    f"name folder:{shown(index.root / above)}"
                )
    return ""
