"""What a folder of captioned pictures holds, and all that is wrong with it: `t2i data check FOLDER`.

Every picture is decoded once, captioned or not, and training reads what was found, so checking first costs nothing.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from t2i.data.folder_index import SPLITS, index_folder, shown, some, split_folder
from t2i.data.verify import verify


class Spread(NamedTuple):
    """Smallest, middle and largest of some counts."""

    min: float
    median: float
    max: float


@dataclass(frozen=True)
class CheckReport:
    """Counts and names. A picture is usable when whole, captioned and in a split. A `Spread` of nothing is None."""

    folder: str
    seeded: bool  # no split folders: the split is drawn by id, here with seed 0
    splits: dict[str, int]  # usable pictures of each split
    images: int  # all pictures
    formats: dict[str, int]  # of the whole ones, as their sizes
    width: Spread | None
    height: Spread | None
    captions: int  # of the usable ones, as all below that speaks of captions
    caption_characters: Spread | None
    caption_words: Spread | None
    captions_per_image: Spread | None
    broken: list[tuple[str, str]]  # picture, reason
    unreadable_captions: list[str]  # one sentence a captions file
    images_without_captions: list[str]
    captions_without_images: list[str]  # the pictures they name
    outside_splits: list[str]
    unsupported: list[str]  # pictures in formats that are not read
    duplicate_images: list[list[str]]  # groups of equal files
    shared_images: list[list[str]]  # groups of equal files that lie in more than one split
    duplicate_captions: list[tuple[str, int]]  # caption in lower case, on how many pictures; most frequent first
    shared_captions: list[tuple[str, list[str]]]  # caption in lower case, the splits it stands in


def check(path: str | Path) -> CheckReport:
    """Examines a folder of captioned pictures.

    Raises:
        InputError: there is no such folder, it cannot be listed, or no picture is in it.
    """
    index = index_folder(path)
    ids = list(index.files)
    found = verify(index.root, index.files, ids)
    whole = [name for name in ids if not found[name].reason]
    split_of = {name: split for name, split in zip(ids, index.splits(ids, 0), strict=True) if split}
    usable = {name: index.captions[name] for name in whole if name in index.captions and name in split_of}
    counts = Counter(split_of[name] for name in usable)
    captions = [caption for own in usable.values() for caption in own]
    copies = _groups((found[name].sha256, name) for name in whole)
    carriers = _groups((caption.lower(), name) for name, own in usable.items() for caption in own)
    repeated = [(caption, len(names)) for caption, names in carriers.items() if len(names) > 1]
    spread_out = [(caption, _splits_of(names, split_of)) for caption, names in carriers.items()]
    return CheckReport(
        folder=str(index.root),
        seeded=index.seeded,
        splits={split: counts[split] for split in SPLITS if counts[split]},
        images=len(ids),
        formats=dict(Counter(found[name].format for name in whole).most_common()),
        width=_spread([found[name].width for name in whole]),
        height=_spread([found[name].height for name in whole]),
        captions=len(captions),
        caption_characters=_spread([len(caption) for caption in captions]),
        caption_words=_spread([len(caption.split()) for caption in captions]),
        captions_per_image=_spread([len(own) for own in usable.values()]),
        broken=[(name, found[name].reason) for name in ids if found[name].reason],
        unreadable_captions=index.problems,
        images_without_captions=[name for name in ids if name not in index.captions],
        captions_without_images=index.missing,
        outside_splits=[] if index.seeded else [name for name in ids if split_folder(name) is None],
        unsupported=index.unsupported,
        duplicate_images=[names for names in copies.values() if len(names) > 1],
        shared_images=[names for names in copies.values() if len(_splits_of(names, split_of)) > 1],
        duplicate_captions=sorted(repeated, key=lambda row: (-row[1], row[0])),
        shared_captions=[(caption, splits) for caption, splits in spread_out if len(splits) > 1],
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


def format_report(report: CheckReport) -> str:
    """The report as lines of text: what is there, then what is wrong, each with the first few names."""
    shares = " (drawn by name: 90 % train, 5 % val, 5 % test; seed 0)" if report.seeded else " (by folder)"
    splits = ", ".join(f"{split} {count:,}" for split, count in report.splits.items()) or "none"
    formats = ", ".join(f"{kind} {count:,}" for kind, count in report.formats.items()) or "none"
    lines = [
        f"folder               {shown(report.folder)}",
        f"pictures             {report.images:,}, usable {sum(report.splits.values()):,}",
        f"splits               {splits}{shares if report.splits else ''}",
        f"formats              {formats}",
        f"width, pixels        {_row(report.width)}",
        f"height, pixels       {_row(report.height)}",
        f"captions             {report.captions:,}",
        f"caption characters   {_row(report.caption_characters)}",
        f"caption words        {_row(report.caption_words)}",
        f"captions a picture   {_row(report.captions_per_image)}",
    ]
    findings = [f"{title}: {len(names):,}{_listed(names)}" for title, names in _findings(report) if names]
    return "\n".join([*lines, "", *(findings or ["nothing wrong was found"])])


def _row(spread: Spread | None) -> str:
    return f"min {spread.min:,g}, median {spread.median:,g}, max {spread.max:,g}" if spread else "none"


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = [f"... and {len(names) - most:,} more"] if len(names) > most else []
    return "".join(f"\n    {line}" for line in [*names[:most], *more])


def _findings(report: CheckReport) -> list[tuple[str, list[str]]]:
    """All that may be wrong: title, one line a case."""
    return [
        ("broken pictures", [f"{shown(name)}: {reason}" for name, reason in report.broken]),
        ("captions files that cannot be read", report.unreadable_captions),
        ("pictures without captions", [shown(name) for name in report.images_without_captions]),
        ("captions without pictures", [shown(name) for name in report.captions_without_images]),
        ("pictures outside the split folders", [shown(name) for name in report.outside_splits]),
        ("pictures in formats that are not read", [shown(name) for name in report.unsupported]),
        ("groups of equal picture files", [some(names) for names in report.duplicate_images]),
        ("groups of equal picture files in several splits", [some(names) for names in report.shared_images]),
        ("captions on several pictures", [f"{count:,} x {text[:80]}" for text, count in report.duplicate_captions]),
        ("captions in several splits", [f"{', '.join(its)}: {text[:80]}" for text, its in report.shared_captions]),
    ]
