"""Writes captions for images that have none: creates a data folder with links to the images and a metadata.jsonl.

A file in the new folder records the captions written so far, so that the same command continues after an interruption, and
changing the threshold does not require captioning again.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL.Image import Image

from t2i import images
from t2i.data import parse_address
from t2i.data.encoded import EncodedImages
from t2i.data.folders.index import index_folder
from t2i.data.folders.labels import further_entries
from t2i.data.tools.classes import entries_of
from t2i.data.tools.export import metadata_line
from t2i.data.tools.opening import open_splits
from t2i.errors import InputError, os_errors
from t2i.files import at_home, link, read_utf8, refuse_used, walk, write_text
from t2i.images import SUFFIXES
from t2i.names import counted, shown
from t2i.reader.reading import BATCH, Reader

FIX = "free some space and start again"
NOTES, METADATA = ".captions.jsonl", "metadata.jsonl"
_SUFFIX = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"}

Source = Callable[[], Path | bytes]


class Item(NamedTuple):
    """An image: its name in the new folder, its source, its captions, and further facts."""

    name: str
    source: Source
    captions: Sequence[str] = ()
    more: Mapping[str, Any] = {}  # its labels, split, and further entries of metadata


class Captioned(NamedTuple):
    """The numbers of images by what became of them."""

    written: int  # images with a new caption
    kept: int  # images that keep their captions
    before: int  # images captioned by an earlier, interrupted call
    dropped: int  # images whose caption was too unlikely
    broken: list[tuple[str, str]]  # name, reason


def image_files(places: Sequence[Path]) -> list[Path]:
    """Returns image files and the image files in folders, in order.

    Raises:
        InputError: a path does not exist, is not an image, or is a folder without images.
    """
    files: list[Path] = []
    for place in (at_home(place) for place in places):
        if place.is_dir():
            inside = sorted(name for name in walk(place) if name.lower().endswith(SUFFIXES))
            if not inside:
                raise InputError(f"{place} holds no images ({' '.join(SUFFIXES)}); name a folder that does")
            files += [place / name for name in inside]
        elif not place.exists():
            raise InputError(f"{place} does not exist; name an image or a folder of images")
        elif place.suffix.lower() not in SUFFIXES:
            raise InputError(f"{place} is not a supported image ({' '.join(SUFFIXES)}); convert it, or name another")
        else:
            files.append(place)
    return files


def write_captions(
    reader: Reader,
    address: str,
    out: Path,
    keep: bool = False,
    minimum: float | None = None,
    beams: int = 1,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Captioned:
    """Writes a caption for every image at `address` and creates the data folder `out`.

    Args:
        keep: keep the captions of images that have some.
        minimum: least mean log likelihood per token, in nats; images with a less likely caption are left out.
        tick: called with (images done, number of images).

    Raises:
        InputError: there are no images, `out` holds other files, no caption is likely enough, or the reader writes none.
    """
    items = list(_items(address))
    if not items:
        raise InputError(f"data {address} holds no images; name a folder that does")
    uncaptioned = [item for item in items if not (keep and item.captions)]
    if uncaptioned and not reader.writes:
        raise InputError(
            f"reader {reader.name} writes no captions; train one that does: t2i train reader --config reader-caption"
        )
    record = _Record(out, {"reader": reader.digest(), "beams": beams})
    todo = [item for item in uncaptioned if item.name not in record.rows]
    before, broken = len(uncaptioned) - len(todo), list[tuple[str, str]]()
    tick(before, len(uncaptioned))
    for start in range(0, len(todo), BATCH):
        decoded, failed = decode_readable(todo[start : start + BATCH], reader.resolution)
        broken += failed
        if decoded:
            record.add(list(decoded), reader.write(list(decoded.values()), beams))
        tick(before + min(start + BATCH, len(todo)), len(uncaptioned))
    return _finish(out, items, keep, minimum, record, before, broken)


def decode_readable(items: Sequence[Item], side: int) -> tuple[dict[str, Image], list[tuple[str, str]]]:
    """Returns the decoded images, at least `side` pixels per side, by name, and (name, reason) of those that are broken."""
    decoded, broken = dict[str, Image](), list[tuple[str, str]]()
    for item in items:
        try:
            decoded[item.name] = images.decode(item.source(), side)
        except (images.BrokenImage, OSError) as error:
            broken.append((item.name, str(error)))
    return decoded, broken


def _finish(
    out: Path,
    items: Sequence[Item],
    keep: bool,
    minimum: float | None,
    record: "_Record",
    before: int,
    broken: list[tuple[str, str]],
) -> Captioned:
    """Writes metadata.jsonl, links the images, and removes images that an earlier, lower threshold had let in."""
    rows: list[str] = []
    written = kept = dropped = 0
    likeliest = -float("inf")
    for item in items:
        if keep and item.captions:
            kept += 1
            line = metadata_line(item.name, item.captions, item.more)
        elif item.name in record.rows:
            text, likelihood = record.rows[item.name]
            likeliest = max(likeliest, likelihood)
            if not text or minimum is not None and likelihood < minimum:
                dropped += 1
                (out / item.name).unlink(missing_ok=True)
                continue
            written += 1
            line = metadata_line(item.name, [text], {**item.more, "likelihood": round(likelihood, 4)})
        else:
            continue
        _place(item, out / item.name)
        rows.append(line)
    if not rows:
        if not dropped:
            raise InputError(f"no image can be read: {broken[0][0]}: {broken[0][1]}")
        raise InputError(
            f"none of {counted(dropped, 'caption')} is likely enough: the likeliest has {likeliest:.2f}; lower --min-likelihood"
        )
    write_text(out / METADATA, "".join(rows))
    return Captioned(written, kept, before, dropped, broken)


class _Record:
    """The captions written so far, in a file with one line per image."""

    def __init__(self, out: Path, head: dict[str, Any]) -> None:
        self._path, self.rows = out / NOTES, dict[str, tuple[str, float]]()
        try:
            if not self._path.is_file():
                refuse_used(out)
                out.mkdir(parents=True, exist_ok=True)
                write_text(self._path, json.dumps(head) + "\n")
            first, *lines = read_utf8(self._path).split("\n")
            if json.loads(first) != head:
                raise InputError(f"{out} holds captions by another reader or search; name a new folder")
            for line in filter(None, lines[:-1]):  # the last line is empty or incomplete
                name, text, likelihood = json.loads(line)
                self.rows[name] = text, likelihood
            if lines and lines[-1]:
                write_text(self._path, "\n".join([first, *lines[:-1]]) + "\n")
        except (OSError, ValueError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            why = getattr(error, "strerror", None) or error
            raise InputError(f"cannot continue in {out} ({why}); name a new folder") from error

    def add(self, names: Sequence[str], written: Sequence[tuple[str, float]]) -> None:
        lines = [
            json.dumps([name, text, likelihood]) + "\n" for name, (text, likelihood) in zip(names, written, strict=True)
        ]
        with os_errors(f"cannot write {self._path}", FIX), open(self._path, "a", encoding="utf-8") as file:
            file.writelines(lines)
        self.rows |= dict(zip(names, written, strict=True))


def _items(address: str) -> Iterator[Item]:
    """Yields the images at an address, with or without captions."""
    parsed = parse_address(address)
    if parsed.kind == "folder":
        index = index_folder(parsed.place, "")
        entries = further_entries(index.root, list(index.entries))
        for (name, path), own in zip(index.files().items(), entries, strict=True):
            split = (index.parts or {}).get(name)
            more = own | ({"split": split} if split else {})
            yield Item(path, lambda path=path: index.root / path, index.captions(name), more)
        return
    for split, dataset in open_splits(address).items():
        for row, (captions, more) in enumerate(zip(dataset.captions, entries_of(dataset), strict=True)):
            name = _name_of(dataset, split, row)
            yield Item(name, lambda dataset=dataset, row=row: dataset.source(row), captions, more)


def _name_of(dataset: EncodedImages, split: str, row: int) -> str:
    source = dataset.source(row)
    suffix = (
        source.suffix.lower()
        if isinstance(source, Path)
        else _SUFFIX.get(str(images.decode(source, 16).format), ".png")
    )
    return f"{split}/{row:06d}{suffix}"


def _place(item: Item, path: Path) -> None:
    """Links or copies the image to a path, unless it exists."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    source = item.source()
    with os_errors(f"cannot write {shown(path)}", FIX):
        if isinstance(source, bytes):
            path.write_bytes(source)
        else:
            link(source, path)
