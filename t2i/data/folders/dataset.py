"""A folder of captioned images as a `Dataset`: one split of it, at one resolution.

docs/data.md describes the layouts; index.py reads names and captions, verify.py finds the broken images.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t2i.data import NO_CAPTION, View
from t2i.data.cached import ArrowColumn, stamp_of
from t2i.data.captions import REPLACED
from t2i.data.encoded import EncodedImages
from t2i.data.folders.hints import inner_folder, require_captions
from t2i.data.folders.index import FolderIndex, index_folder
from t2i.data.folders.labels import folder_labels
from t2i.data.folders.table import FolderTable, is_large, open_table
from t2i.data.questions import Question
from t2i.data.splits import SPLITS, split_folder
from t2i.data.tools.classes import Values
from t2i.data.verified_index import Index, Verified
from t2i.data.verify import verify, warn_damaged, warn_unverified
from t2i.errors import InputError
from t2i.images import BrokenImage, read_limited
from t2i.names import counted, shown, some

VERIFIED_AT_ONCE = 20_000  # more images than these are not decoded for their opening


class FolderRows(NamedTuple):
    """The images of one split; all four in one order."""

    ids: Sequence[str]
    paths: Sequence[str]  # below the root, as the disk spells them
    captions: Sequence[Sequence[str]]
    found: Sequence[Verified] | None  # None: not looked at


class FolderDataset(EncodedImages):
    """One split of a folder.

    `split` is the split that was read: `test` or `val` where `heldout` was asked for and the folder has none.
    `questions` of each image, with answers, are there for data that has them.
    `broken` names the captioned images of the split that cannot be decoded, each with the reason.
    """

    questions: Sequence[Sequence[Question]] | None = None

    def __init__(
        self,
        address: str,
        split: str,
        view: View,
        source: FolderIndex | FolderTable,
        rows: FolderRows,
        broken: Sequence[tuple[str, str]],
    ) -> None:
        super().__init__(address, split, view, rows.ids, rows.captions)
        self.root = source.root
        self._source = source
        self.broken: list[tuple[str, str]] = list(broken)
        self._paths, self._found = rows.paths, rows.found

    def source(self, i: int) -> Path:
        """Returns the file of row i.

        Raises:
            BrokenImage: it cannot be read, or its contents changed since the folder was opened.
        """
        path = self.root.absolute() / self._paths[i]
        known = self._found[i] if self._found is not None else None
        if known is not None and stamp_of(path) != known.stamp:  # it may only have been touched
            try:
                content = hashlib.sha256(read_limited(path)).hexdigest()
            except OSError as error:
                raise BrokenImage(f"cannot be read: {error.strerror or error}") from error
            if content != known.sha256:
                raise BrokenImage("the file was changed since the data was opened; start again")
        return path

    @property
    def labels(self) -> dict[str, Callable[[], Values]]:
        """Names of labels, and what reads the classes of each image."""
        published = self._source.labels if isinstance(self._source, FolderIndex) else {}
        if published:
            return {name: lambda of=of: [of.get(one, ()) for one in self.ids] for name, of in published.items()}
        return folder_labels(self.root, self.ids)

    @property
    def files(self) -> Mapping[str, str]:
        """id -> path below the root, of the images of all splits."""
        return self._source.files

    def place(self, i: int) -> str:
        return shown(self.root.absolute() / self._paths[i])

    def contents(self, lasting: bool = False) -> Iterable[Any]:
        """sha256 of each file; of files not yet looked at their size and time, and of many, lasting, the size alone."""
        root = os.fspath(self.root)
        if lasting and len(self) > VERIFIED_AT_ONCE:
            return (stamp_of(f"{root}/{path}")[0] for path in self._paths)
        if self._found is not None:
            return (found.sha256 or f"{found.size}/{found.mtime_ns}" for found in self._found)
        known = Index(self.root.resolve()).load()
        stamps = (stamp_of(f"{root}/{path}") for path in self._paths)
        return (
            known[name].sha256 if name in known and known[name].stamp == stamp else list(stamp[:2])
            for name, stamp in zip(self.ids, stamps, strict=True)
        )


def open_folder(path: str, split: str, view: View, *, caption: str = "") -> FolderDataset:
    """Opens one split of a folder of captioned images; `heldout` falls back to `test`, then to `val`.

    Broken images, images without captions and captions without images are left out and counted in warnings; of a bare view,
    images without captions are in.

    Args:
        caption: of images that have none, such as `a photo of a {class}`, where `{class}` is the name of their folder.

    Raises:
        InputError: no such folder or split, no images, no captions or unreadable ones, or more than half are broken.
    """
    root = Path(path).expanduser()
    if not caption and not view.bare and is_large(root):
        return _open_large(open_table(root, require_captions), split, view)
    return open_index(index_folder(path, caption), split, view)


def open_index(index: FolderIndex, split: str, view: View) -> FolderDataset:
    """Opens one split of what an index lists, as `open_folder` does."""
    if not view.bare or index.problems:
        require_captions(index)
    named = list(index.files if view.bare else index.captions)
    members: dict[str | None, list[str]] = {}
    for name, part in zip(named, index.splits(named, view.seed), strict=True):
        members.setdefault(part, []).append(name)
    part = _choose_split(index.root, split, members, index)
    found, broken = _verified_rows(index, members[part], view.limit)
    _warn_left_out(index, part, view, broken)
    address = f"{index.kind}:{index.root}"
    warn_unverified(address, sum(not its.sha256 for its in found.values()))
    ids = list(found)
    captions = [index.captions.get(name, (NO_CAPTION,)) for name in ids]
    warn_damaged(address, [caption for options in captions for caption in options if REPLACED in caption])
    rows = FolderRows(ids, [index.files[name] for name in ids], captions, list(found.values()))
    return FolderDataset(address, part, view, index, rows, broken)


def _open_large(table: FolderTable, split: str, view: View) -> FolderDataset:
    address, where = f"folder:{table.root}", shown(table.root)
    members = {name: rows for name, rows in table.splits(view.seed).items() if len(rows)}
    part = _choose_split(table.root, split, members)
    for left_out in table.left_out:
        _warn(left_out)
    warn_damaged(address, table.damaged)
    rows, broken = table.without_broken(members[part])
    if broken:
        _warn(f"{counted(len(broken), 'image')} in {where} cannot be decoded: {_reasons(broken, 3)}")
    rows = rows[: view.limit].astype(np.int64)
    looked_at = sum(known.num_rows for known in Index(table.root.resolve()).tables())
    warn_unverified(address, max(0, len(rows) - looked_at))
    ids, paths, captions = (ArrowColumn(table.rows[name], rows) for name in ("id", "path", "captions"))
    return FolderDataset(address, part, view, table, FolderRows(ids, paths, captions, None), broken)


def _choose_split(
    root: Path, split: str, members: Mapping[str | None, Any] | Mapping[str, Any], index: FolderIndex | None = None
) -> str:
    wanted = ("heldout", "test", "val") if split == "heldout" else (split,)
    found = next((name for name in wanted if name in members), None)
    if found is not None:
        return found
    there = ", ".join(name for name in SPLITS if name in members) or "none with captions"
    why = "put its images into a folder of that name"
    if index is not None and index.kind != "folder":
        why = "take one of those, or say with ?split=NAME which is for training"
    if index is not None and index.seeded and split in SPLITS:
        drawn = f"the draw by name gave it none of {counted(len(index.captions), 'image')}"
        why = f"{drawn}: add images, or take another data.split_seed"
        why += " or make folders train/, val/ and test/" if index.kind == "folder" else ""
    raise InputError(f"no split '{split}' in {shown(root)}, which has: {there}; {why}")


def _verified_rows(
    index: FolderIndex, ids: Sequence[str], limit: int | None
) -> tuple[dict[str, Verified], list[tuple[str, str]]]:
    """Returns the first `limit` good images of `ids`, and the broken ones met on the way."""
    good: dict[str, Verified] = {}
    broken: list[tuple[str, str]] = []
    start = 0
    while start < len(ids) and (limit is None or len(good) < limit):
        batch = ids[start:] if limit is None else ids[start : start + limit - len(good)]
        found = verify(index.root, index.files, batch, VERIFIED_AT_ONCE)
        good |= {name: found[name] for name in batch if not found[name].reason}
        broken += [(name, found[name].reason) for name in batch if found[name].reason]
        start += len(batch)
    if len(broken) > len(good):
        raise InputError(
            f"{len(broken):,} of {counted(start, 'image')} in {shown(index.root)} are broken, more than half; replace them: "
            f"{_reasons(broken, 5)}"
        )
    return good, broken


def _reasons(broken: Sequence[tuple[str, str]], most: int) -> str:
    more = f" and {len(broken) - most:,} more" if len(broken) > most else ""
    return "; ".join(f"{shown(name)}: {reason}" for name, reason in broken[:most]) + more


def _warn_left_out(index: FolderIndex, part: str, view: View, broken: Sequence[tuple[str, str]]) -> None:
    where = f"split {part} of {shown(index.root)}"

    def here(names: Sequence[str]) -> list[str]:
        return [name for name, its in zip(names, index.splits(names, view.seed), strict=True) if its == part]

    bare = here([name for name in index.files if name not in index.captions])
    missing = here(index.missing)
    outside = [] if index.seeded or index.parts is not None else [n for n in index.files if split_folder(n) is None]
    if broken:
        _warn(f"{counted(len(broken), 'image')} in {where} cannot be decoded: {_reasons(broken, 3)}")
    if bare and not view.bare:
        _warn(f"{counted(len(bare), 'image')} in {where} without a caption: {some(bare)}")
    if missing:
        _warn(f"{counted(len(missing), 'caption')} in {where} without an image: {some(missing)}")
    if inner := inner_folder(index):
        warnings.warn(inner, stacklevel=3)
    if outside:
        _warn(f"{counted(len(outside), 'image')} outside the split folders of {shown(index.root)}: {some(outside)}")


def _warn(message: str) -> None:
    warnings.warn(f"left out: {message} (`t2i data check` lists all)", stacklevel=4)
