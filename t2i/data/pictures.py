"""What all data sets of files share: pictures are decoded when asked for, brought to size, and kept in memory."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import parent_process
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from t2i import images, seeding
from t2i.data import View
from t2i.data.verify import workers
from t2i.images import ImageArray

if TYPE_CHECKING:
    import pyarrow as pa


MEMORY_BYTES = 2**30  # decoded pictures kept by one dataset


BLOCK_BYTES = 2**25


_ADDING = Lock()  # not the store's own, which goes to workers by pickle


class _Store:
    """Decoded pictures by row, up to a number of bytes, in large blocks: alone each would be mapped page by page."""

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

    def add(self, row: int, picture: ImageArray) -> None:
        """Keeps a copy where there is room."""
        with _ADDING:
            if len(self._places) == self._most or row in self._places:
                return
            block, place = divmod(len(self._places), self._per_block)
            if block == len(self._blocks):
                left = self._most - block * self._per_block
                self._blocks.append(np.empty((min(self._per_block, left), *self._shape), np.uint8))
            self._blocks[block][place] = picture
            self._places[row] = len(self._places)


class Pictures(ABC):
    """One split of captioned pictures that lie somewhere encoded; decoded ones are kept up to `MEMORY_BYTES`."""

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

    @abstractmethod
    def source(self, i: int) -> Path | bytes:
        """The file of row i, or its bytes."""

    def place(self, i: int) -> str:
        """Names row i in a message."""
        return self.ids[i]

    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 of what decides the rows: ids, contents, captions, split and transform."""

    def picture(self, i: int, full: bool = False) -> Image.Image:
        """Row i decoded, upright and RGB.

        Args:
            full: of its own size; otherwise a large JPEG may come smaller, but at least twice `resolution` a side.

        Raises:
            BrokenImage: it cannot be read or decoded; the message names it.
        """
        try:
            return images.decode(self.source(i), None if full else self.resolution)
        except images.BrokenImage as error:
            raise images.BrokenImage(f"{self.place(i)}: {error}") from error

    @property
    def redraws(self) -> bool:
        """Whether a picture shows another part in another epoch."""
        return self._view.fit == "random"

    def images(self, indices: Sequence[int], epoch: int = 0) -> ImageArray:
        """uint8 [B, resolution, resolution, 3] of the rows `indices`, cut as in this epoch.

        Raises:
            BrokenImage: a file was removed or damaged since the data was opened; the message names it.
            IndexError: an index is out of range.
        """
        rows = [range(len(self))[int(i)] for i in indices]
        out_BHWC = np.empty((len(rows), self.resolution, self.resolution, 3), np.uint8)
        missing = {}  # row -> its first place in the batch
        for k, i in enumerate(rows):
            if i in self._kept:
                out_BHWC[k] = self._kept[i]
            else:
                missing.setdefault(i, k)
        if len(missing) > 1:
            with ThreadPoolExecutor(min(workers(), len(missing))) as pool:
                decoded = pool.map(lambda i: self._decode(i, epoch), missing)
                for k, picture in zip(missing.values(), decoded, strict=True):
                    out_BHWC[k] = picture
        else:
            for i, k in missing.items():
                out_BHWC[k] = self._decode(i, epoch)
        for k, i in enumerate(rows):
            if missing.get(i, k) != k:
                out_BHWC[k] = out_BHWC[missing[i]]
        if not self.redraws and parent_process() is None:  # each worker would keep its own
            for i, k in missing.items():
                self._kept.add(i, out_BHWC[k])
        return out_BHWC

    def _decode(self, i: int, epoch: int) -> ImageArray:
        picture = self.picture(i)
        x, y = 0.5, 0.5
        if self.redraws:
            x, y = seeding.uniform(self._view.seed, f"crop/{epoch}", seeding.ids_of([self.ids[i]]), 2)[0].tolist()
        return images.fit(picture, self.resolution, self._view.fit, (x, y))


class Column(Sequence[Any]):
    """Some rows of an Arrow column as a sequence of Python values; nothing is read before it is asked for."""

    def __init__(self, column: "pa.ChunkedArray", rows: NDArray[np.int64], form: Callable[[int, Any], Any]) -> None:
        self._column, self._rows, self._form = column, rows, form

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = int(self._rows[index])
        return self._form(row, self._column[row].as_py())
