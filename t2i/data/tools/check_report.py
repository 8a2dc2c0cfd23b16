"""Writes the results of `t2i data check` as text, as JSON, as a table of all images, and as a contact sheet."""

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from t2i import images, seeding
from t2i.cache import writing_to
from t2i.data import View
from t2i.data.tools.check import CheckedData, CheckReport, Spread
from t2i.data.tools.opening import try_splits
from t2i.errors import InputError
from t2i.files import new_file, write_text
from t2i.names import shown, some

BUCKETS = (1, 5, 10, 20, 40, 80)  # words per caption
SHEET, COLUMNS, SIDE = 48, 8, 128  # images per contact sheet, images per row, pixels per side


def format_report(report: CheckReport) -> str:
    """Returns the report as lines of text: statistics, then faults, each with the first few names."""
    shares = " (assigned by name: 90 % train, 5 % val, 5 % test; seed 0)" if report.seeded else ""
    splits = ", ".join(f"{split} {count:,}" for split, count in report.splits.items()) or "none"
    once = sum(count == 1 for count in report.words.values())
    lines = [
        f"data                 {shown(report.address)}",
        f"images               {report.images:,}, usable {sum(report.splits.values()):,}; {report.bytes / 1e6:,.1f} MB",
        f"splits               {splits}{shares if report.splits else ''}",
        f"formats              {_counted(report.formats)}; modes {_counted(report.modes)}",
        f"width, pixels        {_row(report.width)}",
        f"height, pixels       {_row(report.height)}",
        f"captions             {report.captions:,}",
        f"caption characters   {_row(report.caption_characters)}",
        f"caption words        {_row(report.caption_words)}",
        f"  of so many words   {_buckets(report.words_per_caption)}",
        f"captions per image   {_row(report.captions_per_image)}",
        f"vocabulary           {len(report.words):,} words, {once:,} of which occur once: {_counted(report.words, 8)}",
        f"scripts              {_counted(report.scripts)}",
        f"index                {shown(report.index)}",
    ]
    faults = [f"{title}: {len(names):,}{_listed(names)}" for title, names in _faults(report) if names]
    return "\n".join([*lines, "", *(faults or [report.problem or "no faults were found"])])


def _row(spread: Spread | None) -> str:
    return f"min {spread.min:,g}, median {spread.median:,g}, max {spread.max:,g}" if spread else "none"


def _counted(counts: Mapping[str, int], most: int = 6) -> str:
    parts = [f"{shown(name)[:30]} {count:,}" for name, count in list(counts.items())[:most]]
    return ", ".join([*parts, "..."] if len(counts) > most else parts) or "none"


def _buckets(histogram: Mapping[int, int]) -> str:
    total = sum(histogram.values())
    shares = []
    for low, high in zip(BUCKETS, [*(edge - 1 for edge in BUCKETS[1:]), None], strict=True):
        count = sum(n for words, n in histogram.items() if words >= low and (high is None or words <= high))
        if count:
            shares.append(f"{low}-{high} {count / total:.0%}" if high else f"over {low - 1} {count / total:.0%}")
    return ", ".join(shares) or "none"


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = [f"... and {len(names) - most:,} more"] if len(names) > most else []
    return "".join(f"\n    {line}" for line in [*names[:most], *more])


def _faults(report: CheckReport) -> list[tuple[str, list[str]]]:
    """Returns (title, one line per case) for each kind of fault."""
    near = "groups of different files that look the same"
    near += "" if report.near_compared else " (many images: only those with one perceptual hash and the same colours)"
    return [
        ("broken images", [f"{shown(name)}: {reason}" for name, reason in report.broken]),
        ("captions files or splits that cannot be read", report.unreadable_captions),
        ("images without captions", [shown(name) for name in report.images_without_captions]),
        ("captions without images", [shown(name) for name in report.captions_without_images]),
        ("images outside the split folders", [shown(name) for name in report.outside_splits]),
        ("images in formats that are not read", [shown(name) for name in report.unsupported]),
        ("groups of equal image files", [some(names) for names in report.duplicate_images]),
        (near, [some(names) for names in report.near_duplicate_images]),
        ("groups of equal image files in several splits", [some(names) for names in report.shared_images]),
        ("captions with U+FFFD in place of letters (a file was read in a wrong encoding)", report.damaged_captions),
        ("splits without an image (add images, or make folders train/ and val/)", report.empty_splits),
        ("captions on several images", [f"{count:,} x {text[:80]}" for text, count in report.duplicate_captions]),
        ("captions in several splits", [f"{', '.join(own)}: {text[:80]}" for text, own in report.shared_captions]),
    ]


def save_report(report: CheckReport, data: CheckedData) -> None:
    """Writes report.json and pictures.parquet, with a row for each image, into the folder of the index.

    Raises:
        InputError: the cache cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "id": shown(name),
            "split": data.split_of.get(name),
            "captions": len(data.captions.get(name, ())),
            "bytes": known.size,
            **{key: getattr(known, key) for key in ("width", "height", "format", "mode", "sha256")},
            "broken": known.reason or None,
        }
        for name, known in data.verified.items()
    ]
    folder = Path(report.index)
    with writing_to(folder), new_file(folder / "pictures.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    write_text(folder / "report.json", json.dumps(asdict(report), indent=1) + "\n")


def contact_sheet(address: str) -> Image.Image:
    """Returns a page of random images of each split with one caption each, uncropped; the same images each time.

    Raises:
        InputError: no split can be opened, or no image can be decoded.
    """
    cells: list[images.ImageArray] = []
    labels: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report lists what is left out
        datasets, _ = try_splits(address, View(SIDE, "pad"))
    for split, dataset in datasets.items():
        count = SHEET - 2 * COLUMNS if split == "train" else COLUMNS
        for row in seeding.permutation(0, 0, len(dataset))[:count].tolist():
            with suppress(images.BrokenImage):
                cells.append(dataset.images([row])[0])
                more = len(dataset.captions[row]) - 1
                labels.append(f"{split}: {dataset.captions[row][0]}" + (f" (+{more})" if more else ""))
    if not cells:
        raise InputError(f"data {address}: no image for a contact sheet; `t2i data check` without --sheet says why")
    return images.grid(cells, labels, columns=min(COLUMNS, len(cells)), cell=SIDE)
