"""What all data sets of files share: pictures are decoded when asked for, brought to size, and kept in memory."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from t2i import images, seeding
from t2i.data import View
from t2i.data.verify import workers
from t2i.images import ImageArray

MEMORY_BYTES = 2**30  # decoded pictures kept by one dataset


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
        self._kept: dict[int, ImageArray] = {}

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
        ready = {i: self._kept[i] for i in rows if i in self._kept}
        fresh = [i for i in dict.fromkeys(rows) if i not in ready]
        if len(fresh) > 1:
            with ThreadPoolExecutor(min(workers(), len(fresh))) as pool:
                ready.update(zip(fresh, pool.map(lambda i: self._decode(i, epoch), fresh), strict=True))
        else:
            ready.update((i, self._decode(i, epoch)) for i in fresh)
        room = MEMORY_BYTES // (3 * self.resolution**2) - len(self._kept)
        if not self.redraws:
            self._kept.update((i, ready[i]) for i in fresh[: max(0, room)])
        out_BHWC = np.empty((len(rows), self.resolution, self.resolution, 3), np.uint8)
        for k, i in enumerate(rows):
            out_BHWC[k] = ready[i]
        return out_BHWC

    def _decode(self, i: int, epoch: int) -> ImageArray:
        picture = self.picture(i)
        x, y = 0.5, 0.5
        if self.redraws:
            x, y = seeding.uniform(self._view.seed, f"crop/{epoch}", seeding.ids_of([self.ids[i]]), 2)[0].tolist()
        return images.fit(picture, self.resolution, self._view.fit, (x, y))
