"""Captioned images of all kinds as `Dataset`s. A new kind is one file, one line in `DATASETS`, one paragraph in docs/data.md.

The address of a data set is `shapes-2`, `emoji`, `coco:/path?split=train2014`, or a bare path, whose kind address.py recognises
by its contents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import Field, field_validator

from t2i.config.options import SEEDS
from t2i.config.section import Section
from t2i.errors import InputError
from t2i.files import at_home
from t2i.names import resolve

if TYPE_CHECKING:
    from t2i.data.address import Address
    from t2i.images import Fit, ImageArray

NO_CAPTION = ""  # the caption of images without one, in data that includes such images

Split = Literal["train", "val", "test", "heldout"]
Augmentation = Literal["color", "grey", "rotate", "zoom", "shift", "noise"]


class DataConfig(Section):
    """Captioned images, and how they are scaled to the model's size."""

    address: str = Field(default="shapes-2", description="shapes-1, shapes-2, shapes-3, emoji, a folder, or kind:place")
    resolution: int = Field(default=32, ge=16, le=1024, description="pixels per side, a power of two")
    fit: Literal["center", "random", "squash", "pad"] = Field(
        default="center",
        description="how images of other sizes and aspect ratios are made square: crop at the centre or at random, squash, pad",
    )
    limit: int | None = Field(default=None, ge=1, description="use the first N training images only; null: all")
    split_seed: int = Field(
        default=0, ge=0, lt=SEEDS, description="seed of the split of a folder without train/val/test folders"
    )

    unlabelled: str | None = Field(
        default=None,
        description="address of images without captions, e.g. any folder of images, which become half of the samples with the "
        "null caption; for cgan and prior; null: none",
    )
    augment: tuple[Augmentation, ...] = Field(
        default=(),
        description="random augmentations of training images: color, grey, rotate (10 degrees), zoom (1.2), shift (a tenth), "
        "noise; not for a prior",
    )

    @field_validator("resolution")
    @classmethod
    def _halves_down_to_four(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("must be a power of two: 16, 32, 64, 128, 256, 512 or 1024")
        return value

    def view(self, limit: int | None = None, bare: bool = False) -> "View":
        """Returns the view for opening a split; `limit` and `bare` are those of `View`."""
        return View(self.resolution, self.fit, limit, self.split_seed, bare)


@dataclass(frozen=True)
class View:
    """Resolution and crop of images, and the images of a split that are used."""

    resolution: int = 32
    fit: "Fit" = "center"
    limit: int | None = None  # first N images of the split; None: all (for shapes: the default size of the split)
    seed: int = 0  # seed of the split of a folder without split folders, and of random crops
    bare: bool = False  # True: images of a folder without captions are included, with NO_CAPTION


class Dataset(Protocol):
    """One split of captioned images, opened at one resolution, with rows in a fixed order.

    Images that are known to be broken are not among the rows, but listed in `broken`.
    """

    address: str
    split: str
    resolution: int
    ids: Sequence[str]  # one per image, unique, the same on every machine
    captions: Sequence[Sequence[str]]  # all captions of each image, at least one

    def __len__(self) -> int: ...

    def images(self, indices: Sequence[int]) -> "ImageArray":
        """Returns the rows `indices` as uint8 [B, resolution, resolution, 3]."""
        ...

    def at(self, resolution: int | None = None, fit: "Fit | None" = None) -> "Dataset":
        """Returns the same rows at another resolution or crop, without opening the data again; None: as they are."""
        ...

    def fingerprint(self) -> str:
        """Returns the SHA-256 of everything that pixels depend on: ids, contents, captions, split and transform."""
        ...

    def digest(self) -> str:
        """Returns the SHA-256 of ids, contents and captions, which does not depend on path and resolution."""
        ...


# kind -> "module:function"; each function is open(place: str, split: str, view: View, options: SomeOptions) -> Dataset, where
# SomeOptions is a NamedTuple of the options that an address may name after `?`; kinds without options omit it. It raises
# InputError if the data, the split, or images with captions do not exist; the message says what was looked for.
DATASETS: dict[str, str] = {
    "shapes": "t2i.data.shapes.dataset:open_shapes",
    "folder": "t2i.data.folders.dataset:open_folder",
    "coco": "t2i.data.published.coco:open_coco",
    "flickr8k": "t2i.data.published.flickr:open_flickr8k",
    "flickr30k": "t2i.data.published.flickr:open_flickr30k",
    "cub": "t2i.data.published.cub:open_cub",
    "flowers": "t2i.data.published.flowers:open_flowers",
    "mirflickr": "t2i.data.published.mirflickr:open_mirflickr",
    "vg": "t2i.data.published.visual_genome:open_visual_genome",
    "vqa2": "t2i.data.published.vqa2:open_vqa2",
    "shards": "t2i.data.packed.shards:open_shards",
    "parquet": "t2i.data.packed.parquet:open_parquet",
    "hub": "t2i.data.packed.hub:open_hub",
    "emoji": "t2i.data.emoji.dataset:open_emoji",
}


def parse_address(address: str) -> "Address":
    """Parses `shapes-2` to ("shapes", "2"), and `coco:/a?split=train2014` to ("coco", "/a", {"split": "train2014"}).

    The kind of a bare path is recognised by its contents.

    Raises:
        InputError: the kind is unknown, or there is no known data at the path; the message says what was looked for.
    """
    from t2i.data.address import Address, recognise, split_options
    from t2i.names import nearest

    if address.startswith("shapes-"):
        return Address("shapes", *split_options(address.removeprefix("shapes-")))
    if address.partition("?")[0] == "emoji":
        return Address("emoji", "openmoji", split_options(address)[1])
    kind, colon, rest = address.partition(":")
    if not address.partition("?")[0].rpartition(":")[2].strip():  # else it would be the current folder
        raise InputError(f"data {address!r} names no place; give an address such as shapes-2, photos/ or coco:/path")
    if colon and kind in DATASETS:
        return Address(kind, *split_options(rest))
    place, options = split_options(address)
    if at_home(place).exists() or place.endswith(".tar"):
        kind, notice = recognise(place)
        return Address(kind, place, options, notice)
    if colon and kind.replace("_", "").replace("-", "").isalnum() and not rest.startswith("\\"):
        raise InputError(f"data {address!r}: no kind {kind!r}{nearest(kind, DATASETS)}; known: {', '.join(DATASETS)}")
    raise InputError(
        f"data {address!r} not found: give shapes-1, shapes-2, shapes-3, emoji, an existing folder of captioned images, or "
        f"kind:place with one of {', '.join(list(DATASETS)[1:])}"
    )


def open_dataset(address: str, split: str = "train", view: View = View()) -> Dataset:
    """Opens one split of the data at `address`.

    Raises:
        InputError: the address, an option, the split or the captions do not exist; the message says what was looked for.
    """
    from t2i.data.address import read_options

    parsed = parse_address(address)
    function = resolve(DATASETS[parsed.kind])
    options = read_options(parsed, function)
    try:
        return function(parsed.place, split, view, *options)
    except InputError as error:
        if not parsed.notice or parsed.place in str(error) and f"folder:{parsed.place}" in str(error):
            raise
        raise InputError(f"{error} ({parsed.notice.removeprefix('data ')})") from error
