"""Visual Genome's region descriptions: `vg:/path?regions=concat|crop`.

Krishna et al., IJCV 2017: 108,077 images with about 50 phrases each, and a box for each phrase. The file has a gigabyte, so it is
read one image at a time. docs/data.md shows the tree.
"""

import json
import re
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from t2i.data import Dataset, View
from t2i.data.captions import clean_caption
from t2i.data.encoded import EncodedImages
from t2i.data.folders.dataset import FolderDataset
from t2i.data.published.listing import Listing, bad_layout, first_of, open_listed, require_folder
from t2i.errors import InputError
from t2i.files import open_regular

_FOLDERS = ("VG_100K", "VG_100K_2", "images/VG_100K", "images/VG_100K_2", "images")
_CHUNK = 1 << 20
_BETWEEN = re.compile(r"[\s,]*")


class Region(NamedTuple):
    """One phrase and its box, in pixels of the whole image."""

    number: int
    x: int
    y: int
    width: int
    height: int
    phrase: str


class GenomeOptions(NamedTuple):
    """Options of Visual Genome."""

    regions: Literal["concat", "crop"] = "concat"  # whole images with all phrases as one caption, or regions as images
    min_side: int = 64  # pixels; `crop` leaves out regions with a shorter side


def open_visual_genome(place: str, split: str, view: View, options: GenomeOptions) -> Dataset:
    """Opens one split; no split is published, so images are assigned by name."""
    root = require_folder(place, "vg")
    source = first_of(root, ("region_descriptions.json",), "vg", "region descriptions")
    where = {path.stem: f"{name}/{path.name}" for name in reversed(_FOLDERS) for path in (root / name).glob("*.jpg")}
    crops = options.regions == "crop"
    min_side = options.min_side if crops else 0
    regions = {
        where.get(str(image), f"{_FOLDERS[0]}/{image}.jpg"): [
            one for one in own if clean_caption(one.phrase) and (not crops or min(one.width, one.height) >= min_side)
        ]
        for image, own in _read(source)
    }
    captions = {name: [one.phrase for one in own] if crops else [_sentence(own)] for name, own in regions.items()}
    # as each image has at least one region, the view's limit of images gives enough regions
    whole = open_listed(Listing("vg", root, str(source), captions), split, view)
    return Regions(whole, regions, view) if crops else whole


def _sentence(regions: list[Region]) -> str:
    """Joins the different phrases of an image to one text, in their order."""
    phrases = dict.fromkeys(clean_caption(region.phrase).rstrip(".") for region in regions)
    return ". ".join(phrases) + "." if phrases else ""


class Regions(EncodedImages):
    """The regions of a split's images as separate images with one caption each."""

    def __init__(self, whole: FolderDataset, regions: dict[str, list[Region]], view: View) -> None:
        rows = [(i, region) for i, name in enumerate(whole.ids) for region in regions[name]][: view.limit]
        ids = [f"{whole.ids[i]}#{region.number}" for i, region in rows]
        super().__init__(whole.address, whole.split, view, ids, [(clean_caption(r.phrase),) for _, r in rows])
        self.broken = whole.broken
        self._whole = whole
        self._rows = rows

    def source(self, i: int) -> Path:
        return self._whole.source(self._rows[i][0])

    def image(self, i: int, full: bool = True) -> Image.Image:
        row, region = self._rows[i]
        image = self._whole.image(row, full)
        # some published boxes extend beyond the border
        left, top = min(max(region.x, 0), image.width - 1), min(max(region.y, 0), image.height - 1)
        right, bottom = min(region.x + region.width, image.width), min(region.y + region.height, image.height)
        return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))

    def contents(self, lasting: bool = False) -> list[Any]:
        contents = list(self._whole.contents(lasting))
        return [[contents[i], region] for i, region in self._rows]


def _read(path: Path) -> Iterator[tuple[int, list[Region]]]:
    """Yields (number of an image, its regions); published versions call the number `id` or `image_id`."""
    for entry in _entries(path):
        try:
            image = entry["id"] if "id" in entry else entry["image_id"]
            rows = [(r["region_id"], r["x"], r["y"], r["width"], r["height"], r["phrase"]) for r in entry["regions"]]
            yield int(image), [Region(*map(int, row[:5]), phrase=_phrase(row[5])) for row in rows]
        except (KeyError, TypeError, ValueError) as error:
            raise bad_layout(path, error, "regions with region_id, x, y, width, height and phrase") from error


def _phrase(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a phrase is {json.dumps(value)[:60]}, not text")
    return value


def _entries(path: Path) -> Iterator[Any]:
    """Yields the elements of a JSON array without reading the whole file."""
    decoder = json.JSONDecoder()
    try:
        with TextIOWrapper(open_regular(path), "utf-8-sig") as file:
            text = file.read(_CHUNK).lstrip()
            if not text.startswith("["):
                raise InputError(f"{path} is not a JSON array, but begins with {text[:20]!r}; take the published file")
            at = 1
            while True:
                at = _BETWEEN.match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess]  # the pattern matches the empty string
                if text.startswith("]", at):
                    return
                try:
                    entry, at = decoder.raw_decode(text, at)
                except (ValueError, RecursionError):
                    more = file.read(max(_CHUNK, len(text) - at))  # doubled each time, so that few attempts are needed
                    if not more:
                        near = text[at : at + 40]
                        raise InputError(f"{path} is cut off or not JSON, near {near!r}; download it again") from None
                    text, at = text[at:] + more, 0
                else:
                    yield entry
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}); re-save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
