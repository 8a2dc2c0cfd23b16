"""Base class of data sets in files, which decodes images on demand, scales them, and keeps them in memory."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from multiprocessing import parent_process
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
from PIL import Image

from t2i import images, seeding
from t2i.data import View
from t2i.data.verify import workers
from t2i.images import TRANSFORM, Fit, ImageArray

MEMORY_BYTES = 2**30  # size of the decoded images that a dataset keeps
BLOCK_BYTES = 2**25
_ADDING = Lock()  # not an attribute of the store, which is pickled for workers


class _Store:
    """Keeps decoded images by row, up to a number of bytes, in large blocks, as single arrays would be mapped page by page."""

    def __init__(self, most_bytes: int, rows: int, resolution: int) -> None:
        self._shape = resolution, resolution, 3
        self._most = min(rows, most_bytes // (3 * resolution**2))
        self._per_block = max(1, BLOCK_BYTES // (3 * resolution**2))
        self._blocks: list[ImageArray] = []
        self._places: dict[int, int] = {}

    def __contains__(self, row: int) -> bool:
        return row in self._places

    def __getitem__(self, row: int) -> ImageArray:
        block, place = divmod(self._places[row], self._per_block)
        return self._blocks[block][place]

    def add(self, row: int, image: ImageArray) -> None:
        """Keeps a copy while there is room."""
        with _ADDING:
            if len(self._places) == self._most or row in self._places:
                return
            block, place = divmod(len(self._places), self._per_block)
            if block == len(self._blocks):
                left = self._most - block * self._per_block
                self._blocks.append(np.empty((min(self._per_block, left), *self._shape), np.uint8))
            self._blocks[block][place] = image
            self._places[row] = len(self._places)


class EncodedImages(ABC):
    """One split of captioned images in files or tables; up to `MEMORY_BYTES` of decoded images are kept."""

    def __init__(
        self, address: str, split: str, view: View, ids: Sequence[str], captions: Sequence[Sequence[str]]
    ) -> None:
        self.address = address
        self.split = split
        self.resolution = view.resolution
        self.ids = ids
        self.captions = captions
        self._view = view
        self._kept = _Store(MEMORY_BYTES, len(ids), view.resolution)

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, resolution: int | None = None, fit: Fit | None = None) -> Self:
        """Returns the same rows at another resolution or crop, without opening the data again; None: as they are."""
        other = copy(self)
        other._view = replace(self._view, resolution=resolution or self.resolution, fit=fit or self._view.fit)
        other.resolution = other._view.resolution
        other._kept = _Store(MEMORY_BYTES, len(self), other.resolution)
        return other

    @abstractmethod
    def source(self, i: int) -> Path | bytes:
        """Returns the file of row i, or its bytes."""

    def read(self, i: int) -> bytes:
        """Returns the bytes of row i; raises BrokenImage or OSError if they cannot be read."""
        source = self.source(i)
        return source if isinstance(source, bytes) else images.read_limited(source)

    def place(self, i: int) -> str:
        """Returns the name of row i for messages."""
        return self.ids[i]

    @abstractmethod
    def contents(self, lasting: bool = False) -> Iterable[Any]:
        """Returns a JSON value for each row that changes with the contents of its image.

        Args:
            lasting: return values that are the same for a copy of the data, and before and after `t2i data check`.
        """

    def fingerprint(self) -> str:
        """Returns the SHA-256 of everything that pixels depend on: ids, contents, captions, split and transform."""
        view = self._view
        transform = [TRANSFORM, view.resolution, view.fit, view.seed if view.fit == "random" else None]
        return self._hash([self.split, *transform], self.contents())

    def digest(self) -> str:
        """Returns the SHA-256 of ids, contents and captions, which does not depend on the resolution."""
        return self._hash([self.split], self.contents(lasting=True))

    def _hash(self, first: Any, contents: Iterable[Any]) -> str:
        total = hashlib.sha256(json.dumps(first).encode())
        for row in zip(self.ids, contents, self.captions, strict=True):
            total.update(json.dumps(row).encode())
        return total.hexdigest()

    def image(self, i: int, full: bool = False) -> Image.Image:
        """Returns row i decoded to upright RGB.

        Args:
            full: at full size; otherwise a large JPEG may be decoded smaller, but at least twice `resolution` per side.

        Raises:
            BrokenImage: the image cannot be read or decoded; the message names it.
        """
        try:
            return images.decode(self.source(i), None if full else self.resolution)
        except images.BrokenImage as error:
            raise type(error)(f"{self.place(i)}: {error}") from error

    @property
    def redraws(self) -> bool:
        """True if images are cropped differently in each epoch."""
        return self._view.fit == "random"

    def images(self, indices: Sequence[int], epoch: int = 0) -> ImageArray:
        """Returns the rows `indices` as uint8 [B, resolution, resolution, 3], cropped for this epoch.

        Raises:
            BrokenImage: a file was removed or damaged since the data was opened; the message names it.
            IndexError: an index is out of range.
        """
        rows = [range(len(self))[int(i)] for i in indices]
        missing = [i for i in dict.fromkeys(rows) if i not in self._kept]
        threads = min(_threads(), len(missing))
        with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool:
            results = (pool.map if pool else map)(lambda i: self._decode(i, epoch), missing)
            decoded = dict(zip(missing, results, strict=True))
        if not self.redraws and parent_process() is None:  # otherwise each worker would keep copies
            for i, image in decoded.items():
                self._kept.add(i, image)
        out_BHWC = np.empty((len(rows), self.resolution, self.resolution, 3), np.uint8)
        for k, i in enumerate(rows):
            out_BHWC[k] = decoded[i] if i in decoded else self._kept[i]
        return out_BHWC

    def _decode(self, i: int, epoch: int) -> ImageArray:
        image = self.image(i)
        x, y = 0.5, 0.5
        if self.redraws:
            x, y = seeding.uniform(self._view.seed, f"crop/{epoch}", seeding.ids_of([self.ids[i]]), 2)[0].tolist()
        return images.fit(image, self.resolution, self._view.fit, (x, y))


def _threads() -> int:
    """Returns the number of decoding threads of this process; workers of a loader share the cores."""
    if parent_process() is None:
        return workers()
    from torch.utils.data import get_worker_info

    info = get_worker_info()
    return max(1, workers() // (info.num_workers if info else 1))
