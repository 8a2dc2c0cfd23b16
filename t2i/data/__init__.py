"""Captioned images behind one protocol. A new kind of data is one file, one line in `DATASETS`, one paragraph in docs/data.md.

An address names a data set in one word: `shapes-2`, `emoji`, `coco:/path?split=train2014`, or a bare path, which address.py
recognises by what is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import Field, field_validator

from t2i.config.section import Section
from t2i.errors import InputError
from t2i.names import resolve

if TYPE_CHECKING:
    from t2i.data.address import Address
    from t2i.images import Fit, ImageArray

NO_CAPTION = ""  # the caption of an image that has none, where images without captions are asked for

Split = Literal["train", "val", "test", "heldout"]
Augmentation = Literal["color", "grey", "rotate", "zoom", "shift", "noise"]


class DataConfig(Section):
    """The captioned images, and how they are brought to the model's size."""

    address: str = Field(default="shapes-2", description="shapes-1, shapes-2, shapes-3, emoji, a folder, or kind:place")
    resolution: int = Field(default=32, ge=16, le=1024, description="pixels a side, a power of two times 4")
    fit: Literal["center", "random", "squash", "pad"] = Field(
        default="center",
        description="how other sizes and aspects become square: crop at the centre or at random, squash, pad",
    )
    limit: int | None = Field(default=None, ge=1, description="use the first N training images only; null: all")
    split_seed: int = Field(
        default=0, ge=0, description="decides the split of a folder that has no train/val/test folders"
    )

    unlabelled: str | None = Field(
        default=None,
        description="address of images without captions, such as any folder of images: half of the samples, under the null "
        "caption; for cgan and prior; null: none",
    )
    augment: tuple[Augmentation, ...] = Field(
        default=(),
        description="how training images are changed at random: color, grey, rotate (10 degrees), zoom (1.2), shift (a tenth), "
        "noise; not for a prior",
    )

    @field_validator("resolution")
    @classmethod
    def _halves_down_to_four(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("must be a power of two: 16, 32, 64, 128, 256, 512 or 1024")
        return value

    def view(self, limit: int | None = None, bare: bool = False) -> "View":
        """Returns the view of a split other than `train`, or of `train` with its own limit; `bare` as in `View`."""
        return View(self.resolution, self.fit, limit, self.split_seed, bare)


@dataclass(frozen=True)
class View:
    """The size and cut that images get, and the share of a split that is used."""

    resolution: int = 32
    fit: "Fit" = "center"
    limit: int | None = None  # first N images of the split; None: all (for shapes: the default size of the split)
    seed: int = 0  # decides the seeded split of a folder without split folders, and random crops
    bare: bool = False  # images of a folder that have no caption are rows too, with NO_CAPTION


class Dataset(Protocol):
    """One split of a captioned collection, opened at one resolution. Rows are in a fixed order.

    An image that cannot be decoded is never silently replaced: `broken` lists it, and it is not among the rows.
    """

    address: str
    split: str
    resolution: int
    ids: Sequence[str]  # one an image, unique, stable between machines
    captions: Sequence[Sequence[str]]  # all captions of image i, at least one

    def __len__(self) -> int: ...

    def images(self, indices: Sequence[int]) -> "ImageArray":
        """Returns the rows `indices` as uint8 [B, resolution, resolution, 3]."""
        ...

    def fingerprint(self) -> str:
        """Returns the sha256 of ids, contents, captions, split and transform, which decide the pixels."""
        ...

    def digest(self) -> str:
        """Returns the sha256 of ids, contents and captions: equal for a copy under another path, at any resolution."""
        ...


# kind -> "module:function"; each function is open(place: str, split: str, view: View, *, option: type = default, ...) ->
# Dataset. Its keyword arguments are the options that an address may name after `?`, `train` under the name `split`.
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
    """`shapes-2` -> ("shapes", "2"), `coco:/a?split=train2014` -> ("coco", "/a", {"split": "train2014"}); a bare path is
    recognised by what is there.

    Raises:
        InputError: the kind is unknown, or nothing known is at that path; the message says what was looked for.
    """
    from t2i.data.address import Address, recognise, split_options
    from t2i.names import nearest

    if address.startswith("shapes-"):
        return Address("shapes", *split_options(address.removeprefix("shapes-")))
    if address.partition("?")[0] == "emoji":
        return Address("emoji", "openmoji", split_options(address)[1])
    kind, colon, rest = address.partition(":")
    if colon and kind in DATASETS:
        return Address(kind, *split_options(rest))
    place, options = split_options(address)
    if Path(place).expanduser().exists() or place.endswith(".tar"):
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
        InputError: the address, an option, the split or the captions are not there; the message says what was looked for.
    """
    from t2i.data.address import typed_options

    found = parse_address(address)
    function = resolve(DATASETS[found.kind])
    options = typed_options(found, function)
    try:
        return function(found.place, split, view, **options)
    except InputError as error:
        if not found.notice or found.place in str(error) and f"folder:{found.place}" in str(error):
            raise
        raise InputError(f"{error} ({found.notice.removeprefix('data ')})") from error
