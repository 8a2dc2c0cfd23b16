"""Counts what a data set of captioned images holds, and names all that is wrong with it: `t2i data check ADDRESS`.

Every image is decoded once, captioned or not, and training reads what was found, so checking first costs nothing. A check
that was interrupted continues.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from t2i.data import Dataset, View, open_dataset, parse_address
from t2i.data.address import typed_options
from t2i.data.captions import REPLACED, script_of
from t2i.data.encoded import EncodedImages
from t2i.data.folders.dataset import FolderDataset, open_folder
from t2i.data.folders.hints import inner_folder
from t2i.data.folders.index import index_folder
from t2i.data.phash import Signatures, near_duplicates
from t2i.data.splits import SPLITS
from t2i.data.verified_index import Index, Verified
from t2i.data.verify import place_of, verify, verify_packed, verify_rendered
from t2i.errors import InputError

MOST_COMPARED = 30_000  # images of different appearance, up to which each is compared with each


class Spread(NamedTuple):
    """Smallest, middle and largest of some counts."""

    min: float
    median: float
    max: float


@dataclass(frozen=True)
class CheckReport:
    """Counts and names. A image is usable when whole, captioned and in a split. A `Spread` of nothing is None."""

    address: str
    index: str  # the folder where all of it is kept
    seeded: bool  # no split folders: the split is drawn by id, here with seed 0
    splits: dict[str, int]  # usable images of each split
    images: int  # all images
    formats: dict[str, int]  # of the whole ones, as their modes and sizes
    modes: dict[str, int]  # of the files: RGB, CMYK, P, ...
    bytes: int  # of all files
    width: Spread | None
    height: Spread | None
    captions: int  # of the usable ones, as all below that speaks of captions
    caption_characters: Spread | None
    caption_words: Spread | None
    captions_per_image: Spread | None
    words_per_caption: dict[int, int]  # histogram
    words: dict[str, int]  # the vocabulary in lower case, most frequent first
    scripts: dict[str, int]  # the script of most letters of each caption: LATIN, ARABIC, ...
    broken: list[tuple[str, str]]  # image, reason
    unreadable_captions: list[str]  # one sentence a captions file, or a split that cannot be opened
    images_without_captions: list[str]
    captions_without_images: list[str]  # the images they name
    outside_splits: list[str]
    unsupported: list[str]  # images in formats that are not read
    duplicate_images: list[list[str]]  # groups of equal files
    near_duplicate_images: list[list[str]]  # groups that look the same and are different files
    near_compared: bool  # False: too many images, only those of one perceptual hash and one set of colours are told
    shared_images: list[list[str]]  # groups of equal files that lie in more than one split
    duplicate_captions: list[tuple[str, int]]  # caption in lower case, on how many images; most frequent first
    shared_captions: list[tuple[str, list[str]]]  # caption in lower case, the splits it is in
    damaged_captions: list[str]  # with U+FFFD in the place of letters
    empty_splits: list[str]  # of train and val
    problem: str  # why training refuses the data; "": it does not


@dataclass
class CheckedData:
    """All that is known of the images at one address. Ids are unique over all splits."""

    address: str
    index: Path
    seeded: bool
    found: dict[str, Verified] = field(default_factory=dict)  # of all images
    split_of: dict[str, str] = field(default_factory=dict)
    captions: dict[str, Sequence[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    problem: str = ""  # why training refuses the data

    @property
    def usable(self) -> dict[str, Sequence[str]]:
        """Captions of the images that training may use."""
        return {
            name: self.captions[name]
            for name, its in self.found.items()
            if not its.reason and name in self.captions and name in self.split_of
        }


def gather(address: str) -> CheckedData:
    """Decodes all images at an address that are not known from before, of all splits.

    Raises:
        InputError: nothing is there, or no split of it can be opened.
    """
    found = parse_address(address)
    if found.kind == "folder":
        here = _gather_folder(found.place, **typed_options(found, open_folder))
        here.problem = _refusal(address)
        return here
    opened: dict[str, Dataset] = {}
    problems: dict[str, InputError] = {}
    for split in SPLITS:
        try:
            dataset = open_dataset(address, split, View(resolution=64))
        except InputError as error:
            problems[split] = error
            continue
        if dataset.split == split:  # `heldout` may have fallen back to another
            opened[split] = dataset
    if not opened:
        raise problems["train"]
    if "train" not in opened and "no split" not in str(problems["train"]):
        raise problems["train"]
    first = next(iter(opened.values()))
    here = CheckedData(str(found), Index(_place_of(first)).folder, seeded=False)
    here.problems = [str(error) for error in problems.values() if "no split" not in str(error)]
    for split, dataset in opened.items():
        _add(here, split, dataset)
    here.problem = _refusal(address)
    return here


def _refusal(address: str) -> str:
    """Why training refuses the data, which is all decoded by now; "": it does not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the report tells what is left out
            open_dataset(address, "train", View(resolution=64))
    except InputError as error:
        return str(error)
    return ""


def _place_of(dataset: Dataset) -> str:
    return str(dataset.root.resolve()) if isinstance(dataset, FolderDataset) else place_of(dataset.address)


def _add(here: CheckedData, split: str, dataset: Dataset) -> None:
    ids = list(dataset.ids)
    broken = [name for name, _ in getattr(dataset, "broken", ())]
    if isinstance(dataset, FolderDataset):
        here.found |= verify(dataset.root, dataset.files, [*ids, *broken])
    elif isinstance(dataset, EncodedImages):
        here.found |= verify_packed(dataset.address, ids, dataset.source)
        known = Index(place_of(dataset.address)).load() if broken else {}
        here.found |= {name: known[name] for name in broken if name in known}
    else:  # rendered: nothing can be broken
        ids = [f"{split}/{name}" for name in ids]
        here.found |= verify_rendered(ids, dataset.images)
    here.split_of |= dict.fromkeys([*ids, *broken], split)
    here.captions |= dict(zip(ids, dataset.captions, strict=True))


def _gather_folder(place: str, caption: str = "") -> CheckedData:
    index = index_folder(place, caption)
    ids = list(index.files)
    there = Index(index.root.resolve()).folder
    here = CheckedData(f"folder:{index.root}", there, index.seeded, verify(index.root, index.files, ids))
    here.split_of = {name: split for name, split in zip(ids, index.splits(ids, 0), strict=True) if split}
    here.captions |= index.captions
    here.missing, here.problems, here.unsupported = index.missing, index.problems, index.unsupported
    here.outside = [name for name in ids if name not in here.split_of]
    if inner := inner_folder(index):
        here.problems = [*here.problems, inner]
    return here


def check(address: str | Path) -> CheckReport:
    """Examines the captioned images at an address.

    Raises:
        InputError: nothing is there, it cannot be listed, or no image is in it.
    """
    return examine(gather(str(address)))


def examine(here: CheckedData) -> CheckReport:
    """Counts what was gathered."""
    ids, found, split_of, usable = list(here.found), here.found, here.split_of, here.usable
    whole = [name for name in ids if not found[name].reason]
    counts = Counter(split_of[name] for name in usable)
    captions = [caption for own in usable.values() for caption in own]
    lengths = [len(caption.split()) for caption in captions]
    copies = _groups((found[name].sha256, name) for name in whole)
    alike, compared = _alike(found, [names[0] for names in copies.values()])
    carriers = _groups((caption.lower(), name) for name, own in usable.items() for caption in own)
    repeated = [(caption, len(names)) for caption, names in carriers.items() if len(names) > 1]
    spread_out = [(caption, _splits_of(names, split_of)) for caption, names in carriers.items()]
    return CheckReport(
        address=here.address,
        index=str(here.index),
        seeded=here.seeded,
        splits={split: counts[split] for split in SPLITS if counts[split]},
        images=len(ids),
        formats=dict(Counter(found[name].format for name in whole).most_common()),
        modes=dict(Counter(found[name].mode for name in whole).most_common()),
        bytes=sum(max(0, its.size) for its in found.values()),
        width=_spread([found[name].width for name in whole]),
        height=_spread([found[name].height for name in whole]),
        captions=len(captions),
        caption_characters=_spread([len(caption) for caption in captions]),
        caption_words=_spread(lengths),
        captions_per_image=_spread([len(own) for own in usable.values()]),
        words_per_caption=dict(sorted(Counter(lengths).items())),
        words=dict(Counter(word for caption in captions for word in caption.lower().split()).most_common()),
        scripts=dict(Counter(script_of(caption) for caption in captions).most_common()),
        broken=[(name, found[name].reason) for name in ids if found[name].reason],
        unreadable_captions=here.problems,
        images_without_captions=[name for name in whole if name not in here.captions],
        captions_without_images=here.missing,
        outside_splits=here.outside,
        unsupported=here.unsupported,
        duplicate_images=[names for names in copies.values() if len(names) > 1],
        near_duplicate_images=alike,
        near_compared=compared,
        shared_images=[names for names in copies.values() if len(_splits_of(names, split_of)) > 1],
        duplicate_captions=sorted(repeated, key=lambda row: (-row[1], row[0])),
        shared_captions=[(caption, splits) for caption, splits in spread_out if len(splits) > 1],
        damaged_captions=[f"{name}: {text}" for name, own in usable.items() for text in own if REPLACED in text],
        empty_splits=[split for split in ("train", "val") if not counts[split]] if usable else [],
        problem=here.problem,
    )


def _spread(counts: Sequence[int]) -> Spread | None:
    return Spread(min(counts), median(counts), max(counts)) if counts else None


def _groups(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Second members by first member, each once."""
    groups: dict[str, dict[str, None]] = {}
    for key, name in pairs:
        groups.setdefault(key, {})[name] = None
    return {key: list(names) for key, names in groups.items()}


def _splits_of(names: Iterable[str], split_of: Mapping[str, str]) -> list[str]:
    there = {split_of[name] for name in names if name in split_of}
    return [split for split in SPLITS if split in there]


def _alike(found: Mapping[str, Verified], names: Sequence[str]) -> tuple[list[list[str]], bool]:
    """(groups of different files that look the same, whether all were compared with all)."""
    distinct = {own: i for i, own in enumerate(dict.fromkeys(found[name].signature for name in names))}
    bytes_NL = np.frombuffer(b"".join(distinct), np.uint8).reshape(len(distinct), -1 if distinct else 56)
    compared = len(distinct) <= MOST_COMPARED
    leader = np.arange(len(distinct))
    if compared and distinct:
        known = Signatures(np.ascontiguousarray(bytes_NL[:, :8]).view(np.uint64)[:, 0], bytes_NL[:, 8:])
        for later, earlier in near_duplicates(known):
            leader[later] = leader[earlier]  # an earlier row has its final leader by now
    owner = np.array([distinct[found[name].signature] for name in names], dtype=np.int64)
    groups: dict[int, list[str]] = {}
    for name, number in zip(names, leader[owner].tolist(), strict=True):
        groups.setdefault(number, []).append(name)
    return [group for group in groups.values() if len(group) > 1], compared
