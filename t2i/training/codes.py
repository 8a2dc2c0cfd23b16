"""Caches the codes of images on disk, so that each image is encoded once and no outdated code is ever read.

Layout: ROOT/codes/KEY/NNNNN.safetensors. KEY hashes everything that the codes depend on: the tokenizer's digest, the
fingerprint of the data (file contents, split, size and crop), and the views. Shard N holds 4096 images, from N * 4096 on:
`indices` [n, V, L, Q] for V views (plain and optionally mirrored) or `points` [n, V, L, C] before quantisation, and `rows` [n],
the row of the image that is shown, which is a different one if the image itself cannot be decoded. Shards are written
atomically, so a killed run continues with the next one, and read memory-mapped; a damaged shard is deleted and encoded again.
The folder may be deleted at any time.
"""

import hashlib
import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from t2i.cache import cache_dir, checksum, write_shard
from t2i.data import Dataset
from t2i.data.loader import Broken, RowReader
from t2i.distributed import Ranks
from t2i.errors import InputError
from t2i.families import ImageTokenizer
from t2i.families.tokenizers import load_tokenizer, save_tokenizer
from t2i.files import open_regular
from t2i.images import ImageArray
from t2i.names import counted
from t2i.training.conditioning import own_copy
from t2i.training.progress import report_progress
from t2i.training.run import Run

FORMAT = 1
SHARD_IMAGES = 4096
ENCODE_IMAGES = 256  # images in memory at a time


class Form(NamedTuple):
    """How an image is encoded and stored."""

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
    root: Path | None = None,
    *,
    points: bool = False,
    ranks: Ranks | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> CachedCodes:
    """Returns codes of all images of `dataset`: cached ones are read from disk, the others are encoded and stored.

    Args:
        mirrored: also encode the mirror image of each image.
        points: store latents before quantisation instead of codes.
        root: the folder of caches; None: `t2i.cache.cache_dir()`.
        ranks: the processes that call this together, each of which encodes its share; None: this process alone.
        on_progress: called with (images done, images to do) of this process.

    Raises:
        InputError: the cache cannot be written, or over 1 % of the images cannot be decoded.
    """
    form = points_of(tokenizer) if points else indices_of(tokenizer)
    parts = [FORMAT, tokenizer.digest(), dataset.fingerprint(), 1 + mirrored, *(["points"] if points else [])]
    folder = (root or cache_dir()) / "codes" / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    cache = _Cache(folder, form, mirrored, len(dataset))
    ranks = ranks or Ranks(1, True)
    missing = ranks.broadcast(ranks.each(lambda: [n for n in range(len(cache)) if cache.open(n) is None]))
    share = ranks.share(len(missing))
    mine, broken = missing[share.start : share.stop], []
    total = sum(cache.count(n) for n in mine)

    def report(before: int, count: int) -> None:
        if on_progress is not None:
            on_progress(before + count, total)

    def encode_mine() -> None:
        reader, done = RowReader(dataset), 0
        for n in mine:
            broken.extend(cache.encode(n, reader, partial(report, done)))
            done += cache.count(n)

    ranks.each(encode_mine)
    shards = [shard for shard in map(cache.open, range(len(cache))) if shard is not None]
    if len(shards) < len(cache):
        raise InputError(
            f"codes cannot be read back from the cache {folder}; check that disk, and on several machines let T2I_CACHE name a "
            "folder that all of them share"
        )
    misses = sum(cache.count(n) for n in missing)
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

    def encode(self, number: int, reader: RowReader, on_progress: Callable[[int], None]) -> list[Broken]:
        """Encodes and writes a shard; returns the images that could not be decoded.

        Raises:
            InputError: the shard cannot be written, the data has vanished, or too many images cannot be decoded.
        """
        parts, shown, broken = [], [], []
        for start in range(0, self.count(number), ENCODE_IMAGES):
            rows = number * SHARD_IMAGES + np.arange(
                start, min(start + ENCODE_IMAGES, self.count(number)), dtype=np.int64
            )
            images, rows, failures = reader.read(rows)
            broken += failures
            if images is None and failures[-1].get("vanished"):
                raise InputError(f"the data has vanished ({failures[-1]['reason']}); bring it back")
            if images is None:
                names = ", ".join(f"{entry['id']} ({entry['reason']})" for entry in broken[:3])
                raise InputError(f"over 1 % of the images cannot be decoded: {names}; `t2i data check` lists all")
            views = [self.form.encode(images)]
            if self.mirrored:
                views.append(self.form.encode(np.ascontiguousarray(images[:, :, ::-1])))
            parts.append(torch.stack(views, dim=1).to(self.form.dtype))
            shown.append(torch.from_numpy(rows))
            on_progress(start + len(rows))
        write_shard(self.path(number), {self.form.name: torch.cat(parts), "rows": torch.cat(shown)})
        return broken

    def open(self, number: int) -> dict[str, Tensor] | None:
        """Returns the tensors of a shard, memory-mapped; None if it is missing, or damaged and therefore deleted."""
        path, shape = self.path(number), (self.count(number), 1 + self.mirrored, *self.form.shape)
        if not path.exists():
            return None
        try:
            open_regular(path).close()
            with safe_open(path, framework="pt") as file:
                tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}
                expected = (file.metadata() or {}).get("crc32")
            if tensors.keys() != {self.form.name, "rows"} or tuple(tensors[self.form.name].shape) != shape:
                raise ValueError("its tensors are not those of this data")
            if expected != checksum(tensors):
                raise ValueError("its checksum is wrong")
            return tensors
        except (OSError, SafetensorError, ValueError) as error:
            warnings.warn(f"code cache: {path} is damaged ({error}); its images are encoded again", stacklevel=4)
            with suppress(OSError):
                path.unlink()
            return None


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
