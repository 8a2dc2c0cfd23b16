"""Writes new folders of captioned images: `t2i data filter` selects captions and images, `t2i data split` assigns splits.

The new folder has hard links (symbolic links on another disk), or copies of images from shards or tables, and a metadata.jsonl
for each split, which keeps labels and further entries of metadata. Nothing is decoded, and the source is not changed.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from t2i.data import NO_CAPTION
from t2i.data.encoded import EncodedImages
from t2i.data.splits import assign_splits
from t2i.data.tools.classes import entries_of
from t2i.data.tools.export import metadata_line
from t2i.data.tools.opening import open_splits
from t2i.errors import InputError, os_errors
from t2i.files import link, new_folder, text_lines
from t2i.images import BrokenImage
from t2i.names import counted, numbered

FAR = "images far from the words"


class Kept(NamedTuple):
    """An image of the new folder, with its captions and further entries of its row in metadata.jsonl."""

    dataset: EncodedImages
    row: int
    captions: Sequence[str]
    more: Mapping[str, object] = {}


class Rules(NamedTuple):
    """Rules that captions must satisfy. An image is removed if none of its captions satisfies them."""

    min_words: int = 0
    max_words: int | None = None
    unique: bool = False  # only the first of equal captions stays; case is ignored
    allow: Sequence[str] = ()  # one of these words must occur
    deny: Sequence[str] = ()  # none of these words may occur


class Nearness(NamedTuple):
    """Selects images by their similarity to words.

    Attributes:
        scores: similarity of each image of each split; NaN if the image cannot be decoded.
        least: lowest score of the images that stay.
    """

    scores: Mapping[str, NDArray[np.float64]]
    least: float


def filter_captions(
    address: str,
    out: Path,
    rules: Rules,
    splits: Mapping[str, EncodedImages] | None = None,
    near: Nearness | None = None,
) -> tuple[dict[str, int], Counter[str]]:
    """Writes the images that pass into a new folder with the same splits.

    Returns the number of images of each split, and the number of captions or images that were left out, by reason.

    Args:
        splits: the splits of the address, if they are open already; None: opens all.
        near: also selects images by contents; their `score` is written to metadata.jsonl.

    Raises:
        InputError: no image passes, or `out` is not empty or cannot be written.
    """
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    tests = _tests(rules, seen)

    def kept(split: str, dataset: EncodedImages) -> Iterator[Kept]:
        entries = entries_of(dataset)
        for row, captions in enumerate(dataset.captions):
            score = float(near.scores[split][row]) if near else 0.0
            if near and not score >= near.least:  # also removes NaN
                left_out[FAR] += 1
            elif passed := [caption for caption in captions if _passes(caption, tests, seen, left_out)]:
                yield Kept(dataset, row, passed, entries[row] | ({"score": round(score, 4)} if near else {}))

    splits = open_splits(address) if splits is None else splits
    parts = {split: list(kept(split, dataset)) for split, dataset in splits.items()}
    if not any(parts.values()):
        counts = ", ".join(numbered(count, why) for why, count in left_out.items())
        what = "caption" if near is None else "image"
        raise InputError(f"no {what} of {address} passes the filters ({counts}); loosen them")
    return _write(out, parts), left_out


def _passes(caption: str, tests: Mapping[str, Callable[[str], bool]], seen: set[str], left_out: Counter[str]) -> bool:
    """Returns True for a caption that stays, which is added to `seen`; counts the reason for others."""
    why = next((why for why, fails in tests.items() if fails(caption)), "")
    if why:
        left_out[why] += 1
    else:
        seen.add(caption.lower())
    return not why


def _tests(rules: Rules, seen: set[str]) -> dict[str, Callable[[str], bool]]:
    """Returns tests that are true for captions to remove, by the reason."""
    allow, deny = _any_of(rules.allow), _any_of(rules.deny)
    tests: dict[str, Callable[[str], bool]] = {}
    if rules.min_words:
        tests["captions too short"] = lambda caption: len(caption.split()) < rules.min_words
    if (most := rules.max_words) is not None:
        tests["captions too long"] = lambda caption: len(caption.split()) > most
    if allow is not None:
        tests["captions without an allowed word"] = lambda caption: allow.search(caption) is None
    if deny is not None:
        tests["captions with a denied word"] = lambda caption: deny.search(caption) is not None
    if rules.unique:
        tests["repeated captions"] = lambda caption: caption != NO_CAPTION and caption.lower() in seen
    return tests


def _any_of(words: Sequence[str]) -> re.Pattern[str] | None:
    pattern = "|".join(map(re.escape, words))
    return re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE) if words else None


def read_words(path: Path) -> list[str]:
    """Returns the words in a file, one per line.

    Raises:
        InputError: the file cannot be read or is empty.
    """
    with os_errors(f"cannot read the words of {path}", "name a text file"):
        words = [line.strip() for line in text_lines(path) if line.strip()]
    if not words:
        raise InputError(f"{path} lists no words; write one per line")
    return words


def split_images(address: str, out: Path, shares: Mapping[str, float], seed: int = 0) -> dict[str, int]:
    """Assigns each image to a new split and writes a folder for each; equal files are in the same split.

    Returns the number of images of each split.

    Args:
        shares: shares of `train`, `val`, ..., which add up to 1.
        seed: determines the split of an image together with its contents, so new images move no others.

    Raises:
        InputError: the shares do not add up to 1, a split is empty, or `out` is not empty or cannot be written.
    """
    if abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        given = ", ".join(f"{split} {share:g}" for split, share in shares.items())
        raise InputError(f"the shares of the splits must add up to 1, got {given}")
    items = [
        Kept(dataset, row, captions, entries)
        for dataset in open_splits(address).values()
        for row, (captions, entries) in enumerate(zip(dataset.captions, entries_of(dataset), strict=True))
    ]
    contents = [hashlib.sha256(_bytes(item)).hexdigest() for item in items]
    shares = {split: share for split, share in shares.items() if share}
    parts: dict[str, list[Kept]] = {split: [] for split in shares}
    for item, split in zip(items, assign_splits(contents, seed, shares), strict=True):
        parts[split].append(item)
    empty = next((split for split, own in parts.items() if not own), None)
    if empty:
        raise InputError(f"none of {counted(len(items), 'image')} is in {empty}; use another --seed or a larger share")
    return _write(out, parts)


def _bytes(item: Kept) -> bytes:
    try:
        return item.dataset.read(item.row)
    except (BrokenImage, OSError) as error:
        raise InputError(f"{item.dataset.place(item.row)} cannot be read ({error}); repair or remove it") from error


def _write(out: Path, parts: Mapping[str, Sequence[Kept]]) -> dict[str, int]:
    with new_folder(out) as folder:
        for split, items in parts.items():
            if not items:
                continue
            (folder / split).mkdir()
            digits = max(6, len(str(len(items))))
            with open(folder / split / "metadata.jsonl", "w", encoding="utf-8", errors="replace") as file:
                for number, item in enumerate(items):
                    name = _place(item, folder / split / f"{number:0{digits}d}")
                    file.write(metadata_line(name, item.captions, {**item.more, "id": item.dataset.ids[item.row]}))
    return {split: len(items) for split, items in parts.items() if items}


def _place(item: Kept, stem: Path) -> str:
    """Links or copies an image to `stem` with its suffix; returns the name of the file."""
    source = item.dataset.source(item.row)
    if isinstance(source, Path):
        path = stem.with_name(stem.name + source.suffix.lower())
        link(source, path)
        return path.name
    try:
        with Image.open(BytesIO(source)) as header:
            suffix = f".{(header.format or 'png').lower()}"
    except Exception:  # a broken image is kept, with a suffix that is read
        suffix = ".jpg"
    path = stem.with_name(stem.name + suffix)
    path.write_bytes(source)
    return path.name
