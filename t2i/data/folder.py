"""A folder of captioned pictures as a `Dataset`: one split of it, at one resolution.

docs/data.md describes the layouts; folder_index.py reads names and captions, verify.py finds the broken pictures.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import numpy as np

from t2i import images, seeding
from t2i.data import View
from t2i.data.folder_index import SPLITS, FolderIndex, index_folder, shown, some, split_folder
from t2i.data.metadata import EXAMPLE
from t2i.data.verify import Verified, verify, workers
from t2i.errors import InputError
from t2i.images import ImageArray

MEMORY_BYTES = 2**30  # decoded pictures kept by one dataset
_TABLES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt")


class FolderDataset:
    """One split of a folder; pictures are decoded when asked for and kept up to `MEMORY_BYTES`.

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
        self.address = f"folder:{index.root}"
        self.split = split
        self.resolution = view.resolution
        self.ids: list[str] = [name for name, _ in rows]
        self.captions: list[tuple[str, ...]] = [index.captions[name] for name in self.ids]
        self.broken: list[tuple[str, str]] = list(broken)
        self._view = view
        self._paths = [index.root.absolute() / index.files[name] for name in self.ids]
        self._contents = [found.sha256 for _, found in rows]
        self._kept: dict[int, ImageArray] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def images(self, indices: Sequence[int]) -> ImageArray:
        """uint8 [B, resolution, resolution, 3] of the rows `indices`.

        Raises:
            BrokenImage: a file was removed or damaged since the folder was opened; the message names it.
            IndexError: an index is out of range.
        """
        rows = [range(len(self))[int(i)] for i in indices]
        ready = {i: self._kept[i] for i in rows if i in self._kept}
        fresh = [i for i in dict.fromkeys(rows) if i not in ready]
        if len(fresh) > 1:
            with ThreadPoolExecutor(min(workers(), len(fresh))) as pool:
                ready.update(zip(fresh, pool.map(self._decode, fresh), strict=True))
        else:
            ready.update((i, self._decode(i)) for i in fresh)
        room = MEMORY_BYTES // (3 * self.resolution**2) - len(self._kept)
        self._kept.update((i, ready[i]) for i in fresh[: max(0, room)])
        out_BHWC = np.empty((len(rows), self.resolution, self.resolution, 3), np.uint8)
        for k, i in enumerate(rows):
            out_BHWC[k] = ready[i]
        return out_BHWC

    def _decode(self, i: int) -> ImageArray:
        try:
            picture = images.decode(self._paths[i])
        except images.BrokenImage as error:
            raise images.BrokenImage(f"{shown(self._paths[i])}: {error}") from error
        x, y = 0.5, 0.5
        if self._view.fit == "random":
            x, y = seeding.uniform(self._view.seed, "crop", seeding.ids_of([self.ids[i]]), 2)[0].tolist()
        return images.fit(picture, self.resolution, self._view.fit, (x, y))

    def fingerprint(self) -> str:
        """sha256 of ids, file contents, captions, split and transform; the same for a copy of the folder elsewhere."""
        view = self._view
        transform = [view.resolution, view.fit, view.seed if view.fit == "random" else None]
        digest = hashlib.sha256(json.dumps([self.split, *transform]).encode())
        for row in zip(self.ids, self._contents, self.captions, strict=True):
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()


def open_folder(path: str, split: str, view: View) -> FolderDataset:
    """Opens one split of a folder of captioned pictures; `heldout` falls back to `test`, then to `val`.

    Broken pictures, pictures without captions and captions without pictures are left out and counted in warnings.

    Raises:
        InputError: no such folder or split, no pictures, no captions or unreadable ones, or more than half are broken.
    """
    index = index_folder(path)
    _require_captions(index)
    members: dict[str | None, list[str]] = {}
    for name, part in zip(index.captions, index.splits(list(index.captions), view.seed), strict=True):
        members.setdefault(part, []).append(name)
    part = _choose_split(index, split, members)
    rows, broken = _verified_rows(index, members[part], view.limit)
    _warn_left_out(index, part, view.seed, broken)
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
    if index.seeded and split in SPLITS:
        drawn = f"the draw by name gave it none of {len(index.captions):,} pictures"
        why = f"{drawn}: add pictures, take another data.split_seed or make folders train/, val/ and test/"
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
        found = verify(index.root, index.files, batch)
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
    outside = [] if index.seeded else [name for name in index.files if split_folder(name) is None]
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
