"""Combines training data: the captioned images of a run, replayed data, and images without captions."""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, overload

import numpy as np

from t2i.data import NO_CAPTION, DataConfig, Dataset, open_dataset
from t2i.errors import InputError
from t2i.images import Fit, ImageArray

UNLABELLED_SHARE = 0.5  # share of the samples that are images without captions, if a run has any

T = TypeVar("T")


class Other(NamedTuple):
    """A source other than the captioned images of a run."""

    name: str  # prefix of its ids
    dataset: Dataset
    share: float  # share of the samples
    captioned: bool


class Joined(Sequence[T]):
    """Concatenated sequences, without a copy."""

    def __init__(self, parts: Sequence[Sequence[T]]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *map(len, parts)]).tolist()

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        part = bisect_right(self._starts, row) - 1
        return self._parts[part][row - self._starts[part]]


class Mixture:
    """A `Dataset` with the rows of several data sets in sequence.

    Attributes:
        members: the data sets, in order.
        others: (rows, share of the samples) of each data set but the first, by which `t2i.data.loader` draws rows.
    """

    def __init__(self, main: Dataset, others: Sequence[Other]) -> None:
        self.address, self.split, self.resolution = main.address, main.split, main.resolution
        self.members: list[Dataset] = [main, *(other.dataset for other in others)]
        self.captioned = [True, *(other.captioned for other in others)]
        self.others = [(len(other.dataset), other.share) for other in others]
        names = [[f"{other.name}:{one}" for one in other.dataset.ids] for other in others]
        self.ids: Sequence[str] = Joined([main.ids, *names])
        captions = [
            other.dataset.captions if other.captioned else [(NO_CAPTION,)] * len(other.dataset) for other in others
        ]
        self.captions: Sequence[Sequence[str]] = Joined([main.captions, *captions])
        self._starts = np.cumsum([0, *map(len, self.members)])

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, resolution: int | None = None, fit: Fit | None = None) -> Self:
        """Returns the same rows at another resolution or crop, without opening the data again; None: as they are."""
        other = copy(self)
        other.members = [member.at(resolution, fit) for member in self.members]
        other.resolution = other.members[0].resolution
        return other

    @property
    def redraws(self) -> bool:
        """True if images are cropped differently in each epoch."""
        return any(getattr(member, "redraws", False) for member in self.members)

    def images(self, indices: Sequence[int], epoch: int = 0) -> ImageArray:
        """Returns the rows `indices` as uint8 [B, resolution, resolution, 3]."""
        rows = np.array([range(len(self))[int(i)] for i in indices], dtype=np.int64)
        out_BHWC = np.empty((len(rows), self.resolution, self.resolution, 3), np.uint8)
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(owner).tolist():
            member: Any = self.members[number]
            own = (rows[owner == number] - self._starts[number]).tolist()
            redraws = getattr(member, "redraws", False)
            out_BHWC[owner == number] = member.images(own, epoch) if redraws else member.images(own)
        return out_BHWC

    def source(self, i: int) -> Path | bytes | None:
        """Returns the file of row i, or its bytes; None for a rendered image."""
        number = bisect_right(self._starts.tolist(), i) - 1
        source: Callable[[int], Path | bytes] | None = getattr(self.members[number], "source", None)
        return None if source is None else source(i - int(self._starts[number]))

    def fingerprint(self) -> str:
        return self._hash(member.fingerprint() for member in self.members)

    def digest(self) -> str:
        return self._hash(member.digest() for member in self.members)

    def _hash(self, parts: Any) -> str:
        return hashlib.sha256("\n".join([*parts, repr(self.others), repr(self.captioned)]).encode()).hexdigest()


def open_training(
    data: DataConfig, split: str = "train", replay: tuple[str, float] | None = None, bare: bool = False
) -> Dataset:
    """Opens the training images of a run, including replayed data and images without captions.

    Args:
        replay: address of the replayed data, and its share of the samples.
        bare: include images of a folder that have no captions.

    Raises:
        InputError: as `open_dataset`, or a source is named twice.
    """
    main = open_dataset(data.address, split, data.view(data.limit, bare))
    others: list[Other] = []
    if replay is not None:
        if replay[0] == data.address:
            raise InputError(
                f"replay.address {replay[0]} is the same as data.address; name the data of the earlier run"
            )
        others.append(Other("replay", open_dataset(replay[0], "train", data.view(bare=bare)), replay[1], True))
    if data.unlabelled is not None:
        share = UNLABELLED_SHARE * (1 - (replay[1] if replay else 0.0))
        others.append(Other("unlabelled", open_dataset(data.unlabelled, "train", data.view(bare=True)), share, False))
    return Mixture(main, others) if others else main


def members_of(dataset: Dataset) -> list[tuple[Dataset, bool]]:
    """Returns the data sets of a training set, each with True if its captions are used in training."""
    if isinstance(dataset, Mixture):
        return list(zip(dataset.members, dataset.captioned, strict=True))
    return [(dataset, True)]
