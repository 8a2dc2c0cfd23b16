"""Caltech-UCSD Birds 200-2011 with the captions of Reed et al. (CVPR 2016): `cub:/path`.

There is one text file per image, with one caption per line, in a folder per class. The text-to-image papers split by class:
training shows 150 classes, and 50 are held out. docs/data.md shows the tree.
"""

import warnings
from pathlib import Path

from t2i.data import View
from t2i.data.folders.dataset import FolderDataset
from t2i.data.published.listing import Listing, first_of, open_listed, require_folder
from t2i.data.splits import PublishedOptions
from t2i.errors import InputError
from t2i.files import lines_of

TEXT_FOLDERS = ("text_c10", "text")
_CLASS_LISTS = {
    "trainvalclasses.txt": "train",
    "trainclasses.txt": "train",
    "valclasses.txt": "val",
    "testclasses.txt": "test",
}


def open_cub(place: str, split: str, view: View, options: PublishedOptions) -> FolderDataset:
    """Opens one split: by class if there are lists of classes, otherwise by train_test_split.txt."""
    root = require_folder(place, "cub")
    images = first_of(root, ("images.txt", "CUB_200_2011/images.txt"), "cub", "list of images").parent
    text = first_of(root, (*TEXT_FOLDERS, *(f"{images.name}/{n}" for n in TEXT_FOLDERS)), "cub", "folder of captions")
    numbers = dict(_pairs(images / "images.txt"))
    below = "" if images == root else f"{images.name}/"
    names = {number: f"{below}images/{name}" for number, name in numbers.items()}
    texts = {names[number]: text / Path(name).with_suffix(".txt") for number, name in numbers.items()}
    captions = {name: lines_of(path) if path.is_file() else [] for name, path in texts.items()}
    classes = {names[number]: name.partition("/")[0] for number, name in numbers.items()}
    parts = class_parts((root, images, text), classes)
    if parts is None:
        warnings.warn(
            f"data cub:{root}: without trainvalclasses.txt and testclasses.txt, train_test_split.txt decides, where train "
            "and test share all 200 classes; the text-to-image papers split by class, so scores do not compare with theirs",
            stacklevel=3,
        )
        flags = dict(_pairs(first_of(images, ("train_test_split.txt",), "cub", "split")))
        parts = {names[number]: {"1": "train", "0": "test"}.get(flags.get(number, ""), "") for number in numbers}
    require_captions(captions, text)
    listing = Listing("cub", root, str(images / "images.txt"), captions, parts, labels=class_label(classes))
    return open_listed(listing, split, view, options.split)


def class_label(classes: dict[str, str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Returns the label `class` for a `Listing`, from image -> class."""
    return {"class": {name: (own,) for name, own in classes.items()}}


def require_captions(captions: dict[str, list[str]], text: Path) -> None:
    """Raises InputError if no image has a caption."""
    if not any(captions.values()):
        first = next(iter(captions), "")
        raise InputError(
            f"no captions in {text} match the images: looked for class/{Path(first).stem}.txt and the like; unpack the "
            "captions of Reed et al. there, one folder per class"
        )


def class_parts(places: tuple[Path, ...], classes: dict[str, str]) -> dict[str, str] | None:
    """Returns the split of each image by the lists of classes, from image -> class; None if there are no lists.

    If trainvalclasses.txt exists, all its classes (150 of CUB, 82 of flowers) are for training, as in the papers.
    """
    part_of: dict[str, str] = {}
    for name, part in _CLASS_LISTS.items():
        path = next((place / name for place in places if (place / name).is_file()), None)
        for line in lines_of(path) if path else ():
            part_of.setdefault(line.strip(), part)
    return {name: part_of.get(own, "on no list") for name, own in classes.items()} if part_of else None


def _pairs(path: Path) -> list[tuple[str, str]]:
    pairs = [tuple(line.split(maxsplit=1)) for line in lines_of(path)]
    wrong = next((number for number, pair in enumerate(pairs, 1) if len(pair) != 2), None)
    if wrong is not None:
        raise InputError(f"{path} line {wrong} is not `number value`; take the file that comes with CUB-200-2011")
    return [(a, b.strip()) for a, b in pairs]
