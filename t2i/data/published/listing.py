"""Opens published data sets of image files, whose captions and splits come from their own files.

The module of a format reads its files into a `Listing`; `open_listed` finds the existing images, verifies them, and selects the
split.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2i.data import View
from t2i.data.captions import captions_of
from t2i.data.folders.dataset import FolderDataset, open_index
from t2i.data.folders.index import FolderIndex
from t2i.data.splits import split_of_parts
from t2i.errors import InputError
from t2i.files import at_home, contents, read_json
from t2i.names import counted, shown

OWN_NAMES = {"train": ("train",), "val": ("val",), "test": ("test",)}
KARPATHY = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


@dataclass
class Listing:
    """The images, captions and splits of a data set. The id of an image is its path below the root, with `/`."""

    kind: str
    root: Path
    source: str  # the file that names the images, for messages
    captions: Mapping[str, Sequence[str]]  # id -> captions before cleaning
    parts: Mapping[str, str] | None = None  # id -> published name of its split; None: no splits are published
    roles: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: OWN_NAMES
    )  # train, val, test -> published names
    labels: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)  # label -> id -> classes


def open_listed(listing: Listing, split: str, view: View, train: str | None = None) -> FolderDataset:
    """Opens one split of a listing; `heldout` falls back to `test`, then to `val`.

    Args:
        train: the published split that is read as `train`, and by no other split; None: as in the listing.

    Raises:
        InputError: there is no such split, no caption or no image of the split, or a caption is not text.
    """
    outside = next((name for name in listing.captions if name.startswith(("/", "\\")) or ".." in name.split("/")), None)
    if outside is not None:
        raise InputError(
            f"{listing.source} names '{shown(outside)}', outside {shown(listing.root)}; take the published file"
        )
    captions = {name: cleaned for name, own in listing.captions.items() if (cleaned := _cleaned(listing, name, own))}
    if not captions:
        raise InputError(f"{listing.source} holds no captions; take the file that comes with the data set")
    splits = split_of_parts(listing.parts, listing.roles, train, f"{listing.kind}:{listing.root}")
    files = _present(listing.root, listing.captions)
    index = FolderIndex(
        listing.root,
        entries={name: "\n".join(captions.get(name, ())) for name in sorted(files)},
        missing=[name for name in listing.captions if name not in files],
        kind=listing.kind,
        parts=splits,
        needs_val=splits is not None and "val" not in splits.values(),
        labels=listing.labels,
    )
    _require_images(listing, index, split, view.seed)
    return open_index(index, split, view)


def _cleaned(listing: Listing, name: str, captions: Sequence[str]) -> tuple[str, ...]:
    wrong = [caption for caption in captions if not isinstance(caption, str)]
    if wrong:
        what = f"a caption of '{shown(name)}' is {json.dumps(wrong[0])[:60]}, not text"
        raise InputError(f"{listing.source}: {what}; correct or remove that entry")
    return tuple(captions_of(list(captions)))


def _present(root: Path, names: Iterable[str]) -> set[str]:
    """Returns the names that exist; lists each folder once."""
    listed: dict[str, set[str]] = {}
    present: set[str] = set()
    for name in names:
        folder, _, base = name.rpartition("/")
        if folder not in listed:
            listed[folder] = set()
            with suppress(OSError):
                listed[folder] = set(os.listdir(root / folder))
        if base in listed[folder]:
            present.add(name)
    return present


def _require_images(listing: Listing, index: FolderIndex, split: str, seed: int) -> None:
    """Raises InputError if the lists name images of the split, or any, and none of them exists or has a caption."""
    names = list(listing.captions)
    own = [name for name, part in zip(names, index.splits(names, seed), strict=True) if part == split]
    own = own if index.entries else names
    lacking = [name for name in own if name not in index.entries]
    if own and len(lacking) < len(own) and not any(index.entries.get(name) for name in own):
        raise InputError(
            f"{listing.source} has no caption for the {counted(len(own), 'image')} of split {split}; download it again"
        )
    if not lacking or len(lacking) < len(own):
        return
    folder, _, base = lacking[0].rpartition("/")
    place = listing.root / folder
    found = f"which holds {contents(place)}" if place.is_dir() else "which is not there"
    raise InputError(
        f"{listing.source} names {counted(len(lacking), 'image')} and none is there: looked for '{shown(base)}' in "
        f"{shown(place)}, {found}; put the images into that folder"
    )


# ---- used by several formats ---------------------------------------------------------------------------------------


def require_folder(place: str, kind: str) -> Path:
    """Returns the folder of an address.

    Raises:
        InputError: it does not exist.
    """
    root = at_home(place)
    if not root.is_dir():
        what = "is a file" if root.exists() else "is not there"
        raise InputError(f"data {kind}:{shown(place)}: {shown(place)} {what}; name the folder that holds the data set")
    return root


def first_of(root: Path, names: Sequence[str], kind: str, what: str) -> Path:
    """Returns the first of several names that exists.

    Raises:
        InputError: none of them exists; the message lists them and what was found instead.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    looked = " or ".join(names)
    raise InputError(f"data {kind}:{shown(root)}: no {what}: looked for {looked}; found {contents(root)}")


def image_folder(root: Path, part: str) -> str:
    """Returns the folder of the images of e.g. `train2014`: that folder, or the one in `images/`."""
    below = not (root / part).is_dir() and (root / "images" / part).is_dir()
    return f"images/{part}" if below else part


def bad_layout(path: Path, error: Exception, expected: str) -> InputError:
    """Returns the error for a JSON file without the entries of its format."""
    return InputError(f"{path}: no {expected} ({type(error).__name__}: {error}); is it the published file?")


def read_karpathy(path: Path, kind: str, root: Path, folder_of: Callable[[dict[str, Any]], str]) -> Listing:
    """Reads the captions and splits of Karpathy and Fei-Fei (CVPR 2015): dataset_coco.json, dataset_flickr8k.json, ...

    Args:
        folder_of: returns the folder, below the root, of the image of an entry.

    Raises:
        InputError: the file does not have that layout.
    """
    captions: dict[str, list[str]] = {}
    parts: dict[str, str] = {}
    try:
        for row in read_json(path)["images"]:
            folder = folder_of(row)
            name = f"{folder}/{row['filename']}" if folder else row["filename"]
            captions[name] = [sentence["raw"] for sentence in row["sentences"]]
            parts[name] = row["split"]
    except (KeyError, TypeError, AttributeError) as error:
        raise bad_layout(path, error, "images with filename, split and sentences") from error
    return Listing(kind, root, str(path), captions, parts, KARPATHY)
