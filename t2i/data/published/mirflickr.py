"""MIRFlickr-25K (Huiskes & Lew, MIR 2008): `mirflickr:/path`. docs/data.md shows the tree.

The caption of an image is its tags, joined by commas. The label `annotation` has the 38 annotations; those that end in `_r1` mark
images of which the word is the subject. No split is published, so images are assigned by name.
"""

import re
from pathlib import Path

from t2i.data import View
from t2i.data.folders.dataset import FolderDataset
from t2i.data.published.listing import Listing, first_of, open_listed, require_folder
from t2i.errors import InputError
from t2i.files import lines_of

_IMAGE = re.compile(r"im(\d+)\.jpg")
_ANNOTATIONS = ("annotations", "mirflickr25k_annotations_v080", "mirflickr25k_annotations")


def open_mirflickr(place: str, split: str, view: View) -> FolderDataset:
    """Opens one split. Images without a tag are left out."""
    root = require_folder(place, "mirflickr")
    images = first_of(root, ("mirflickr", "mirflickr25k", "im1.jpg"), "mirflickr", "images")
    images = images if images.is_dir() else root
    tags = first_of(root, ("meta/tags", f"{images.name}/meta/tags"), "mirflickr", "folder of tags")
    below = "" if images == root else f"{images.name}/"
    names = {
        int(match[1]): f"{below}{path.name}" for path in images.iterdir() if (match := _IMAGE.fullmatch(path.name))
    }
    captions = {name: _caption(tags / f"tags{number}.txt") for number, name in sorted(names.items())}
    places = (*_ANNOTATIONS, *(f"{images.name}/{name}" for name in _ANNOTATIONS))
    annotations = first_of(root, places, "mirflickr", "folder of annotations")
    words: dict[str, tuple[str, ...]] = {}
    for path in sorted(annotations.glob("*.txt")):
        if path.stem.lower().startswith("readme"):
            continue
        for number in _numbers(path):
            if number in names:
                words[names[number]] = (*words.get(names[number], ()), path.stem)
    if not words:
        raise InputError(
            f"{annotations} annotates none of the images in {images}; unpack mirflickr25k_annotations there"
        )
    return open_listed(Listing("mirflickr", root, str(tags), captions, labels={"annotation": words}), split, view)


def _caption(path: Path) -> list[str]:
    tags = [line.strip() for line in lines_of(path) if line.strip()] if path.is_file() else []
    return [", ".join(tags)] if tags else []


def _numbers(path: Path) -> list[int]:
    lines = [line.strip() for line in lines_of(path) if line.strip()]
    wrong = next((line for line in lines if not line.isdecimal()), None)
    if wrong is not None:
        raise InputError(
            f"{path}: {wrong[:40]!r} is not the number of an image; take the published file, one number per line"
        )
    return [int(line) for line in lines]
