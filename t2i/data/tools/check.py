"""Counts and verifies the images and captions at an address, and finds faults: `t2i data check ADDRESS`.

Each image is decoded once, captioned or not. Training uses the results, so a check costs nothing in total; a check that was
interrupted continues.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from t2i.data import Dataset, View, open_dataset, parse_address
from t2i.data.address import read_options
from t2i.data.captions import REPLACED, script_of
from t2i.data.encoded import EncodedImages
from t2i.data.folders.dataset import FolderDataset, FolderOptions, open_folder
from t2i.data.folders.hints import inner_folder
from t2i.data.folders.index import index_folder
from t2i.data.phash import near_duplicates, unpack
from t2i.data.splits import SPLITS
from t2i.data.tools.opening import try_splits
from t2i.data.verified_index import Index, Verified
from t2i.data.verify import place_of, verify, verify_packed, verify_rendered
from t2i.errors import InputError

MOST_COMPARED = 30_000  # number of different signatures up to which all pairs are compared
_VIEW = View(resolution=64)


class Spread(NamedTuple):
    """Minimum, median and maximum of some counts."""

    min: float
    median: float
    max: float


@dataclass(frozen=True)
class CheckReport:
    """Counts and names; a `Spread` of nothing is None. An image is usable if it is intact, has a caption, and is in a split."""

    address: str
    index: str  # folder of the results
    seeded: bool  # there are no split folders: images are assigned by id, here with seed 0
    splits: dict[str, int]  # usable images of each split
    images: int  # all images
    formats: dict[str, int]  # of images that are not broken, like their modes and sizes
    modes: dict[str, int]  # of the files: RGB, CMYK, P, ...
    bytes: int  # of all files
    width: Spread | None
    height: Spread | None
    captions: int  # of usable images, like all other facts about captions
    caption_characters: Spread | None
    caption_words: Spread | None
    captions_per_image: Spread | None
    words_per_caption: dict[int, int]  # histogram
    words: dict[str, int]  # the vocabulary in lower case, most frequent first
    scripts: dict[str, int]  # the script of most letters of each caption: LATIN, ARABIC, ...
    broken: list[tuple[str, str]]  # image, reason
    unreadable_captions: list[str]  # a message for each captions file or split that cannot be opened
    images_without_captions: list[str]
    captions_without_images: list[str]  # names of the missing images
    outside_splits: list[str]
    unsupported: list[str]  # images in formats that are not read
    duplicate_images: list[list[str]]  # groups of equal files
    near_duplicate_images: list[list[str]]  # groups of different files that look the same
    near_compared: bool  # False: too many images, so only those with equal signatures are grouped
    shared_images: list[list[str]]  # groups of equal files in several splits
    duplicate_captions: list[tuple[str, int]]  # caption in lower case, number of its images; most frequent first
    shared_captions: list[tuple[str, list[str]]]  # caption in lower case, its splits
    damaged_captions: list[str]  # with U+FFFD in place of letters
    empty_splits: list[str]  # of train and val
    problem: str  # why training refuses the data; "": it does not


@dataclass
class CheckedData:
    """All facts about the images at one address. Ids are unique over all splits."""

    address: str
    index: Path
    seeded: bool
    verified: dict[str, Verified] = field(default_factory=dict)  # of all images
    split_of: dict[str, str] = field(default_factory=dict)
    captions: dict[str, Sequence[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    problem: str = ""  # why training refuses the data

    @property
    def usable(self) -> dict[str, Sequence[str]]:
        """Captions of the usable images, by id."""
        return {
            name: self.captions[name]
            for name, known in self.verified.items()
            if not known.reason and name in self.captions and name in self.split_of
        }


def gather(address: str) -> CheckedData:
    """Verifies the images of all splits at an address.

    Raises:
        InputError: the data does not exist, or none of its splits can be opened.
    """
    parsed = parse_address(address)
    if parsed.kind == "folder":
        data = _gather_folder(parsed.place, *read_options(parsed, open_folder))
    else:
        datasets, errors = try_splits(address, _VIEW)
        if "train" in errors and (not datasets or "no split" not in str(errors["train"])):
            raise errors["train"]
        data = CheckedData(str(parsed), Index(_place_of(next(iter(datasets.values())))).folder, seeded=False)
        data.problems = [str(error) for error in errors.values() if "no split" not in str(error)]
        for split, dataset in datasets.items():
            _add(data, split, dataset)
    try:  # after all images are verified
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the report lists what is left out
            open_dataset(address, "train", _VIEW)
    except InputError as error:
        data.problem = str(error)
    return data


def _place_of(dataset: Dataset) -> str:
    return str(dataset.root.resolve()) if isinstance(dataset, FolderDataset) else place_of(dataset.address)


def _add(data: CheckedData, split: str, dataset: Dataset) -> None:
    ids = list(dataset.ids)
    broken = [name for name, _ in getattr(dataset, "broken", ())]
    if isinstance(dataset, FolderDataset):
        data.verified |= verify(dataset.root, dataset.files, [*ids, *broken])
    elif isinstance(dataset, EncodedImages):
        data.verified |= verify_packed(dataset.address, ids, dataset.read)
        known = Index(place_of(dataset.address)).load() if broken else {}
        data.verified |= {name: known[name] for name in broken if name in known}
    else:  # rendered images are never broken
        ids = [f"{split}/{name}" for name in ids]
        data.verified |= verify_rendered(ids, dataset.images)
    data.split_of |= dict.fromkeys([*ids, *broken], split)
    data.captions |= dict(zip(ids, dataset.captions, strict=True))


def _gather_folder(place: str, options: FolderOptions) -> CheckedData:
    index = index_folder(place, options.caption)
    ids = list(index.entries)
    verified = verify(index.root, index.files(), ids)
    data = CheckedData(f"folder:{index.root}", Index(index.root.resolve()).folder, index.seeded, verified)
    data.split_of = {name: split for name, split in zip(ids, index.splits(ids, 0), strict=True) if split}
    data.captions |= {name: index.captions(name) for name in index.captioned()}
    data.missing, data.problems, data.unsupported = index.missing, index.problems, index.unsupported
    data.outside = [name for name in ids if name not in data.split_of]
    if inner := inner_folder(index):
        data.problems = [*data.problems, inner]
    return data


def check(address: str | Path) -> CheckReport:
    """Verifies the images at an address and reports on them; raises the errors of `gather`."""
    return examine(gather(str(address)))


def examine(data: CheckedData) -> CheckReport:
    """Returns the report on verified data."""
    ids, verified, split_of, usable = list(data.verified), data.verified, data.split_of, data.usable
    intact = [name for name in ids if not verified[name].reason]
    counts = Counter(split_of[name] for name in usable)
    copies = _groups((verified[name].sha256, name) for name in intact)
    alike, compared = _alike(verified, [names[0] for names in copies.values()])
    return CheckReport(
        address=data.address,
        index=str(data.index),
        seeded=data.seeded,
        splits={split: counts[split] for split in SPLITS if counts[split]},
        images=len(ids),
        formats=dict(Counter(verified[name].format for name in intact).most_common()),
        modes=dict(Counter(verified[name].mode for name in intact).most_common()),
        bytes=sum(max(0, known.size) for known in verified.values()),
        width=_spread([verified[name].width for name in intact]),
        height=_spread([verified[name].height for name in intact]),
        broken=[(name, verified[name].reason) for name in ids if verified[name].reason],
        unreadable_captions=data.problems,
        images_without_captions=[name for name in intact if name not in data.captions],
        captions_without_images=data.missing,
        outside_splits=data.outside,
        unsupported=data.unsupported,
        duplicate_images=[names for names in copies.values() if len(names) > 1],
        near_duplicate_images=alike,
        near_compared=compared,
        shared_images=[names for names in copies.values() if len(_splits_of(names, split_of)) > 1],
        empty_splits=[split for split in ("train", "val") if not counts[split]] if usable else [],
        problem=data.problem,
        **_caption_facts(usable, split_of),
    )


def _caption_facts(usable: Mapping[str, Sequence[str]], split_of: Mapping[str, str]) -> dict[str, Any]:
    """Returns the fields of the report that are about captions."""
    captions = [caption for own in usable.values() for caption in own]
    lengths = [len(caption.split()) for caption in captions]
    images_of = _groups((caption.lower(), name) for name, own in usable.items() for caption in own)
    repeated = [(caption, len(names)) for caption, names in images_of.items() if len(names) > 1]
    splits_of = [(caption, _splits_of(names, split_of)) for caption, names in images_of.items()]
    return {
        "captions": len(captions),
        "caption_characters": _spread([len(caption) for caption in captions]),
        "caption_words": _spread(lengths),
        "captions_per_image": _spread([len(own) for own in usable.values()]),
        "words_per_caption": dict(sorted(Counter(lengths).items())),
        "words": dict(Counter(word for caption in captions for word in caption.lower().split()).most_common()),
        "scripts": dict(Counter(script_of(caption) for caption in captions).most_common()),
        "duplicate_captions": sorted(repeated, key=lambda row: (-row[1], row[0])),
        "shared_captions": [(caption, splits) for caption, splits in splits_of if len(splits) > 1],
        "damaged_captions": [f"{name}: {text}" for name, own in usable.items() for text in own if REPLACED in text],
    }


def _spread(counts: Sequence[int]) -> Spread | None:
    return Spread(min(counts), median(counts), max(counts)) if counts else None


def _groups(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Returns the different second elements of pairs by the first element."""
    groups: dict[str, dict[str, None]] = {}
    for key, name in pairs:
        groups.setdefault(key, {})[name] = None
    return {key: list(names) for key, names in groups.items()}


def _splits_of(names: Iterable[str], split_of: Mapping[str, str]) -> list[str]:
    splits = {split_of[name] for name in names if name in split_of}
    return [split for split in SPLITS if split in splits]


def _alike(verified: Mapping[str, Verified], names: Sequence[str]) -> tuple[list[list[str]], bool]:
    """Returns groups of different files that look the same, and True if all pairs were compared."""
    distinct = {own: i for i, own in enumerate(dict.fromkeys(verified[name].signature for name in names))}
    compared = len(distinct) <= MOST_COMPARED
    leader = np.arange(len(distinct))
    if compared:
        for later, earlier in near_duplicates(unpack(distinct)):
            leader[later] = leader[earlier]  # the leader of an earlier row is final
    owner = np.array([distinct[verified[name].signature] for name in names], dtype=np.int64)
    groups: dict[int, list[str]] = {}
    for name, number in zip(names, leader[owner].tolist(), strict=True):
        groups.setdefault(number, []).append(name)
    return [group for group in groups.values() if len(group) > 1], compared
