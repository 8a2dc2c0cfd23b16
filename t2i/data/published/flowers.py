"""Oxford Flowers-102 with the captions of Reed et al. (CVPR 2016): `flowers:/path`. docs/data.md shows the tree."""

import warnings

from t2i.data import View
from t2i.data.folders.dataset import FolderDataset
from t2i.data.published.cub import TEXT_FOLDERS, class_label, class_parts, require_captions
from t2i.data.published.listing import Listing, first_of, open_listed, require_folder
from t2i.data.splits import PublishedOptions
from t2i.errors import InputError
from t2i.files import lines_of


def open_flowers(place: str, split: str, view: View, options: PublishedOptions) -> FolderDataset:
    """Opens one split: by class if there are lists of classes, otherwise assigned by name."""
    root = require_folder(place, "flowers")
    images = first_of(root, ("jpg", "102flowers/jpg"), "flowers", "folder of images")
    text = first_of(root, (*TEXT_FOLDERS, "flowers/text_c10"), "flowers", "folder of captions")
    below = images.relative_to(root).as_posix()
    captions: dict[str, list[str]] = {}
    classes: dict[str, str] = {}
    for path in sorted(text.glob("*/image_*.txt")):
        name = f"{below}/{path.stem}.jpg"
        if name in captions:
            raise InputError(
                f"two classes in {text} caption {path.stem}: {classes[name]}, {path.parent.name}; remove one"
            )
        captions[name], classes[name] = lines_of(path), path.parent.name
    require_captions(captions, text)
    parts = class_parts((root, text, text.parent), classes)
    if parts is None:
        warnings.warn(
            f"data flowers:{root}: without trainvalclasses.txt and testclasses.txt, each image is assigned by its name, so "
            "train and test share all classes; the text-to-image papers split by class, so scores do not compare with theirs",
            stacklevel=3,
        )
    listing = Listing("flowers", root, str(text), captions, parts, labels=class_label(classes))
    return open_listed(listing, split, view, options.split)
