"""Collections of images to score, from a data set, a file or a generator, in a fixed order and read in chunks."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from t2i import images, seeding
from t2i.data import Dataset, View, open_dataset
from t2i.data.captions import clean_caption
from t2i.errors import InputError
from t2i.images import ImageArray
from t2i.names import counted

SHOWN = 24
CHUNK, CHUNK_BYTES = 256, 2**26  # limits of a chunk: images and bytes
DEFAULT_N = 1000
ALL = 2**62  # `at_most` without a limit

Tick = Callable[[str, int, int], None]  # name of the stage, images done, all images
Item = TypeVar("Item")


def silent(what: str, done: int, total: int) -> None:
    """Shows no progress."""


@dataclass(frozen=True)
class Images:
    """A collection of images in a fixed order.

    Attributes:
        name: address of the data.
        split: split of a data set.
        captions: a caption for each image; None: not all have one.
        digest: digest of ids, captions and contents, or of everything that decides the contents.
        resolution: pixels per side; None: sizes differ, or images are not square.
        chunks: yields the images at these positions, in their order.
        chosen: the encoder that selected the images, and the number of candidates (`t2i sample --best-of`).
        sizes: description of the sizes if they differ.
        formats: file formats, e.g. `JPEG`; None: unknown.
        skipped: number of broken images, which are not included.
        captioned: number of images with a caption, if not all have one.
        total: number of images that these were chosen from.
    """

    name: str
    split: str | None
    ids: Sequence[str]
    captions: list[str] | None
    digest: str
    resolution: int | None
    chunks: Callable[[Sequence[int]], Iterator[list[ImageArray]]]
    chosen: dict[str, Any] | None = None
    sizes: str | None = None
    formats: str | None = None
    skipped: int = 0
    captioned: int = 0
    total: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def key(self) -> str:
        """Returns a sha256 that identifies the images and their order."""
        return hashlib.sha256(json.dumps([self.digest, list(self.ids)]).encode()).hexdigest()


def dataset_images(address: str, split: str, n: int | None, view: View, at_most: int = DEFAULT_N) -> Images:
    """Returns n images of a data set with the first caption of each. The choice depends only on n.

    Args:
        n: None: `at_most`, or all if there are fewer.

    Raises:
        InputError: there is no such data, or it has fewer than n images.
    """
    dataset = open_dataset(address, split, view)
    if n is not None and n > len(dataset):  # rendered data can be of any size
        dataset = open_dataset(address, split, View(view.resolution, view.fit, n, view.seed))
    count = min(at_most, len(dataset)) if n is None else n
    rows = choose(len(dataset), count, f"split {split} of {address}")
    return images_of_rows(dataset, rows, [dataset.captions[row][0] for row in rows])


def dataset_partners(address: str, split: str, captions: Sequence[str], view: View) -> Images:
    """Returns the images of a data set that have these captions, each image once, with that caption.

    Raises:
        InputError: there is no such data, or none of its images has one of the captions.
    """
    dataset = open_dataset(address, split, view)
    row_of: dict[str, int] = {}
    for row, several in enumerate(dataset.captions):
        for caption in several:
            row_of.setdefault(clean_caption(caption), row)
    if missing := [caption for caption in captions if caption not in row_of]:
        raise InputError(
            f"no image in split {split} of {address} has {len(missing):,} of {len(captions):,} captions, such as "
            f"{missing[0][:80]!r}; name another split, or compare with images by --against"
        )
    caption_of = {row_of[caption]: caption for caption in reversed(captions)}
    rows = sorted(caption_of)
    return images_of_rows(dataset, rows, [caption_of[row] for row in rows])


def images_of_rows(dataset: Dataset, rows: Sequence[int], captions: list[str]) -> Images:
    """Returns the images of some rows of a split, with a caption for each."""
    at_once = max(1, min(CHUNK, CHUNK_BYTES // (3 * dataset.resolution**2)))

    def decode(positions: Sequence[int]) -> Iterator[list[ImageArray]]:
        for start in range(0, len(positions), at_once):
            try:
                yield list(dataset.images([rows[k] for k in positions[start : start + at_once]]))
            except images.BrokenImage as error:
                raise InputError(f"{error}; repair or remove it and score again") from error

    return Images(
        dataset.address,
        dataset.split,
        [dataset.ids[row] for row in rows],
        captions,
        dataset.fingerprint(),
        dataset.resolution,
        lambda positions: ahead(decode(positions)),
        total=len(dataset),
    )


def prompt_images(path: Path, n: int | None, every: Sequence[str]) -> Images:
    """Returns n prompts of a file as a collection without images. The choice depends only on n.

    Args:
        every: all prompts of the file.

    Raises:
        InputError: there are fewer than n prompts.
    """
    prompts = [every[row] for row in choose(len(every), len(every) if n is None else n, f"prompts file {path}")]
    digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
    ids = [str(row) for row in range(len(prompts))]

    def refuse(positions: Sequence[int]) -> Iterator[list[ImageArray]]:
        raise RuntimeError(f"{path} holds prompts, not images; {len(positions)} images were requested")

    return Images(f"prompts:{path}", None, ids, prompts, digest, None, refuse)


def choose(size: int, count: int, where: str) -> list[int]:
    """Draws `count` of `size` rows at random and sorts them. The first rows would not be a fair sample of a sorted folder.

    Raises:
        InputError: `count` is more than `size` or less than 2.
    """
    if count > size:
        raise InputError(f"{where} has {counted(size, 'image')}, not {count:,}; set -n to at most {size:,}")
    if count < 2:
        raise InputError(f"{where} gave {counted(count, 'image')}; a score needs at least 2, and 1,000 to mean much")
    return sorted(seeding.permutation(0, 0, size)[:count].tolist())


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yields `items`; a thread prepares the next item while the caller works on the current one."""
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item
