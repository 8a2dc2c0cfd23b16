"""Caches the codes of images on disk, so that each image is encoded once and no outdated code is ever read.

Layout: CACHE/codes/KEY/NNNNN.safetensors. KEY hashes everything that the codes depend on: the tokenizer's digest, the
fingerprint of the data (file contents, split, size and crop), and the views. Shard N holds 4096 images, from N * 4096 on:
`indices` [n, V, L, Q] for V views (plain and optionally mirrored) or `points` [n, V, L, C] before quantisation, and `rows` [n],
the row of the image that is shown, which is a different one if the image itself cannot be decoded. Shards are written
atomically, so a killed run continues with the next one, and read memory-mapped; a damaged shard is deleted and encoded again.
The folder may be deleted at any time.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from t2i.cache import cache_dir, read_shard, write_shard
from t2i.data import Dataset
from t2i.data.loader import Broken, RowReader
from t2i.distributed import Ranks
from t2i.errors import InputError
from t2i.families import ImageTokenizer
from t2i.families.tokenizers import load_tokenizer, save_tokenizer
from t2i.images import ImageArray
from t2i.names import counted
from t2i.training.conditioning import own_copy
from t2i.training.progress import report_progress
from t2i.training.run import Run

FORMAT = 1
SHARD_IMAGES = 4096
ENCODE_IMAGES = 256  # images in memory at a time


class Form(NamedTuple):
    """The encoding of an image and its form in the cache."""

    name: str
    shape: tuple[int, int]  # of one view of one image
    dtype: torch.dtype  # in the file
    encode: Callable[[ImageArray], Tensor]


def indices_of(tokenizer: ImageTokenizer) -> Form:
    """Stores codes, [L, Q] per view."""
    dtype = torch.int16 if tokenizer.codebook_size <= 2**15 else torch.int32
    return Form("indices", (tokenizer.grid**2, tokenizer.codebooks), dtype, tokenizer.encode)


def points_of(tokenizer: ImageTokenizer) -> Form:
    """Stores latents before quantisation, [L, C] per view, in half precision."""
    shape = tokenizer.grid**2, tokenizer.codebook().shape[1]
    return Form("points", shape, torch.float16, tokenizer.points)


@dataclass(frozen=True)
class CachedCodes:
    """Codes (or points) of the images of a data set."""

    hits: int  # number of images whose codes were on disk
    misses: int  # number of images encoded now, on all processes
    broken: list[Broken]  # images that this process could not decode
    _values: list[Tensor]  # one tensor per shard
    _rows: Tensor

    def __len__(self) -> int:
        return len(self._rows)

    def shown(self, rows: np.ndarray) -> np.ndarray:
        """Returns the row of the image that each code shows: the same row, unless that image cannot be decoded."""
        return self._rows[torch.from_numpy(rows)].numpy()

    def at(self, rows: np.ndarray, views: np.ndarray) -> Tensor:
        """Returns indices_BLQ (int64) or points_BLC (float32) of rows, each in its view (0 plain, 1 mirrored)."""
        places = zip(rows.tolist(), views.tolist(), strict=True)
        values = torch.stack([self._values[r // SHARD_IMAGES][r % SHARD_IMAGES, v] for r, v in places])
        return values.float() if values.is_floating_point() else values.long()


def encode_codes(
    tokenizer: ImageTokenizer,
    dataset: Dataset,
    mirrored: bool = False,
    *,
    points: bool = False,
    ranks: Ranks | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> CachedCodes:
    """Returns codes of all images of `dataset`: cached ones are read from disk, the others are encoded and stored.

    Args:
        mirrored: also encode the mirror image of each image.
        points: store latents before quantisation instead of codes.
        ranks: the processes that call this together, each of which encodes its share; None: this process alone.
        on_progress: called with (images done, images to do) of this process.

    Raises:
        InputError: the cache cannot be written, or over 1 % of the images cannot be decoded.
    """
    form = points_of(tokenizer) if points else indices_of(tokenizer)
    parts = [FORMAT, tokenizer.digest(), dataset.fingerprint(), 1 + mirrored, *(["points"] if points else [])]
    folder = cache_dir() / "codes" / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    cache = _Cache(folder, form, mirrored, len(dataset))
    ranks = ranks or Ranks(1, True)
    cached = ranks.each(lambda: {n: shard for n in range(len(cache)) if (shard := cache.open(n)) is not None})
    missing = ranks.broadcast([n for n in range(len(cache)) if n not in cached])
    share = ranks.share(len(missing))
    broken = ranks.each(lambda: cache.fill(missing[share.start : share.stop], dataset, on_progress))
    cached |= {n: shard for n in missing if (shard := cache.open(n)) is not None}
    if len(cached) < len(cache):
        raise InputError(
            f"codes cannot be read back from the cache {folder}; check that disk, and on several machines let T2I_CACHE name a "
            "folder that all of them share"
        )
    misses = sum(map(cache.count, missing))
    shards = [cached[n] for n in range(len(cache))]
    rows = torch.cat([torch.zeros(0, dtype=torch.int64), *(shard["rows"] for shard in shards)])
    return CachedCodes(len(dataset) - misses, misses, broken, [shard[form.name] for shard in shards], rows)


class _Cache(NamedTuple):
    """The shards with the codes of one data set."""

    folder: Path
    form: Form
    mirrored: bool
    images: int

    def __len__(self) -> int:
        return -(-self.images // SHARD_IMAGES)

    def count(self, number: int) -> int:
        """Returns the number of images in a shard."""
        return min(SHARD_IMAGES, self.images - number * SHARD_IMAGES)

    def path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.safetensors"

    def fill(
        self, numbers: Sequence[int], dataset: Dataset, on_progress: Callable[[int, int], None] | None
    ) -> list[Broken]:
        """Encodes and writes shards; returns the images that could not be decoded.

        Raises:
            InputError: a shard cannot be written, the data has vanished, or too many images cannot be decoded.
        """
        reader, done, total = RowReader(dataset), 0, sum(map(self.count, numbers))
        broken: list[Broken] = []
        for number in numbers:
            parts, shown = [], []
            first, end = number * SHARD_IMAGES, number * SHARD_IMAGES + self.count(number)
            for start in range(first, end, ENCODE_IMAGES):
                images, rows, failures = reader.read(np.arange(start, min(start + ENCODE_IMAGES, end), dtype=np.int64))
                broken += failures
                if images is None:
                    _refuse(failures, broken)
                parts.append(self._encode(images))
                shown.append(torch.from_numpy(rows))
                if on_progress is not None:
                    on_progress(done := done + len(rows), total)
            write_shard(self.path(number), {self.form.name: torch.cat(parts), "rows": torch.cat(shown)})
        return broken

    def _encode(self, images: ImageArray) -> Tensor:
        views = [self.form.encode(images)]
        if self.mirrored:
            views.append(self.form.encode(np.ascontiguousarray(images[:, :, ::-1])))
        return torch.stack(views, dim=1).to(self.form.dtype)

    def open(self, number: int) -> dict[str, Tensor] | None:
        """Returns the tensors of a shard, memory-mapped; None if it is missing, or damaged and therefore deleted."""
        shape = (self.count(number), 1 + self.mirrored, *self.form.shape)

        def check(tensors: dict[str, Tensor]) -> bool:
            if tensors.keys() != {self.form.name, "rows"} or tuple(tensors[self.form.name].shape) != shape:
                raise ValueError("its tensors are not those of this data")
            return True

        path = self.path(number)
        shard = read_shard(path, "code", check) if path.exists() else None
        return None if shard is None else shard[0]


def _refuse(failures: Sequence[Broken], broken: Sequence[Broken]) -> NoReturn:
    """Raises the InputError for images that cannot be read; `failures` are the last of `broken`."""
    if failures[-1].get("vanished"):
        raise InputError(f"the data has vanished ({failures[-1]['reason']}); bring it back")
    names = ", ".join(f"{entry['id']} ({entry['reason']})" for entry in broken[:3])
    raise InputError(f"over 1 % of the images cannot be decoded: {names}; `t2i data check` lists all")


def prepare_tokenizer(path: str, resolution: int, run: Run) -> ImageTokenizer:
    """Returns the run's copy of the tokenizer at `path`, which is saved when the run starts.

    Raises:
        InputError: there is no tokenizer at `path`, or it encodes images of another size than `resolution`.
    """
    tokenizer = own_copy(run, "tokenizer", path, lambda: load_tokenizer(path), save_tokenizer, load_tokenizer)
    if tokenizer.resolution != resolution:
        raise InputError(
            f"data.resolution is {resolution}, but the tokenizer {path} encodes images of "
            f"{tokenizer.resolution} px; set data.resolution={tokenizer.resolution}, or train another tokenizer"
        )
    tokenizer.to(run.device)
    return tokenizer


def prepare_codes(
    tokenizer: ImageTokenizer, dataset: Dataset, mirrored: bool, run: Run, points: bool = False
) -> CachedCodes:
    """Returns the codes of all images; those that are not cached are encoded by all processes together."""
    progress = report_progress(run.say, f"encoding images ({dataset.split})")
    codes = encode_codes(tokenizer, dataset, mirrored, points=points, ranks=run.ranks, on_progress=progress)
    for entry in codes.broken:
        run.quarantine(entry)
    run.say(f"codes of {dataset.split}: {counted(codes.hits, 'image')} from the cache, {codes.misses:,} encoded now")
    return codes
