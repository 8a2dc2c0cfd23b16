"""Caltech-UCSD Birds 200-2011 with the captions of Reed et al. (CVPR 2016): `cub:/path`.

One text file for each image, one caption a line, in a folder for each class; the split of the text-to-image papers is by
class: 150 that training shows, 50 that it never does. docs/data.md shows the tree.
"""

import warnings
from pathlib import Path

from t2i.data import View
from t2i.data.folders.dataset import FolderDataset
from t2i.data.published.listing import Listing, first_of, open_listed, require_folder
from t2i.errors import InputError
from t2i.files import lines_of

TEXT_FOLDERS = ("text_c10", "text")
_CLASS_LISTS = {
    "trainvalclasses.txt": "train",
    "trainclasses.txt": "train",
    "valclasses.txt": "val",
    "testclasses.txt": "test",
}


def open_cub(place: str, split: str, view: View, *, train: str | None = None) -> FolderDataset:
    """Opens one split: by class where the lists of classes are there, else by train_test_split.txt.

    Raises:
        InputError: no CUB there, no captions beside it, no such split, or no images.
    """
    root = require_folder(place, "cub")
    images = first_of(root, ("images.txt", "CUB_200_2011/images.txt"), "cub", "list of images").parent
    text = first_of(root, (*TEXT_FOLDERS, *(f"{images.name}/{n}" for n in TEXT_FOLDERS)), "cub", "folder of captions")
    numbers = dict(_pairs(images / "images.txt"))
    below = "" if images == root else f"{images.name}/"
    names = {number: f"{below}images/{name}" for number, name in numbers.items()}
    captions = {names[number]: class_captions(text, name) for number, name in numbers.items()}
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
    source = str(images / "images.txt")
    require_captions(captions, text)
    labels = {"class": {name: (own,) for name, own in classes.items()}}
    return open_listed(Listing("cub", root, source, captions, parts, roles(), labels), split, view, train)


def roles() -> dict[str, tuple[str, ...]]:
    """Returns the roles of the splits, which have our names already."""
    return {part: (part,) for part in ("train", "val", "test")}


def class_captions(text: Path, name: str) -> list[str]:
    """Returns the captions of image `class/name.jpg`: the lines of `class/name.txt`; none where there is no such file."""
    path = text / Path(name).with_suffix(".txt")
    return lines_of(path) if path.is_file() else []


def require_captions(captions: dict[str, list[str]], text: Path) -> None:
    """Raises InputError when no image has a caption."""
    if not any(captions.values()):
        first = next(iter(captions), "")
        raise InputError(
            f"no captions in {text} fit the images: looked for class/{Path(first).stem}.txt and the like; unpack the "
            "captions of Reed et al. there, a folder for each class"
        )


def class_parts(places: tuple[Path, ...], classes: dict[str, str]) -> dict[str, str] | None:
    """Returns the split of each image by the lists of classes, from image -> class; None where there are no lists.

    Where trainvalclasses.txt is there, its 150 (of flowers 82) classes are all for training, as in the papers.
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
