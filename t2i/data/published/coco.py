"""COCO captions of 2014 and 2017, and the Karpathy split of 2014: `coco:/path?split=train2014`.

Lin et al., ECCV 2014; Chen et al., arXiv 1504.00325. docs/data.md shows the tree.
"""

import re
from pathlib import Path

from t2i.data import View
from t2i.data.folders.dataset import FolderDataset
from t2i.data.published.listing import (
    Listing,
    bad_layout,
    first_of,
    image_folder,
    open_listed,
    read_karpathy,
    require_folder,
)
from t2i.data.splits import PublishedOptions
from t2i.files import read_json

_NAME = re.compile(r"captions_((?:train|val)(20\d\d))\.json")
_KARPATHY = ("annotations/dataset_coco.json", "dataset_coco.json")


def open_coco(place: str, split: str, view: View, options: PublishedOptions) -> FolderDataset:
    """Opens one split of the newest year with captions, or of the Karpathy split if there are no other captions.

    `?split=train2014` selects that file as `train` and its year for the others; `?split=karpathy` selects the Karpathy split.
    """
    root = require_folder(place, "coco")
    karpathy = next((root / name for name in _KARPATHY if (root / name).is_file()), None)
    paths = sorted([*root.glob("captions_*.json"), *root.glob("annotations/captions_*.json")])
    files = {match[1]: path for path in paths if (match := _NAME.fullmatch(path.name))}
    train = options.split
    if karpathy and (train == "karpathy" or not files):
        listing = read_karpathy(karpathy, "coco", root, lambda row: image_folder(root, row["filepath"]))
        return open_listed(listing, split, view, None if train == "karpathy" else train)
    if not files:
        names = ("annotations/captions_train2017.json", "annotations/captions_train2014.json", _KARPATHY[0])
        first_of(root, names, "coco", "captions")
    year = train[-4:] if train and train in files else max(name[-4:] for name in files)
    files = {name: path for name, path in files.items() if name.endswith(year)}
    return open_listed(_read(root, files, year), split, view, train)


def _read(root: Path, files: dict[str, Path], year: str) -> Listing:
    captions: dict[str, list[str]] = {}
    parts: dict[str, str] = {}
    for part, path in files.items():
        content, folder = read_json(path), image_folder(root, part)
        try:
            names = {row["id"]: f"{folder}/{row['file_name']}" for row in content["images"]}
            captions |= {name: [] for name in names.values()}
            for row in content["annotations"]:
                captions[names[row["image_id"]]].append(row["caption"])
        except (KeyError, TypeError) as error:
            raise bad_layout(path, error, "images with file_name, and annotations with image_id and caption") from error
        parts |= dict.fromkeys(names.values(), part)
    roles = {role: (f"{role}{year}",) for role in ("train", "val")}
    return Listing("coco", root, ", ".join(map(str, files.values())), captions, parts, roles)
