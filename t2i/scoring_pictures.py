"""Pictures that are scored, whoever made them: a data set's, a folder's or a generator's, seen once, chunk by chunk."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from t2i import images, seeding
from t2i.data import View, open_dataset
from t2i.data.folder_index import index_folder, shown, some
from t2i.data.shapes_oracle import Reading, read
from t2i.data.verify import verify
from t2i.errors import InputError
from t2i.images import ImageArray
from t2i.metrics import Extractor, Features

SHOWN = 24
CHUNK, CHUNK_BYTES = 256, 2**28  # pictures held at once: the first limit that is met
LEAST_SIDE = 16  # of a picture that the oracle reads
DEFAULT_N = 1000

Tick = Callable[[str, int, int], None]  # what is going on, done, of how many


@dataclass(frozen=True)
class Pictures:
    """A collection in a fixed order."""

    name: str  # its address
    split: str | None  # of a data set
    ids: Sequence[str]
    captions: list[str] | None  # one a picture
    digest: str  # of ids, contents or what they follow from, and captions
    resolution: int | None  # pixels a side; None: they differ, or are not square
    chunks: Callable[[], Iterator[list[ImageArray]]]  # all of them, in order
    chosen: dict[str, Any] | None = None  # which encoder chose them among how many candidates: `t2i sample --best-of`

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Seen:
    """What was seen of N pictures."""

    features: dict[str, Features] = field(default_factory=dict)  # extractor's digest -> [N, D]
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
    rows = _choose(len(dataset), count, f"split {split} of {address}")

    def chunks() -> Iterator[list[ImageArray]]:
        for start in range(0, count, CHUNK):
            try:
                yield list(dataset.images(rows[start : start + CHUNK]))
            except images.BrokenImage as error:
                raise InputError(f"{error}; repair or remove it and score again") from error

    captions = [dataset.captions[row][0] for row in rows]
    ids = [dataset.ids[row] for row in rows]
    return Pictures(dataset.address, dataset.split, ids, captions, dataset.fingerprint(), dataset.resolution, chunks)


def folder_pictures(folder: str, n: int | None) -> Pictures:
    """Pictures of any size below a folder, with the first caption of each if all have one.

    Of a folder that `t2i sample` wrote, the pictures and prompts in its manifest.

    Raises:
        InputError: no such folder, no pictures, fewer than n, or one of them is broken.
    """
    index = index_folder(folder)
    if index.problems:
        raise InputError(index.problems[0])
    manifest = _sampled(index.root)
    prompts = {entry["file"]: entry["prompt"] for entry in manifest.get("pictures", [])}
    every = [name for name in index.files if name in prompts or not prompts]  # not its grid.png
    names = [every[k] for k in _choose(len(every), len(every) if n is None else n, shown(index.root))]
    found = verify(index.root, index.files, names)
    if broken := [name for name in names if found[name].reason]:
        first = f"{shown(broken[0])}: {found[broken[0]].reason}"
        more = f", and {some(broken[1:])}" if broken[1:] else ""
        raise InputError(f"cannot score {shown(index.root)}: broken {first}{more}; repair or remove what is broken")
    written = {name: captions[0] for name, captions in index.captions.items()} | prompts
    captions = [written[name] for name in names if name in written]
    digest = hashlib.sha256(json.dumps([[name, found[name].sha256] for name in names] + captions).encode())
    sizes = {size for name in names for size in (found[name].width, found[name].height)}
    paths = [index.root / index.files[name] for name in names]
    return Pictures(
        f"folder:{index.root}",
        None,
        names,
        captions if len(captions) == len(names) else None,
        digest.hexdigest(),
        sizes.pop() if len(sizes) == 1 else None,
        lambda: _decoded(paths),
        manifest.get("reranking"),
    )


def _sampled(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that `t2i sample` wrote; empty if it is another."""
    path = folder / "manifest.json"
    try:
        found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and {"pictures", "checkpoint", "seed"} <= found.keys() else {}


def _choose(size: int, count: int, where: str) -> list[int]:
    """Rows in order. Not the first ones: folders are sorted by what they show."""
    if count > size:
        raise InputError(f"{where} has {size:,} pictures, not {count:,}; ask for at most {size:,} with -n")
    if count < 2:
        raise InputError(f"{count} picture of {where} says nothing; score at least 2, better 1,000")
    return sorted(seeding.permutation(0, 0, size)[:count].tolist())


def _decoded(paths: Sequence[Path]) -> Iterator[list[ImageArray]]:
    chunk: list[ImageArray] = []
    for path in paths:
        try:
            chunk.append(np.asarray(images.decode(path)))
        except images.BrokenImage as error:  # since it was verified
            raise InputError(f"{shown(path)}: {error}; repair or remove it and score again") from error
        if len(chunk) == CHUNK or sum(picture.nbytes for picture in chunk) > CHUNK_BYTES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def look(pictures: Pictures, what: str, extractors: Sequence[Extractor], oracle: bool, tick: Tick) -> Seen:
    """Sees every picture once with every extractor, and with the oracle of the embedded data where it is asked.

    Raises:
        InputError: the oracle is asked about a picture that it cannot read.
    """
    seen = Seen({eye.digest(): np.empty((len(pictures), eye.dim), np.float32) for eye in extractors})
    done = 0
    tick(what, 0, len(pictures))
    for chunk in pictures.chunks():
        for members in _by_size(chunk):
            batch_BHWC = np.stack([chunk[k] for k in members])
            for eye in extractors:
                seen.features[eye.digest()][[done + k for k in members]] = eye.features(batch_BHWC)
        if oracle:
            seen.readings += _read(chunk)
        seen.first += chunk[: SHOWN - len(seen.first)]
        done += len(chunk)
        tick(what, done, len(pictures))
    if done != len(pictures):
        raise RuntimeError(f"{what}: {done} pictures came, {len(pictures)} were to be scored")
    return seen


def _by_size(chunk: Sequence[ImageArray]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for k, picture in enumerate(chunk):
        groups.setdefault(picture.shape, []).append(k)
    return list(groups.values())


def _read(chunk: Sequence[ImageArray]) -> list[Reading]:
    readings: dict[int, Reading] = {}
    for members in _by_size(chunk):
        height, width, _ = chunk[members[0]].shape
        if height != width or height < LEAST_SIDE:
            raise InputError(
                f"faithfulness is read off square pictures of {LEAST_SIDE} pixels or more, one has {width}x{height}; "
                "name the other metrics with --metrics"
            )
        readings.update(zip(members, read(np.stack([chunk[k] for k in members])), strict=True))
    return [readings[k] for k in range(len(chunk))]
