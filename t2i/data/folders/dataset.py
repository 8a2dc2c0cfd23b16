"""Opens one split of a folder of captioned images as a `Dataset`.

docs/data.md describes the layouts; index.py reads names and captions, verify.py finds broken images.
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
from t2i.data.folders.labels import folder_labels, further_entries
from t2i.data.folders.table import FolderTable, is_large, open_table
from t2i.data.questions import Question
from t2i.data.splits import SPLITS, fallbacks, split_folder
from t2i.data.tools.classes import Values
from t2i.data.verified_index import Index, Verified
from t2i.data.verify import verify, warn_damaged, warn_unverified
from t2i.errors import InputError
from t2i.files import at_home
from t2i.images import BrokenImage, read_limited
from t2i.names import counted, shown, some, verb

VERIFIED_AT_ONCE = 20_000  # if more images are unknown, opening the data does not decode them


class FolderOptions(NamedTuple):
    """Options of a folder."""

    caption: str = ""  # caption of images that have none, e.g. `a photo of a {class}` with the name of their folder


_DEFAULTS = FolderOptions()


class FolderRows(NamedTuple):
    """The images of one split; all fields have the same order."""

    ids: Sequence[str]
    paths: Sequence[str]  # below the root, as on the disk
    captions: Sequence[Sequence[str]]
    verified: Sequence[Verified] | None  # None: of a large folder, whose images are not verified


class FolderDataset(EncodedImages):
    """One split of a folder.

    Attributes:
        split: the split that was read: `test` or `val` if `heldout` was requested and does not exist.
        questions: the questions of each image, for data that has them.
        broken: (id, reason) of the captioned images of the split that cannot be decoded.
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
        self._paths, self._verified = rows.paths, rows.verified

    def source(self, i: int) -> Path:
        """Returns the file of row i.

        Raises:
            BrokenImage: the file cannot be read, or its contents changed since the folder was opened.
        """
        path = self.root.absolute() / self._paths[i]
        known = self._verified[i] if self._verified is not None else None
        if known is not None and stamp_of(path) != known.stamp:  # the contents may still be the same
            try:
                content = hashlib.sha256(read_limited(path)).hexdigest()
            except OSError as error:
                raise BrokenImage(f"cannot be read: {error.strerror or error}") from error
            if content != known.sha256:
                raise BrokenImage("the file was changed since the data was opened; start again")
        return path

    @property
    def labels(self) -> dict[str, Callable[[], Values]]:
        """Functions that return the classes of each image, by the name of the label."""
        published = self._source.labels if isinstance(self._source, FolderIndex) else {}
        if published:
            return {
                label: lambda classes=classes: [classes.get(name, ()) for name in self.ids]
                for label, classes in published.items()
            }
        return folder_labels(self.root, self.ids)

    @property
    def metadata(self) -> list[dict[str, Any]]:
        """The entries of each image's metadata beside its captions and split, e.g. a licence."""
        own = not isinstance(self._source, FolderIndex) or self._source.kind == "folder"
        return further_entries(self.root, self.ids) if own else [{}] * len(self)

    @property
    def files(self) -> Mapping[str, str]:
        """The path below the root of each id, of all splits."""
        return self._source.files()

    def place(self, i: int) -> str:
        return shown(self.root.absolute() / self._paths[i])

    def contents(self, lasting: bool = False) -> Iterable[Any]:
        """Returns the sha256 of each file, or size and time of files that are not verified; for lasting values of many files,
        the size alone."""
        root = os.fspath(self.root)
        if lasting and len(self) > VERIFIED_AT_ONCE:
            return (stamp_of(f"{root}/{path}")[0] for path in self._paths)
        if self._verified is not None:
            return (known.sha256 or f"{known.size}/{known.mtime_ns}" for known in self._verified)
        known = Index(self.root.resolve()).load()
        stamps = (stamp_of(f"{root}/{path}") for path in self._paths)
        return (
            known[name].sha256 if name in known and known[name].stamp == stamp else list(stamp[:2])
            for name, stamp in zip(self.ids, stamps, strict=True)
        )


def open_folder(path: str, split: str, view: View, options: FolderOptions = _DEFAULTS) -> FolderDataset:
    """Opens one split of a folder of captioned images; `heldout` falls back to `test`, then to `val`.

    Broken images, images without captions and captions without images are left out and counted in warnings; a bare view includes
    images without captions.

    Raises:
        InputError: there is no such folder or split, no image, or no caption, captions cannot be read, or more than half of the
            images are broken.
    """
    root = at_home(path)
    if not options.caption and not view.bare and is_large(root):
        return _open_large(open_table(root), split, view)
    return open_index(index_folder(path, options.caption), split, view)


def open_index(index: FolderIndex, split: str, view: View) -> FolderDataset:
    """Opens one split of the images of an index, like `open_folder`."""
    if not view.bare or index.problems:
        require_captions(index)
    named = list(index.entries) if view.bare else index.captioned()
    members: dict[str | None, list[str]] = {}
    for name, part in zip(named, index.splits(named, view.seed), strict=True):
        members.setdefault(part, []).append(name)
    part = _choose_split(index.root, split, members, index)
    good, broken = _verified_rows(index, members[part], view.limit)
    _warn_left_out(index, part, view, broken)
    address = f"{index.kind}:{index.root}"
    warn_unverified(address, sum(not known.sha256 for known in good.values()))
    captions = [index.captions(name) or (NO_CAPTION,) for name in good]
    warn_damaged(address, [caption for several in captions for caption in several if REPLACED in caption])
    rows = FolderRows(list(good), [index.path(name) for name in good], captions, list(good.values()))
    return FolderDataset(address, part, view, index, rows, broken)


def _open_large(table: FolderTable, split: str, view: View) -> FolderDataset:
    address, where = f"folder:{table.root}", shown(table.root)
    members = {name: rows for name, rows in table.splits(view.seed).items() if len(rows)}
    part = _choose_split(table.root, split, members)
    if table.unknown_splits:
        warnings.warn(table.unknown_splits, stacklevel=4)
    for left_out in table.left_out:
        _warn(left_out)
    warn_damaged(address, table.damaged)
    rows, broken = table.without_broken(members[part])
    if broken:
        _warn(f"{counted(len(broken), 'image')} in {where} cannot be decoded: {_reasons(broken, 3)}")
    rows = rows[: view.limit].astype(np.int64)
    verified = sum(known.num_rows for known in Index(table.root.resolve()).tables())
    warn_unverified(address, max(0, len(rows) - verified))
    ids, paths, captions = (ArrowColumn(table.rows[name], rows) for name in ("id", "path", "captions"))
    return FolderDataset(address, part, view, table, FolderRows(ids, paths, captions, None), broken)


def _choose_split(
    root: Path, split: str, members: Mapping[str | None, Any] | Mapping[str, Any], index: FolderIndex | None = None
) -> str:
    for name in fallbacks(split):
        if name in members:
            return name
    known = ", ".join(name for name in SPLITS if name in members) or "none with captions"
    fix = "put its images into a folder of that name"
    if index is not None and index.kind != "folder":
        fix = "use one of these, or name the one for training with ?split=NAME"
    if index is not None and index.seeded and split in SPLITS:
        none = f"none of {counted(len(index.captioned()), 'image')} was assigned to it by name"
        fix = f"{none}: add images, or use another data.split_seed"
        fix += " or make folders train/, val/ and test/" if index.kind == "folder" else ""
    raise InputError(f"no split '{split}' in {shown(root)}, which has: {known}; {fix}")


def _verified_rows(
    index: FolderIndex, ids: Sequence[str], limit: int | None
) -> tuple[dict[str, Verified], list[tuple[str, str]]]:
    """Returns the first `limit` good images of `ids`, and the broken ones among them."""
    good: dict[str, Verified] = {}
    broken: list[tuple[str, str]] = []
    files = index.files()
    start = 0
    while start < len(ids) and (limit is None or len(good) < limit):
        batch = ids[start:] if limit is None else ids[start : start + limit - len(good)]
        verified = verify(index.root, files, batch, VERIFIED_AT_ONCE)
        good |= {name: known for name, known in verified.items() if not known.reason}
        broken += [(name, known.reason) for name, known in verified.items() if known.reason]
        start += len(batch)
    if len(broken) > len(good):
        raise InputError(
            f"{len(broken):,} of {counted(start, 'image')} in {shown(index.root)} {verb(len(broken))} broken, more than half; "
            f"replace them: {_reasons(broken, 5)}"
        )
    return good, broken


def _reasons(broken: Sequence[tuple[str, str]], most: int) -> str:
    more = f" and {len(broken) - most:,} more" if len(broken) > most else ""
    return "; ".join(f"{shown(name)}: {reason}" for name, reason in broken[:most]) + more


def _warn_left_out(index: FolderIndex, part: str, view: View, broken: Sequence[tuple[str, str]]) -> None:
    where = f"split {part} of {shown(index.root)}"

    def here(names: Sequence[str]) -> list[str]:
        return [name for name, own in zip(names, index.splits(names, view.seed), strict=True) if own == part]

    if broken:
        _warn(f"{counted(len(broken), 'image')} in {where} cannot be decoded: {_reasons(broken, 3)}")
    if not view.bare and (bare := here([name for name, captions in index.entries.items() if not captions])):
        _warn(f"{counted(len(bare), 'image')} in {where} without a caption: {some(bare)}")
    if missing := here(index.missing):
        _warn(f"{counted(len(missing), 'caption')} in {where} without an image: {some(missing)}")
    for notice in filter(None, (inner_folder(index), index.unknown_splits)):
        warnings.warn(notice, stacklevel=3)
    by_folder = not index.seeded and index.parts is None
    if outside := [name for name in index.entries if by_folder and split_folder(name) is None]:
        _warn(f"{counted(len(outside), 'image')} outside the split folders of {shown(index.root)}: {some(outside)}")

    if lost := [
        name for name in index.captioned() if index.kind == "folder" and index.parts and not index.parts.get(name)
    ]:
        why = "whose row names no known split (train, val, test, heldout)"
        _warn(f"{counted(len(lost), 'image')} of {shown(index.root)} {why}: {some(lost)}")


def _warn(message: str) -> None:
    warnings.warn(f"skipped {message} (`t2i data check` lists all)", stacklevel=4)
