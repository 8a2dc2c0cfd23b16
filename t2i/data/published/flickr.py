"""Flickr8k and Flickr30k: `flickr8k:/path`, `flickr30k:/path`.

Hodosh et al., JAIR 2013; Young et al., TACL 2014. Reads the captions of the authors (`Flickr8k.token.txt`,
`results_20130124.token`), of Kaggle's copies (`captions.txt`, `results.csv`), or of Karpathy's JSON with its split.
docs/data.md shows the trees.
"""

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from t2i.data import View
from t2i.data.folders.dataset import FolderDataset
from t2i.data.published.listing import Listing, first_of, open_listed, read_karpathy, require_folder
from t2i.data.splits import PublishedOptions
from t2i.errors import InputError
from t2i.files import lines_of
from t2i.names import counted


class _Layout(NamedTuple):
    kind: str
    karpathy: str
    captions: tuple[str, ...]
    folders: tuple[str, ...]  # possible folders of the images
    lists: dict[str, tuple[str, ...]]  # split -> possible names of the file that lists its images


_FLICKR8K = _Layout(
    "flickr8k",
    "dataset_flickr8k.json",
    ("Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt", "captions.txt"),
    ("Flicker8k_Dataset", "Flickr8k_Dataset", "Flickr8k_Dataset/Flicker8k_Dataset", "Images", "images"),
    {
        part: (f"Flickr_8k.{name}Images.txt", f"Flickr8k_text/Flickr_8k.{name}Images.txt")
        for part, name in (("train", "train"), ("val", "dev"), ("test", "test"))
    },
)
_FLICKR30K = _Layout(
    "flickr30k",
    "dataset_flickr30k.json",
    ("results_20130124.token", "results.csv", "flickr30k_images/results.csv", "flickr30k/results_20130124.token"),
    (
        "flickr30k-images",
        "flickr30k_images/flickr30k_images",
        "flickr30k_images",
        "flickr30k/flickr30k-images",
        "images",
    ),
    {part: (f"{part}.txt", f"flickr30k_entities/{part}.txt") for part in ("train", "val", "test")},
)
# `1000268201_693b08cb0e.jpg#0<TAB>A child in a pink dress`
_TOKEN = re.compile(r"(?P<name>[^\t]*)#[^\t#]*\t(?P<caption>.*)")
# `1000092795.jpg| 0| Two young guys`; one published row lacks its second bar
_BARS = re.compile(r"(?P<name>[^|]+\.jpg)\s*\|\s*\d+\s*\|?\s*(?P<caption>.*)")


def open_flickr8k(place: str, split: str, view: View, options: PublishedOptions) -> FolderDataset:
    """Opens one split of Flickr8k: by its lists or Karpathy's if they exist, otherwise assigned by name."""
    return _open(_FLICKR8K, place, split, view, options.split)


def open_flickr30k(place: str, split: str, view: View, options: PublishedOptions) -> FolderDataset:
    """Opens one split of Flickr30k: by Karpathy's or `train.txt`, `val.txt`, `test.txt`, otherwise assigned by name."""
    return _open(_FLICKR30K, place, split, view, options.split)


def _open(layout: _Layout, place: str, split: str, view: View, train: str | None) -> FolderDataset:
    root = require_folder(place, layout.kind)
    source = first_of(root, (layout.karpathy, *layout.captions), layout.kind, "captions")
    folder = next((name for name in layout.folders if any((root / name).glob("*.jpg"))), layout.folders[0])
    if source.name == layout.karpathy:
        return open_listed(read_karpathy(source, layout.kind, root, lambda row: folder), split, view, train)
    captions: dict[str, list[str]] = {}
    for name, caption in _captions(source):
        captions.setdefault(f"{folder}/{name}", []).append(caption)
    parts = _parts(root, layout, folder, captions)
    return open_listed(Listing(layout.kind, root, str(source), captions, parts), split, view, train)


def _captions(path: Path) -> Iterator[tuple[str, str]]:
    if path.name == "captions.txt":
        return _rows_kaggle(path)
    if path.suffix == ".csv":
        return _rows(path, _BARS, "name.jpg| 0| caption", header=1)
    return _rows(path, _TOKEN, "name.jpg#0<TAB>caption")


def _parts(root: Path, layout: _Layout, folder: str, names: Iterable[str]) -> dict[str, str] | None:
    """Returns the split of each image by the lists; None without lists. Images on no list are in no split."""
    parts: dict[str, str] = {}
    for part, candidates in layout.lists.items():
        path = next((root / name for name in candidates if (root / name).is_file()), None)
        for line in lines_of(path) if path else ():
            parts[f"{folder}/{line.strip().removesuffix('.jpg')}.jpg"] = part
    return {name: parts.get(name, "on no list") for name in names} if parts else None


def _rows(path: Path, pattern: re.Pattern[str], form: str, header: int = 0) -> Iterator[tuple[str, str]]:
    """Yields the name and the caption of each line, which must match `pattern`."""
    for number, line in enumerate(lines_of(path)[header:], 1 + header):
        match = pattern.match(line)
        if match is None:
            raise InputError(f"{path} line {number}: {line[:60]!r} is not `{form}`; take the published file")
        yield match["name"].strip(), match["caption"]


def _rows_kaggle(path: Path) -> Iterator[tuple[str, str]]:
    """Reads CSV with the columns `image` and `caption`, Kaggle's copy of Flickr8k."""
    lines = csv.reader(lines_of(path))
    try:
        header = next(lines, [])
        if header[:2] != ["image", "caption"]:
            raise InputError(
                f"{path}: its first line is {','.join(header)[:60]!r}, not 'image,caption'; take Kaggle's file"
            )
        for row in lines:
            if len(row) != 2:
                raise InputError(
                    f"{path} line {lines.line_num} has {counted(len(row), 'column')}, not image and caption; add quotes"
                )
            yield row[0].strip(), row[1]
    except csv.Error as error:
        raise InputError(f"{path} line {lines.line_num} is not CSV ({error}); download it again") from error
