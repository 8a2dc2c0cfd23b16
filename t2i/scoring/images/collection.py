"""Images to score, from a data set, a file or a generator: in a fixed order, chunk by chunk."""

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
CHUNK, CHUNK_BYTES = 256, 2**26  # images held at once: the first limit that is met
DEFAULT_N = 1000
ALL = 2**62  # `at_most`, where all images are asked

Tick = Callable[[str, int, int], None]  # what is going on, done, of how many
Item = TypeVar("Item")


def silent(what: str, done: int, total: int) -> None:
    """Shows no progress."""


@dataclass(frozen=True)
class Images:
    """A collection in a fixed order.

    Attributes:
        name: its address.
        split: of a data set.
        captions: one an image; None: not all have one.
        digest: of ids, contents or what they follow from, and captions.
        resolution: pixels a side; None: they differ, or are not square.
        chunks: the images at these positions, in their order.
        chosen: the encoder that chose them and among how many candidates: `t2i sample --best-of`.
        sizes: in words, where they differ.
        formats: of their files, e.g. `JPEG`; None: not known.
        skipped: broken ones, which are left out.
        captioned: how many have a caption, where not all have one.
        total: how many images there were to choose from.
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
        """sha256 of what decides which images these are, and their order."""
        return hashlib.sha256(json.dumps([self.digest, list(self.ids)]).encode()).hexdigest()


def dataset_images(address: str, split: str, n: int | None, view: View, at_most: int = DEFAULT_N) -> Images:
    """N images of a data set with the first caption of each; N alone decides which ones.

    Args:
        n: None: `at_most`, or all where there are fewer.

    Raises:
        InputError: no such data, or fewer than n.
    """
    dataset = open_dataset(address, split, view)
    if n is not None and n > len(dataset):  # rendered data has as many as one asks for
        dataset = open_dataset(address, split, View(view.resolution, view.fit, n, view.seed))
    count = min(at_most, len(dataset)) if n is None else n
    rows = choose(len(dataset), count, f"split {split} of {address}")
    return _of_rows(dataset, rows, [dataset.captions[row][0] for row in rows])


def dataset_partners(address: str, split: str, captions: Sequence[str], view: View) -> Images:
    """The images of a data set that these captions are of, each once, with that caption.

    Raises:
        InputError: no such data, or a caption that none of its images has.
    """
    dataset = open_dataset(address, split, view)
    row_of: dict[str, int] = {}
    for row, its in enumerate(dataset.captions):
        for caption in its:
            row_of.setdefault(clean_caption(caption), row)
    if missing := [caption for caption in captions if caption not in row_of]:
        raise InputError(
            f"{len(missing):,} of {len(captions):,} captions are of no image in split {split} of {address}, as "
            f"{missing[0][:80]!r}; name the split that they are of, or compare with images by --against"
        )
    own = {row_of[caption]: caption for caption in reversed(captions)}
    rows = sorted(own)
    return _of_rows(dataset, rows, [own[row] for row in rows])


def _of_rows(dataset: Dataset, rows: Sequence[int], captions: list[str]) -> Images:
    at_once = max(1, min(CHUNK, CHUNK_BYTES // (3 * dataset.resolution**2)))

    def decoded(wanted: Sequence[int]) -> Iterator[list[ImageArray]]:
        for start in range(0, len(wanted), at_once):
            try:
                yield list(dataset.images([rows[k] for k in wanted[start : start + at_once]]))
            except images.BrokenImage as error:
                raise InputError(f"{error}; repair or remove it and score again") from error

    return Images(
        dataset.address,
        dataset.split,
        [dataset.ids[row] for row in rows],
        captions,
        dataset.fingerprint(),
        dataset.resolution,
        lambda wanted: ahead(decoded(wanted)),
        total=len(dataset),
    )


def prompt_images(path: Path, n: int | None, every: Sequence[str]) -> Images:
    """Prompts of a file, of which there are no images; n of them, chosen by n alone.

    Args:
        every: all prompts that it holds.

    Raises:
        InputError: there are fewer than n.
    """
    prompts = [every[row] for row in choose(len(every), len(every) if n is None else n, f"prompts file {path}")]
    digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
    ids = [str(row) for row in range(len(prompts))]

    def none(wanted: Sequence[int]) -> Iterator[list[ImageArray]]:
        raise RuntimeError(f"{path} holds prompts, and {len(wanted)} images of them were asked for")

    return Images(f"prompts:{path}", None, ids, prompts, digest, None, none)


def choose(size: int, count: int, where: str) -> list[int]:
    """A random choice of rows, in order. The first ones would not do: folders are sorted by what they show.

    Raises:
        InputError: more than there are, or fewer than 2.
    """
    if count > size:
        raise InputError(f"{where} has {counted(size, 'image')}, not {count:,}; ask for at most {size:,} with -n")
    if count < 2:
        raise InputError(
            f"{where} gave {count} image{'s' if count != 1 else ''}; a score needs at least 2, and 1,000 to mean much"
        )
    return sorted(seeding.permutation(0, 0, size)[:count].tolist())


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yields `items`; a thread makes the next one while the caller works on this one."""
    nothing: Any = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, nothing)
        while (item := coming.result()) is not nothing:
            coming = pool.submit(next, items, nothing)
            yield item
