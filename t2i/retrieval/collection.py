"""A collection to search: the images of all splits at an address, equal files only once, with their features."""

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from t2i import images
from t2i.data import NO_CAPTION, Dataset, View, open_dataset
from t2i.data.encoded import EncodedImages
from t2i.data.tools.opening import every_split
from t2i.errors import InputError
from t2i.extractors import ImageTextExtractor
from t2i.images import BrokenImage, ImageArray
from t2i.metrics import Features
from t2i.metrics.intervals import group_index
from t2i.metrics.statistics import Array
from t2i.names import counted, shown
from t2i.retrieval.store import HASH_BYTES, Batch, FeatureStore
from t2i.scoring.images.collection import CHUNK, CHUNK_BYTES, ahead
from t2i.scoring.images.store import FeatureRows, rows_in_memory

SHOWN_SIDE = 256  # pixels of an image on a page
_SHA256 = re.compile(r'"[0-9a-f]{64}"')

Tick = Callable[[str, float, int], None]


class Place(NamedTuple):
    """One image of the data: its split, its row and id in the split, and the path of its file, if it has one."""

    split: str
    row: int
    id: str
    path: str | None

    def __str__(self) -> str:
        return self.path or self.id


class ImageCollection:
    """The different images at an address, in the order of their first appearance.

    Attributes:
        encoder: the encoder that images and queries are compared with.
        total: number of images, with all copies; `encode` removes images that cannot be decoded.
        contents: the content hash of each different image; `encode` removes images that cannot be decoded.
        features_ND: a row of unit length for each of `contents`; set by `encode`.
    """

    def __init__(self, address: str, datasets: Sequence[Dataset], encoder: ImageTextExtractor) -> None:
        self.address, self.encoder = address, encoder
        self._datasets = list(datasets)
        self._starts = np.cumsum([0, *map(len, self._datasets)])
        self.total = int(self._starts[-1])
        keys = [key for dataset in self._datasets for key in content_keys(dataset)]
        self._groups = group_index(keys)
        self._first: NDArray[np.int64] = np.unique(self._groups, return_index=True)[1]
        self.contents = [keys[row] for row in self._first.tolist()]
        self._rows: FeatureRows | None = None

    def __len__(self) -> int:
        return len(self.contents)

    @property
    def features_ND(self) -> Features:
        assert self._rows is not None
        return self._rows.whole()

    def encode(self, tick: Tick = lambda what, done, total: None) -> int:
        """Encodes the images that are not in the cache and loads all features; returns the number of newly encoded images.

        Raises:
            InputError: no image can be decoded, or the cache cannot be written.
        """
        store = FeatureStore(self.encoder)
        missing = [k for k, content in enumerate(self.contents) if content not in store]
        broken: list[str] = []
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            tick("encoding images", done, len(missing))

        store.fill(ahead(self._decoded(missing, broken)), advance)
        if broken:
            self._leave_out(store, broken)
        self._rows = rows_in_memory(len(self), self.encoder.dim)
        store.read(self.contents, self._rows.empty())
        self._rows.done = len(self)
        return len(missing) - len(broken)

    def places(self, k: int) -> list[Place]:
        """Returns all images that have the content of row k."""
        return [self._place(row) for row in np.flatnonzero(self._groups == self._groups[self._first[k]]).tolist()]

    def by_row(self, values_N: Array) -> list[Array]:
        """Expands values of the different images to all images, split by split; NaN for images that cannot be decoded."""
        spread = np.full(int(self._groups.max()) + 1, np.nan)
        spread[self._groups[self._first]] = values_N
        return np.split(spread[self._groups], self._starts[1:-1])

    def captions(self, k: int) -> list[str]:
        """Returns the captions of the first image that has the content of row k."""
        dataset, row = self._at(int(self._first[k]))
        return [caption for caption in dataset.captions[row] if caption != NO_CAPTION]

    def pixels(self, k: int) -> ImageArray:
        """Returns the image of row k for a page; image files are scaled but not cropped."""
        dataset, row = self._at(int(self._first[k]))
        if not isinstance(dataset, EncodedImages):
            return dataset.images([row])[0]
        image = dataset.image(row, full=True)
        image.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
        return np.asarray(image)

    @cached_property
    def captioned(self) -> list[int]:
        """The rows of images with captions."""
        return [k for k in range(len(self)) if self.captions(k)]

    def _at(self, row: int) -> tuple[Dataset, int]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._datasets[number], row - int(self._starts[number])

    def _place(self, row: int) -> Place:
        dataset, local = self._at(row)
        source = dataset.source(local) if isinstance(dataset, EncodedImages) else None
        return Place(dataset.split, local, dataset.ids[local], str(source) if isinstance(source, Path) else None)

    def _decoded(self, missing: Sequence[int], broken: list[str]) -> Iterator[Batch]:
        """Yields batches of decoded images; appends the reason to `broken` if one cannot be decoded."""
        at_once = max(1, min(CHUNK, CHUNK_BYTES // (3 * self.encoder.side**2)))
        rows = self._first[np.asarray(missing, np.int64)]
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for number, dataset in enumerate(self._datasets):
            members = np.flatnonzero(owner == number)
            for start in range(0, len(members), at_once):
                part = members[start : start + at_once]
                local = (rows[part] - self._starts[number]).tolist()
                contents = [self.contents[missing[k]] for k in part.tolist()]
                yield from _readable(dataset, local, contents, broken)

    def _leave_out(self, store: FeatureStore, broken: Sequence[str]) -> None:
        encoded = [k for k, content in enumerate(self.contents) if content in store]
        if not encoded:
            raise InputError(f"no image of {self.address} can be decoded: {broken[0]}; repair or replace them")
        warnings.warn(
            f"skipped {counted(len(broken), 'image')} of {self.address} that cannot be decoded: {broken[0]}",
            stacklevel=3,
        )
        self.contents = [self.contents[k] for k in encoded]
        self._first = self._first[encoded]
        self.total = int(np.isin(self._groups, self._groups[self._first]).sum())


def _readable(dataset: Dataset, rows: Sequence[int], contents: Sequence[bytes], broken: list[str]) -> Iterator[Batch]:
    try:
        yield contents, dataset.images(rows)
    except BrokenImage as error:  # damaged after the data was verified, or never verified
        if len(rows) == 1:
            broken.append(str(error))
            return
        for row, content in zip(rows, contents, strict=True):
            yield from _readable(dataset, [row], [content], broken)


def open_collection(address: str, encoder: ImageTextExtractor, split: str | None = None) -> ImageCollection:
    """Opens the images of one split or of all splits at an address; images need no captions.

    Raises:
        InputError: the data or the split does not exist, or has no images.
    """
    view = View(encoder.side, bare=True)
    datasets = [open_dataset(address, split, view)] if split else list(every_split(address, view).values())
    return ImageCollection(address, datasets, encoder)


def content_keys(dataset: Dataset) -> Iterator[bytes]:
    """Yields a hash of each image's contents; equal files have equal hashes, whatever their paths.

    Rendered images, and files of a large folder that `t2i data check` has not read, are identified by their ids instead.
    """
    recorded: Any = dataset
    for name, value in zip(dataset.ids, recorded.contents(), strict=True):
        text = json.dumps(value)
        key = text if _SHA256.search(text) else json.dumps([dataset.address, name, value])
        yield hashlib.sha256(key.encode()).digest()[:HASH_BYTES]


def query_image(path: Path, side: int) -> ImageArray:
    """Returns an image file, cropped and resized like the images of a collection.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return images.fit(images.decode(images.read_limited(path), side), side)
    except (BrokenImage, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--image {shown(path)} cannot be read ({reason}); name a {', '.join(images.SUFFIXES)} file"
        ) from error
