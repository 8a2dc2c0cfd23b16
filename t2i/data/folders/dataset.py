"""A folder of captioned pictures as a `Dataset`: one split of it, at one resolution.

docs/data.md describes the layouts; folder_index.py reads names and captions, verify.py finds the broken pictures.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from t2i.data import View
from t2i.data.folders.index import FolderIndex, index_folder
from t2i.data.folders.large import LargeFolder, is_large, open_large
from t2i.data.folders.metadata import EXAMPLE
from t2i.data.pictures import Pictures
from t2i.data.splits import SPLITS, split_folder
from t2i.data.verified_index import Verified
from t2i.data.verify import stat_of, verify, warn_unverified
from t2i.errors import InputError
from t2i.images import TRANSFORM, BrokenImage, read_limited
from t2i.names import shown, some

VERIFIED_AT_ONCE = 20_000  # more pictures than these are not decoded for their opening
_TABLES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt")


class FolderDataset(Pictures):
    """One split of a folder.

    `split` is the split that was read: `test` or `val` where `heldout` was asked for and the folder has none.
    `broken` names the captioned pictures of the split that cannot be decoded, each with the reason.
    """

    def __init__(
        self,
        index: FolderIndex,
        split: str,
        view: View,
        rows: Sequence[tuple[str, Verified]],
        broken: Sequence[tuple[str, str]],
    ) -> None:
        ids = [name for name, _ in rows]
        super().__init__(f"{index.kind}:{index.root}", split, view, ids, [index.captions[name] for name in ids])
        self.index = index
        self.broken: list[tuple[str, str]] = list(broken)
        self._stamps = [found[:2] for _, found in rows]
        self._paths = [index.root.absolute() / index.files[name] for name in ids]
        # what was not decoded is known by size and time alone, which differ on another machine but are never stale
        self._contents = [found.sha256 or f"{found.size}/{found.mtime_ns}" for _, found in rows]

    def source(self, i: int) -> Path:
        """The file of row i.

        Raises:
            BrokenImage: it cannot be read, or holds something else since the folder was opened.
        """
        path = self._paths[i]
        if stat_of(path) != self._stamps[i]:  # it may only have been touched
            try:
                content = hashlib.sha256(read_limited(path)).hexdigest()
            except OSError as error:
                raise BrokenImage(f"cannot be read: {error.strerror or error}") from error
            if content != self._contents[i]:
                raise BrokenImage("the file was changed since the data was opened; start again")
        return path

    def place(self, i: int) -> str:
        return shown(self._paths[i])

    def fingerprint(self) -> str:
        """sha256 of ids, file contents, captions, split and transform; the same for a copy of the folder elsewhere."""
        view = self._view
        transform = [TRANSFORM, view.resolution, view.fit, view.seed if view.fit == "random" else None]
        digest = hashlib.sha256(json.dumps([self.split, *transform]).encode())
        for row in zip(self.ids, self._contents, self.captions, strict=True):
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()


def open_folder(path: str, split: str, view: View) -> FolderDataset | LargeFolder:
    """Opens one split of a folder of captioned pictures; `heldout` falls back to `test`, then to `val`.

    Broken pictures, pictures without captions and captions without pictures are left out and counted in warnings.

    Raises:
        InputError: no such folder or split, no pictures, no captions or unreadable ones, or more than half are broken.
    """
    root = Path(path).expanduser()
    return open_large(root, split, view) if is_large(root) else open_index(index_folder(path), split, view)


def open_index(index: FolderIndex, split: str, view: View) -> FolderDataset:
    """Opens one split of what an index lists, as `open_folder` does."""
    _require_captions(index)
    members: dict[str | None, list[str]] = {}
    for name, part in zip(index.captions, index.splits(list(index.captions), view.seed), strict=True):
        members.setdefault(part, []).append(name)
    part = _choose_split(index, split, members)
    rows, broken = _verified_rows(index, members[part], view.limit)
    _warn_left_out(index, part, view.seed, broken)
    warn_unverified(f"{index.kind}:{index.root}", sum(not found.sha256 for _, found in rows))
    return FolderDataset(index, part, view, rows, broken)


def _require_captions(index: FolderIndex) -> None:
    root = shown(index.root)
    if index.problems:
        more = len(index.problems) - 1
        raise InputError(
            index.problems[0] + (f" (and {more:,} more captions files; `t2i data check` lists them)" if more else "")
        )
    if index.captions:
        return
    if index.missing:
        first = index.missing[0]
        stem = PurePosixPath(first).stem
        near = next((name for name in index.files if PurePosixPath(name).stem == stem), next(iter(index.files)))
        raise InputError(
            f"captions in {root} name {len(index.missing):,} pictures and none is there: not '{shown(first)}', but "
            f"'{shown(near)}'; write file_name relative to the metadata file, with its suffix"
        )
    tables = [name for name in index.others if name.lower().endswith(_TABLES)]
    raise InputError(
        f"{len(index.files):,} pictures in {root} but no captions{f', only {some(tables)}' if tables else ''}: "
        f"put a metadata.jsonl there with lines such as {EXAMPLE}, or a .txt beside each picture"
    )


def _choose_split(index: FolderIndex, split: str, members: dict[str | None, list[str]]) -> str:
    wanted = ("heldout", "test", "val") if split == "heldout" else (split,)
    found = next((name for name in wanted if name in members), None)
    if found is not None:
        return found
    there = ", ".join(name for name in SPLITS if name in members) or "none with captions"
    why = "put its pictures into a folder of that name"
    if index.kind != "folder":
        why = "take one of those, or say with ?split=NAME which is for training"
    if index.seeded and split in SPLITS:
        drawn = f"the draw by name gave it none of {len(index.captions):,} pictures"
        why = f"{drawn}: add pictures, or take another data.split_seed"
        why += " or make folders train/, val/ and test/" if index.kind == "folder" else ""
    raise InputError(f"no split '{split}' in {shown(index.root)}, which has: {there}; {why}")


def _verified_rows(
    index: FolderIndex, ids: Sequence[str], limit: int | None
) -> tuple[list[tuple[str, Verified]], list[tuple[str, str]]]:
    """The first `limit` good pictures of `ids`, and the broken ones met on the way."""
    rows: list[tuple[str, Verified]] = []
    broken: list[tuple[str, str]] = []
    start = 0
    while start < len(ids) and (limit is None or len(rows) < limit):
        batch = ids[start:] if limit is None else ids[start : start + limit - len(rows)]
        found = verify(index.root, index.files, batch, VERIFIED_AT_ONCE)
        rows += [(name, found[name]) for name in batch if not found[name].reason]
        broken += [(name, found[name].reason) for name in batch if found[name].reason]
        start += len(batch)
    if len(broken) > len(rows):
        raise InputError(
            f"{len(broken):,} of {start:,} pictures in {shown(index.root)} are broken, more than half; replace them: "
            f"{_reasons(broken, 5)}"
        )
    return rows, broken


def _reasons(broken: Sequence[tuple[str, str]], most: int) -> str:
    return "; ".join(f"{shown(name)}: {reason}" for name, reason in broken[:most])


def _warn_left_out(index: FolderIndex, part: str, seed: int, broken: Sequence[tuple[str, str]]) -> None:
    where = f"split {part} of {shown(index.root)}"

    def here(names: Sequence[str]) -> list[str]:
        return [name for name, its in zip(names, index.splits(names, seed), strict=True) if its == part]

    bare = here([name for name in index.files if name not in index.captions])
    missing = here(index.missing)
    outside = [] if index.seeded or index.parts is not None else [n for n in index.files if split_folder(n) is None]
    if broken:
        more = f" and {len(broken) - 3:,} more" if len(broken) > 3 else ""
        _warn(f"{len(broken):,} pictures in {where} are broken and left out: {_reasons(broken, 3)}{more}")
    if bare:
        _warn(f"{len(bare):,} pictures in {where} have no caption and are left out: {some(bare)}")
    if missing:
        _warn(f"{len(missing):,} captions in {where} have no picture: {some(missing)}")
    if outside:
        _warn(f"{len(outside):,} pictures lie outside the split folders of {shown(index.root)}: {some(outside)}")


def _warn(message: str) -> None:
    warnings.warn(f"{message} (`t2i data check` lists all)", stacklevel=4)
