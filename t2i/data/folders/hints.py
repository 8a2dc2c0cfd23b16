"""Advice for a folder whose captions cannot be used: the usual mistakes, each with its fix."""

import json
from pathlib import Path, PurePosixPath

from t2i.data.address import inner_data
from t2i.data.folders.index import FolderIndex, classes, nfc
from t2i.data.folders.metadata import EXAMPLE, METADATA_NAMES
from t2i.data.splits import SPLIT_FOLDERS
from t2i.errors import InputError
from t2i.files import open_regular
from t2i.names import counted, shown, some

_TABLES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".xlsx", ".ods")
_CAPTION_SUFFIXES = (".caption", ".captions", ".cap", ".text", ".prompt", ".tags")


def require_captions(index: FolderIndex) -> None:
    """Raises InputError where a captions file cannot be read, or no image has a caption; it names the likely mistake."""
    root = shown(index.root)
    if index.problems:
        more = len(index.problems) - 1
        raise InputError(
            index.problems[0] + (f" (and {more:,} more captions files; `t2i data check` lists them)" if more else "")
        )
    if index.captions:
        return
    if index.missing:
        raise InputError(
            f"captions in {root} name {counted(len(index.missing), 'image')} and none is there: {_lost(index)}"
        )
    kinds = (_inner_data, _near_metadata, _other_suffix, _text_folder, _class_folders)
    hint = next((hint for kind in kinds if (hint := kind(index))), "")
    tables = [name for name in index.others if name.lower().endswith(_TABLES)]
    raise InputError(
        f"{counted(len(index.files), 'image')} in {root} but no captions{f', only {some(tables)}' if tables else ''}: "
        f"{hint or f'put a metadata.jsonl there with lines such as {EXAMPLE}, or a .txt beside each image'}"
    )


def _lost(index: FolderIndex) -> str:
    """Names images that captions ask for, images that are there instead, and a likely reason."""
    first = index.missing[0]
    if first.startswith("/") or first[1:3] in (":/", ":\\"):
        return f"'{shown(first)}' is an absolute path; write file_name relative to the metadata file"
    if not index.files:
        return f"not '{shown(first)}'; put the images into that folder"
    same_case = {nfc(name).casefold(): name for name in index.files}.get(nfc(first).casefold())
    if same_case:
        return f"not '{shown(first)}', but '{shown(same_case)}'; write file_name in the same upper and lower case"
    stem = PurePosixPath(first).stem.casefold()
    near = next((name for name in index.files if PurePosixPath(name).stem.casefold() == stem), next(iter(index.files)))
    return f"not '{shown(first)}', but '{shown(near)}'; write file_name relative to the metadata file, with its suffix"


def _inner_data(index: FolderIndex) -> str:
    """A data set of a known kind in a folder below."""
    address = inner_data(index.root)
    return f"name {shown(address)}, which is inside" if address else ""


def _near_metadata(index: FolderIndex) -> str:
    """A captions file under a name that is not read."""
    for name in index.others:
        base = name.rpartition("/")[2].lower()
        stem, _, suffix = base.partition(".")
        near = base.replace(" ", "").startswith(("metadata.", "metadata_", "metadata(", "metadata-"))
        if not near and not (
            stem in ("captions", "caption", "labels", "prompts") and suffix in ("jsonl", "csv", "parquet")
        ):
            continue
        if suffix == "json" and not _is_jsonl(index.root / name):
            return f"{shown(name)} is not read: write it as metadata.jsonl, one object a line such as {EXAMPLE}"
        kind = next((own for own in ("parquet", "jsonl", "csv") if suffix.startswith(own)), "")
        kind = kind or {"json1": "jsonl", "ndjson": "jsonl", "tsv": "csv", "txt": "csv"}.get(suffix, "jsonl")
        return (
            f"{shown(name)} is not read under that name; call it metadata.{kind} ({', '.join(METADATA_NAMES)} are read)"
        )
    return ""


def _is_jsonl(path: Path) -> bool:
    """Returns True if the first line is an object with a file name: the file is .jsonl under another name."""
    try:
        with open_regular(path) as file:
            row = json.loads(file.readline(1 << 20))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(row, dict) and "file_name" in row


def _other_suffix(index: FolderIndex) -> str:
    stems = {path.rpartition(".")[0] for path in index.files.values()}
    found = [name for name in index.others if name.lower().endswith(_CAPTION_SUFFIXES)]
    beside = next((name for name in found if name.rpartition(".")[0] in stems), "")
    if beside:
        return f"{shown(beside)} and its like are not read; rename them to .txt"
    paths = set(index.files.values())
    doubled = next((name for name in index.others if name.lower().endswith(".txt") and name[:-4] in paths), "")
    if not doubled:
        return ""
    right = PurePosixPath(doubled).with_suffix("").with_suffix(".txt").name
    return f"{shown(doubled)} and its like are not read; rename it to {shown(right)}, and so the others"


def _text_folder(index: FolderIndex) -> str:
    """Captions in a folder of their own, as text/1.txt of images/1.png."""
    texts = {PurePosixPath(name).stem: name for name in index.others if name.lower().endswith(".txt")}
    for name, path in index.files.items():
        text = texts.get(PurePosixPath(name).stem)
        if text:
            beside = PurePosixPath(path).with_suffix(".txt")
            return f"a caption is read beside its image alone; move {shown(text)} to {shown(str(beside))}, and so the others"
    return ""


def _class_folders(index: FolderIndex) -> str:
    names = list(classes(index))
    if len(names) < 2:
        return ""
    return (
        f"if the folders are classes ({some(names)}), ask for captions made of their names, as in "
        f"'folder:{shown(index.root)}?caption=a photo of a {{class}}'; or put a metadata.jsonl there with lines such as {EXAMPLE}"
    )


def inner_folder(index: FolderIndex) -> str:
    """Returns a warning where split folders lie one or two folders down, and the split is therefore drawn; else ""."""
    if not index.seeded or index.kind != "folder":
        return ""
    for name in index.files:
        folders = PurePosixPath(name).parts[:-1]
        for k, folder in enumerate(folders[1:3], 1):
            above = "/".join(folders[:k])
            if folder.lower() in SPLIT_FOLDERS and all(other.startswith(f"{above}/") for other in index.files):
                return (
                    f"the folder {folder}/ in {shown(index.root / above)} decides no split, as it is not at the top; "
                    f"name folder:{shown(index.root / above)}"
                )
    return ""
