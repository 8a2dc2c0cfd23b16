"""Pictures that are scored, whoever made them: a data set's, a file's or a generator's, in a fixed order, chunk by chunk."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from t2i import images, seeding
from t2i.data import Dataset, View, open_dataset
from t2i.data.captions import clean_caption
from t2i.data.shapes.oracle import Reading
from t2i.errors import InputError
from t2i.images import ImageArray
from t2i.metrics import Features
from t2i.metrics.statistics import GaussianStats
from t2i.sampling.prompts import read_prompts

SHOWN = 24
CHUNK, CHUNK_BYTES = 256, 2**26  # pictures held at once: the first limit that is met
DEFAULT_N = 1000

Tick = Callable[[str, int, int], None]  # what is going on, done, of how many
Item = TypeVar("Item")


@dataclass(frozen=True)
class Pictures:
    """A collection in a fixed order."""

    name: str  # its address
    split: str | None  # of a data set
    ids: Sequence[str]
    captions: list[str] | None  # one a picture
    digest: str  # of ids, contents or what they follow from, and captions
    resolution: int | None  # pixels a side; None: they differ, or are not square
    chunks: Callable[[Sequence[int]], Iterator[list[ImageArray]]]  # those at these positions, in their order
    chosen: dict[str, Any] | None = None  # which encoder chose them among how many candidates: `t2i sample --best-of`
    sizes: str | None = None  # where they differ: of how many sizes they are
    skipped: int = 0  # broken ones among them, which are left out

    def __len__(self) -> int:
        return len(self.ids)

    def key(self) -> str:
        """sha256 of what decides which pictures these are, and their order."""
        return hashlib.sha256(json.dumps([self.digest, list(self.ids)]).encode()).hexdigest()


@dataclass
class Seen:
    """What was seen of N pictures, or was known of them before."""

    features: dict[str, Features] = field(default_factory=dict)  # extractor's digest -> [N, D]
    moments: dict[str, GaussianStats] = field(default_factory=dict)  # the same where no more is asked, or is known
    readings: list[Reading] = field(default_factory=list)  # one a picture, where the oracle was asked
    first: list[ImageArray] = field(default_factory=list)  # the first `SHOWN`


def dataset_pictures(address: str, split: str, n: int | None, view: View) -> Pictures:
    """N pictures of a data set with the first caption of each; which ones, depends on N alone.

    Args:
        n: None: 1,000, or all where there are fewer.

    Raises:
        InputError: no such data, or fewer than n.
    """
    dataset = open_dataset(address, split, view)
    if n is not None and n > len(dataset):  # drawn data has as many as one asks for
        dataset = open_dataset(address, split, View(view.resolution, view.fit, n, view.seed))
    count = min(DEFAULT_N, len(dataset)) if n is None else n
    rows = choose(len(dataset), count, f"split {split} of {address}")
    return _of_rows(dataset, rows, [dataset.captions[row][0] for row in rows])


def dataset_partners(address: str, split: str, captions: Sequence[str], view: View) -> Pictures:
    """The pictures of a data set that these captions are of, each once, with that caption.

    Raises:
        InputError: no such data, or a caption that none of its pictures has.
    """
    dataset = open_dataset(address, split, view)
    row_of: dict[str, int] = {}
    for row, its in enumerate(dataset.captions):
        for caption in its:
            row_of.setdefault(clean_caption(caption), row)
    if missing := [caption for caption in captions if caption not in row_of]:
        raise InputError(
            f"{len(missing):,} of {len(captions):,} captions are of no picture in split {split} of {address}, as "
            f"{missing[0][:80]!r}; name the split that they are of, or compare with pictures by --against"
        )
    own = {row_of[caption]: caption for caption in reversed(captions)}
    rows = sorted(own)
    return _of_rows(dataset, rows, [own[row] for row in rows])


def _of_rows(dataset: Dataset, rows: Sequence[int], captions: list[str]) -> Pictures:
    at_once = max(1, min(CHUNK, CHUNK_BYTES // (3 * dataset.resolution**2)))

    def decoded(wanted: Sequence[int]) -> Iterator[list[ImageArray]]:
        for start in range(0, len(wanted), at_once):
            try:
                yield list(dataset.images([rows[k] for k in wanted[start : start + at_once]]))
            except images.BrokenImage as error:
                raise InputError(f"{error}; repair or remove it and score again") from error

    return Pictures(
        dataset.address,
        dataset.split,
        [dataset.ids[row] for row in rows],
        captions,
        dataset.fingerprint(),
        dataset.resolution,
        lambda wanted: ahead(decoded(wanted)),
    )


def prompt_pictures(path: Path, n: int | None) -> Pictures:
    """Prompts of a file that nobody has pictures of; n of them, which ones depends on n alone.

    Raises:
        InputError: no such file, no prompt in it, or fewer than n.
    """
    every = read_prompts(path)
    prompts = [every[row] for row in choose(len(every), len(every) if n is None else n, f"prompts file {path}")]
    digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
    ids = [str(row) for row in range(len(prompts))]

    def none(wanted: Sequence[int]) -> Iterator[list[ImageArray]]:
        raise RuntimeError(f"{path} holds prompts, and {len(wanted)} pictures of them were asked for")

    return Pictures(f"prompts:{path}", None, ids, prompts, digest, None, none)


def choose(size: int, count: int, where: str) -> list[int]:
    """Rows in order. Not the first ones: folders are sorted by what they show.

    Raises:
        InputError: more than there are, or fewer than 2.
    """
    if count > size:
        raise InputError(f"{where} has {size:,} pictures, not {count:,}; ask for at most {size:,} with -n")
    if count < 2:
        raise InputError(f"{count} picture of {where} says nothing; score at least 2, better 1,000")
    return sorted(seeding.permutation(0, 0, size)[:count].tolist())


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """`items`; a thread makes the next one while the caller is busy with this one."""
    nothing: Any = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, nothing)
        while (item := coming.result()) is not nothing:
            coming = pool.submit(next, items, nothing)
            yield item
