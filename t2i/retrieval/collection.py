"""A collection to search: the images at an address, of all splits, each content once, with their features."""

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
from t2i.data import NO_CAPTION, Dataset, View
from t2i.data.encoded import EncodedImages
from t2i.data.tools.rewrite import every_split
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

SHOWN_SIDE = 256  # of an image on a page
_SHA256 = re.compile(r'"[0-9a-f]{64}"')

Tick = Callable[[str, float, int], None]


class Place(NamedTuple):
    """One image of the data: its split, its row and id there, and its file, where it is one."""

    split: str
    row: int
    id: str
    path: str | None

    def __str__(self) -> str:
        return self.path or self.id


class ImageCollection:
    """All images at an address. Attributes are in the order of first appearance.

    Attributes:
        encoder: what the images are compared by.
        total: images, copies counted.
        contents: a hash of each different image; images that cannot be decoded are left out by `encode`.
        features_ND: of unit length, a row for each of `contents`, after `encode`.
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
        """Makes the features that are not in the cache, and gathers all; returns how many images were encoded now.

        Raises:
            InputError: no image can be decoded, or the cache cannot be written.
        """
        store = FeatureStore(self.encoder)
        missing = [k for k, content in enumerate(self.contents) if content not in store]
        broken: list[tuple[str, str]] = []
        done = 0

        def told(count: int) -> None:
            nonlocal done
            done += count
            tick("encoding images", done, len(missing))

        store.fill(ahead(self._decoded(missing, broken)), told)
        if broken:
            self._leave_out(store, broken)
        self._rows = rows_in_memory(len(self), self.encoder.dim)
        store.read(self.contents, self._rows.empty())
        self._rows.done = len(self)
        return len(missing) - len(broken)

    def places(self, k: int) -> list[Place]:
        """All images with the content of row k."""
        return [self._place(row) for row in np.flatnonzero(self._groups == self._groups[self._first[k]]).tolist()]

    def by_row(self, values_N: Array) -> list[Array]:
        """Values of the different images -> those of the images of each split; NaN where one cannot be decoded."""
        spread = np.full(int(self._groups.max()) + 1, np.nan)
        spread[self._groups[self._first]] = values_N
        return np.split(spread[self._groups], self._starts[1:-1])

    def captions(self, k: int) -> list[str]:
        dataset, row = self._at(int(self._first[k]))
        return [caption for caption in dataset.captions[row] if caption != NO_CAPTION]

    def pixels(self, k: int) -> ImageArray:
        """The image at row k for a page, uncut where it is a file."""
        dataset, row = self._at(int(self._first[k]))
        if not isinstance(dataset, EncodedImages):
            return dataset.images([row])[0]
        image = dataset.image(row, full=True)
        image.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
        return np.asarray(image)

    @cached_property
    def captioned(self) -> list[int]:
        """Rows that have a caption."""
        return [k for k in range(len(self)) if self.captions(k)]

    def _at(self, row: int) -> tuple[Dataset, int]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._datasets[number], row - int(self._starts[number])

    def _place(self, row: int) -> Place:
        dataset, own = self._at(row)
        source = dataset.source(own) if isinstance(dataset, EncodedImages) else None
        return Place(dataset.split, own, dataset.ids[own], str(source) if isinstance(source, Path) else None)

    def _decoded(self, wanted: Sequence[int], broken: list[tuple[str, str]]) -> Iterator[Batch]:
        """Batches of images of one size; those that cannot be decoded are noted."""
        at_once = max(1, min(CHUNK, CHUNK_BYTES // (3 * self.encoder.side**2)))
        rows = self._first[np.asarray(wanted, np.int64)]
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for number, dataset in enumerate(self._datasets):
            own = np.flatnonzero(owner == number)
            for start in range(0, len(own), at_once):
                part = own[start : start + at_once]
                local = (rows[part] - self._starts[number]).tolist()
                contents = [self.contents[wanted[k]] for k in part.tolist()]
                yield from _readable(dataset, local, contents, broken)

    def _leave_out(self, store: FeatureStore, broken: Sequence[tuple[str, str]]) -> None:
        kept = [k for k, content in enumerate(self.contents) if content in store]
        name, why = broken[0]
        told = f"{counted(len(broken), 'image')} of {self.address} cannot be decoded, as {why}"
        if not kept:
            raise InputError(f"{told}: nothing is left to search; repair or replace them")
        warnings.warn(f"left out: {told}", stacklevel=3)
        self.contents = [self.contents[k] for k in kept]
        self._first = self._first[kept]


def _readable(
    dataset: Dataset, rows: Sequence[int], contents: Sequence[bytes], broken: list[tuple[str, str]]
) -> Iterator[Batch]:
    try:
        yield contents, dataset.images(rows)
    except BrokenImage as error:  # since the data was opened, or never verified
        if len(rows) == 1:
            broken.append((dataset.ids[rows[0]], str(error)))
            return
        for row, content in zip(rows, contents, strict=True):
            yield from _readable(dataset, [row], [content], broken)


def open_collection(address: str, encoder: ImageTextExtractor, split: str | None = None) -> ImageCollection:
    """Opens the images at an address, captioned or not, of one split or of all.

    Raises:
        InputError: no such data or split, or no images there.
    """
    found = every_split(address, View(encoder.side, bare=True), None if split is None else [split])
    return ImageCollection(address, list(found.values()), encoder)


def content_keys(dataset: Dataset) -> Iterator[bytes]:
    """Hashes that change with the contents of an image: equal for equal files, wherever they are.

    A rendered image, and a file of a large folder that `t2i data check` has not seen, is known by its id instead.
    """
    every: Any = dataset
    for name, value in zip(dataset.ids, every.contents(), strict=True):
        text = json.dumps(value)
        own = text if _SHA256.search(text) else json.dumps([dataset.address, name, value])
        yield hashlib.sha256(own.encode()).digest()[:HASH_BYTES]


def query_image(path: Path, side: int) -> ImageArray:
    """An image file as the images of a collection are cut.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return images.fit(images.decode(path, side), side)
    except (BrokenImage, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"--image {shown(path)} cannot be read ({why}); name a {', '.join(images.SUFFIXES)} file"
        ) from error
