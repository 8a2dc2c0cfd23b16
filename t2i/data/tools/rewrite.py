"""Writes new folders of captioned images: `t2i data filter` chooses captions and images, `t2i data split` assigns splits.

The new folder holds hard links (symbolic links on another disk), or copies of images from shards or tables, and a
metadata.jsonl for each split. Nothing is decoded, and the source is never touched.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from t2i.data import NO_CAPTION, Dataset, View, open_dataset
from t2i.data.encoded import EncodedImages
from t2i.data.splits import SPLITS, assign_splits
from t2i.errors import InputError
from t2i.files import new_folder, text_lines
from t2i.images import BrokenImage, read_limited

FAR = "images far from the words"


class Kept(NamedTuple):
    """One image, with the captions that it is to have, and other entries of its row of metadata.jsonl."""

    dataset: EncodedImages
    row: int
    captions: Sequence[str]
    more: Mapping[str, object] = {}


class Rules(NamedTuple):
    """Rules by which captions stay. An image goes when none of its captions stays."""

    min_words: int = 0
    max_words: int | None = None
    unique: bool = False  # of equal captions, whatever their case, the first alone
    allow: Sequence[str] = ()  # one of these words must be there
    deny: Sequence[str] = ()  # none of these


class Rewritten(NamedTuple):
    images: dict[str, int]  # of each split
    left_out: dict[str, int]  # why -> how many captions or images


def every_split(address: str, view: View, names: Sequence[str] | None = None) -> dict[str, Dataset]:
    """Returns the splits of an address that are there.

    Args:
        names: of those that are wanted; None: all.

    Raises:
        InputError: none of them is there.
    """
    opened: dict[str, Dataset] = {}
    problem: InputError | None = None
    for split in names or SPLITS:
        try:
            dataset = open_dataset(address, split, view)
        except InputError as error:
            problem = problem or error
            continue
        if names or dataset.split == split:  # `heldout` may have fallen back to another
            opened[split] = dataset
    if not opened:
        raise problem or InputError(f"data {address} holds no split")
    return opened


def open_splits(address: str, view: View = View()) -> dict[str, EncodedImages]:
    """Returns all splits of an address that are there, of images in files.

    Raises:
        InputError: there is none, or its images are rendered.
    """
    found: dict[str, EncodedImages] = {}
    for split, dataset in every_split(address, view).items():
        if not isinstance(dataset, EncodedImages):
            raise InputError(
                f"data {address} is rendered and has no files; write it with `t2i data export {address} OUT`"
            )
        found[split] = dataset
    return found


class Nearness(NamedTuple):
    """Which images stay by what they show.

    Attributes:
        scores: of each image of these splits; NaN: it cannot be decoded.
        least: score of the images that stay.
    """

    scores: Mapping[str, NDArray[np.float64]]
    least: float


def filter_captions(
    address: str,
    out: Path,
    rules: Rules,
    splits: Mapping[str, EncodedImages] | None = None,
    near: Nearness | None = None,
) -> Rewritten:
    """Writes the images whose captions follow the rules into a new folder, each split for itself.

    Args:
        splits: of the address, where they are open; None: all are opened.
        near: removes images by what they show; those that stay have their `score` in metadata.jsonl.

    Raises:
        InputError: nothing stays, or `out` holds something or cannot be written.
    """
    left_out: dict[str, int] = {}
    seen: set[str] = set()
    refusals = _refusals(rules, seen)

    def kept(split: str, dataset: EncodedImages) -> Iterator[Kept]:
        for row, captions in enumerate(dataset.captions):
            more: dict[str, object] = {}
            if near is not None:
                score = float(near.scores[split][row])
                if not score >= near.least:
                    left_out[FAR] = left_out.get(FAR, 0) + 1
                    continue
                more["score"] = round(score, 4)
            stay = []
            for caption in captions:
                why = next((why for why, refuses in refusals.items() if refuses(caption)), "")
                if why:
                    left_out[why] = left_out.get(why, 0) + 1
                else:
                    stay.append(caption)
                    seen.add(caption.lower())
            if stay:
                yield Kept(dataset, row, stay, more)

    opened = open_splits(address) if splits is None else splits
    parts = {split: list(kept(split, dataset)) for split, dataset in opened.items()}
    if not any(parts.values()):
        told = ", ".join(f"{count:,} {why}" for why, count in left_out.items())
        what = "caption" if near is None else "image"
        raise InputError(f"no {what} of {address} passes the filters ({told}); loosen them")
    return _write(out, parts, left_out)


def _refusals(rules: Rules, seen: set[str]) -> dict[str, Callable[[str], bool]]:
    """Returns why a caption goes -> a test of it."""
    allow, deny = _any_of(rules.allow), _any_of(rules.deny)
    found: dict[str, Callable[[str], bool]] = {}
    if rules.min_words:
        found["captions too short"] = lambda caption: len(caption.split()) < rules.min_words
    if (most := rules.max_words) is not None:
        found["captions too long"] = lambda caption: len(caption.split()) > most
    if allow is not None:
        found["captions without an allowed word"] = lambda caption: allow.search(caption) is None
    if deny is not None:
        found["captions with a denied word"] = lambda caption: deny.search(caption) is not None
    if rules.unique:
        found["captions that were there before"] = lambda caption: caption != NO_CAPTION and caption.lower() in seen
    return found


def _any_of(words: Sequence[str]) -> re.Pattern[str] | None:
    told = "|".join(re.escape(word) for word in words)
    return re.compile(rf"(?<!\w)(?:{told})(?!\w)", re.IGNORECASE) if words else None


def read_words(path: Path) -> list[str]:
    """Returns a list of words, one a line.

    Raises:
        InputError: the file cannot be read or lists nothing.
    """
    try:
        words = [line.strip() for line in text_lines(path) if line.strip()]
    except OSError as error:
        raise InputError(f"cannot read the words of {path}: {error.strerror or error}; name a text file") from error
    if not words:
        raise InputError(f"{path} lists no words; write one a line")
    return words


def split_images(address: str, out: Path, shares: Mapping[str, float], seed: int = 0) -> Rewritten:
    """Assigns each image to a split anew and writes a folder for each; equal files always come into the same one.

    Args:
        shares: of `train`, `val`, ...; they add up to 1.
        seed: the split depends on it and on the contents of the file, so that new images move no others.

    Raises:
        InputError: the shares do not add up, a split stays empty, or `out` holds something or cannot be written.
    """
    if abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        told = ", ".join(f"{split} {share:g}" for split, share in shares.items())
        raise InputError(f"the shares of the splits must add up to 1, got {told}")
    items = [
        Kept(dataset, row, captions)
        for dataset in open_splits(address).values()
        for row, captions in enumerate(dataset.captions)
    ]
    contents = [hashlib.sha256(_bytes(item)).hexdigest() for item in items]
    wanted = {split: share for split, share in shares.items() if share}
    parts: dict[str, list[Kept]] = {split: [] for split in wanted}
    for item, split in zip(items, assign_splits(contents, seed, wanted), strict=True):
        parts[split].append(item)
    empty = [split for split, own in parts.items() if not own]
    if empty:
        raise InputError(f"no image of {len(items):,} came into {empty[0]}; take another --seed or a larger share")
    return _write(out, parts, {})


def _bytes(item: Kept) -> bytes:
    try:
        source = item.dataset.source(item.row)
        return source if isinstance(source, bytes) else read_limited(source)
    except (BrokenImage, OSError) as error:
        raise InputError(f"{item.dataset.place(item.row)} cannot be read ({error}); repair or remove it") from error


def _write(out: Path, parts: Mapping[str, Sequence[Kept]], left_out: dict[str, int]) -> Rewritten:
    with new_folder(out) as folder:
        for split, items in parts.items():
            if not items:
                continue
            (folder / split).mkdir()
            digits = max(6, len(str(len(items))))
            with open(folder / split / "metadata.jsonl", "w", encoding="utf-8", errors="replace") as file:
                for number, item in enumerate(items):
                    name = _place(item, folder / split / f"{number:0{digits}d}")
                    text = item.captions[0] if len(item.captions) == 1 else list(item.captions)
                    row = {"file_name": name, "text": text, "id": item.dataset.ids[item.row], **item.more}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return Rewritten({split: len(items) for split, items in parts.items() if items}, left_out)


def _place(item: Kept, stem: Path) -> str:
    """Puts the image there by a link or a copy; returns its name."""
    source = item.dataset.source(item.row)
    if isinstance(source, Path):
        path = stem.with_name(stem.name + source.suffix.lower())
        try:
            os.link(os.path.realpath(source), path)
        except OSError:  # another disk, or one without hard links
            path.symlink_to(os.path.realpath(source))
        return path.name
    try:
        with Image.open(BytesIO(source)) as header:
            suffix = f".{(header.format or 'png').lower()}"
    except Exception:  # broken: it stays broken, under a name that is read
        suffix = ".jpg"
    path = stem.with_name(stem.name + suffix)
    path.write_bytes(source)
    return path.name
