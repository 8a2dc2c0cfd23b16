"""Captioned images behind one protocol. A new kind of data is one file, one line in `DATASETS`, one paragraph in docs/data.md.

An address names a data set in one word: `shapes-2`, `folder:/path`, or a bare path.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import Field, field_validator

from t2i.config import Section
from t2i.errors import InputError

if TYPE_CHECKING:
    from t2i.images import Fit, ImageArray

Split = Literal["train", "val", "test", "heldout"]


class DataConfig(Section):
    """Which captioned pictures, and how they are brought to the model's size."""

    address: str = Field(default="shapes-2", description="shapes-1, shapes-2, shapes-3, a folder, or kind:place")
    resolution: int = Field(default=32, ge=16, le=1024, description="pixels a side, a power of two times 4")
    fit: Literal["center", "random", "squash", "pad"] = Field(
        default="center",
        description="how other sizes and aspects become square: crop at the centre or at random, squash, pad",
    )
    limit: int | None = Field(default=None, ge=1, description="use the first N training images only; null: all")
    split_seed: int = Field(
        default=0, ge=0, description="decides the split of a folder that has no train/val/test folders"
    )

    @field_validator("resolution")
    @classmethod
    def _halves_down_to_four(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("must be a power of two: 16, 32, 64, 128, 256, 512 or 1024")
        return value

    def view(self, limit: int | None = None) -> "View":
        """The view of a split other than `train`, or of `train` with its own limit."""
        return View(self.resolution, self.fit, limit, self.split_seed)


@dataclass(frozen=True)
class View:
    """How pictures are brought to the model's size, and how much of a split is used."""

    resolution: int = 32
    fit: "Fit" = "center"
    limit: int | None = None  # first N images of the split; None: all (for shapes: the default size of the split)
    seed: int = 0  # decides the seeded split of a folder without split folders, and random crops


class Dataset(Protocol):
    """One split of a captioned collection, opened at one resolution. Rows are in a fixed order.

    A picture that cannot be decoded is never silently replaced: `broken` lists it, and it is not among the rows.
    """

    address: str
    split: str
    resolution: int
    ids: Sequence[str]  # one an image, unique, stable between machines
    captions: Sequence[Sequence[str]]  # all captions of image i, at least one

    def __len__(self) -> int: ...

    def images(self, indices: Sequence[int]) -> "ImageArray":
        """uint8 [B, resolution, resolution, 3] of the rows `indices`."""
        ...

    def fingerprint(self) -> str:
        """sha256 of what decides the rows: ids, captions, split and transform."""
        ...


# kind -> "module:function"; each function is open(address_rest: str, split: str, view: View) -> Dataset
DATASETS: dict[str, str] = {
    "shapes": "t2i.data.shapes:open_shapes",
    "folder": "t2i.data.folder:open_folder",
}


def parse_address(address: str) -> tuple[str, str]:
    """`shapes-2` -> ("shapes", "2"); `folder:/a/b` or an existing folder -> ("folder", "/a/b")."""
    if address.startswith("shapes-"):
        return "shapes", address.removeprefix("shapes-")
    kind, colon, rest = address.partition(":")
    if colon and kind in DATASETS:
        return kind, rest
    if Path(address).is_dir():
        return "folder", address
    if Path(address).exists():
        raise InputError(
            f"data {address!r} is a file, not a folder of captioned pictures; name the folder that holds it"
        )
    raise InputError(
        f"data {address!r} not found: give shapes-1, shapes-2, shapes-3 or an existing folder of captioned pictures"
    )


def open_dataset(address: str, split: str = "train", view: View = View()) -> Dataset:
    """Opens one split of the data at `address`.

    Raises:
        InputError: the address, the split or the captions are not there; the message says what was looked for.
    """
    kind, rest = parse_address(address)
    module, _, function = DATASETS[kind].partition(":")
    return getattr(import_module(module), function)(rest, split, view)
