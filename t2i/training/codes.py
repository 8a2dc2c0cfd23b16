"""Codes of images on disk: each image goes through the tokenizer once, and no stale code is ever read back.

Layout: ROOT/codes/KEY/NNNNN.safetensors. KEY hashes what decides the codes: the tokenizer's digest, the fingerprint of the
data (file contents, split, size and crop), the views. Shard N holds the images N * 4096 and following: `indices`
[n, V, L, Q] for V views (plain and, where asked for, mirrored), or `points` [n, V, L, C] before quantisation, and `rows` [n],
the image that each shows, which is another one where the image itself cannot be decoded. Shards are written whole or not at
all, so a killed run goes on with the next, and are opened memory-mapped; one that is damaged is deleted and made again. The
folder may be deleted at any time.
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
from t2i.data.loader import BatchReader, Broken
from t2i.distributed import Ranks
from t2i.errors import InputError
from t2i.families import ImageTokenizer, load_tokenizer, save_tokenizer
from t2i.files import open_regular
from t2i.images import ImageArray
from t2i.names import counted
from t2i.training.conditioning import own_copy
from t2i.training.progress import now_and_then
from t2i.training.run import Run

FORMAT = 1
SHARD_IMAGES = 4096
ENCODE_IMAGES = 256  # in memory at one time


class Form(NamedTuple):
    """What of an image is kept."""

    name: str
    shape: tuple[int, int]  # of one image in one view
    dtype: torch.dtype  # in the file
    encode: Callable[[ImageArray], Tensor]


def indices_of(tokenizer: ImageTokenizer) -> Form:
    """The codes themselves, [L, Q]."""
    dtype = torch.int16 if tokenizer.codebook_size <= 2**15 else torch.int32
    return Form("indices", (tokenizer.grid**2, tokenizer.codebooks), dtype, tokenizer.encode)


def points_of(tokenizer: ImageTokenizer) -> Form:
    """Latents before quantisation, [L, C], in half precision."""
    shape = tokenizer.grid**2, tokenizer.codebook().shape[1]
    return Form("points", shape, torch.float16, tokenizer.points)


@dataclass(frozen=True)
class CachedCodes:
    """Codes of a data set's images, or their points."""

    hits: int  # images whose codes were on disk
    misses: int  # images that went through the tokenizer now, on all processes
    broken: list[Broken]  # images that could not be decoded, found on this process
    _values: list[Tensor]  # a shard each
    _rows: Tensor

    def __len__(self) -> int:
        return len(self._rows)

    def shown(self, rows: np.ndarray) -> np.ndarray:
        """Returns the images whose codes `rows` hold: the same, but where one cannot be decoded."""
        return self._rows[torch.from_numpy(rows)].numpy()

    def at(self, rows: np.ndarray, views: np.ndarray) -> Tensor:
        """indices_BLQ, int64, or points_BLC, float32, of these rows, each in its view (0 plain, 1 mirrored)."""
        where = zip(rows.tolist(), views.tolist(), strict=True)
        found = torch.stack([self._values[r // SHARD_IMAGES][r % SHARD_IMAGES, v] for r, v in where])
        return found.float() if found.is_floating_point() else found.long()


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
    """Returns codes of all images of `dataset`, from disk where they are there, else made now and stored.

    Args:
        mirrored: also keep the codes of each image's mirror image.
        points: keep latents before quantisation instead.
        root: the folder of caches; None: `t2i.cache.cache_dir()`.
        ranks: the processes that call this together, each of which makes its share of the missing shards; None: this one.
        on_progress: called with (images done, images to do) of this process.

    Raises:
        InputError: the cache cannot be written, or over 1 % of the images cannot be decoded.
    """
    views = 2 if mirrored else 1
    form = points_of(tokenizer) if points else indices_of(tokenizer)
    parts = [FORMAT, tokenizer.digest(), dataset.fingerprint(), views, *(["points"] if points else [])]
    folder = (root or cache_dir()) / "codes" / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    starts = range(0, len(dataset), SHARD_IMAGES)
    counts = [min(SHARD_IMAGES, len(dataset) - start) for start in starts]
    paths = [folder / f"{number:05d}.safetensors" for number in range(len(counts))]
    ranks = ranks or Ranks(1, True)
    looked = ranks.each(lambda: [n for n, path in enumerate(paths) if _open(path, counts[n], views, form) is None])
    missing = ranks.broadcast(looked)
    share = ranks.share(len(missing))
    own, broken = missing[share.start : share.stop], []
    total = sum(counts[n] for n in own)

    def tell(before: int, count: int) -> None:
        if on_progress is not None:
            on_progress(before + count, total)

    def encode_own() -> None:
        reader, done = BatchReader(dataset), 0
        for n in own:
            tensors, found = _encode(form, reader, starts[n], counts[n], mirrored, partial(tell, done))
            write_shard(paths[n], tensors)
            broken.extend(found)
            done += counts[n]

    ranks.each(encode_own)
    shards = [_open(path, counts[n], views, form) for n, path in enumerate(paths)]
    if any(shard is None for shard in shards):
        raise InputError(f"codes cannot be read back from the cache {folder}; check that disk")
    misses = sum(counts[n] for n in missing)
    rows = torch.cat([torch.zeros(0, dtype=torch.int64), *(shard["rows"] for shard in shards if shard)])
    return CachedCodes(len(dataset) - misses, misses, broken, [shard[form.name] for shard in shards if shard], rows)


def _encode(
    form: Form,
    reader: BatchReader,
    start: int,
    count: int,
    mirrored: bool,
    on_progress: Callable[[int], None],
) -> tuple[dict[str, Tensor], list[Broken]]:
    parts, rows, broken = [], [], []
    for first in range(start, start + count, ENCODE_IMAGES):
        wanted = np.arange(first, min(first + ENCODE_IMAGES, start + count), dtype=np.int64)
        images, shown, found = reader.read(wanted)
        broken += found
        if images is None and found[-1].get("vanished"):
            raise InputError(f"the data has vanished ({found[-1]['reason']}); bring it back")
        if images is None:
            names = ", ".join(f"{entry['id']} ({entry['reason']})" for entry in broken[:3])
            raise InputError(f"over 1 % of the images cannot be decoded: {names}; `t2i data check` lists all")
        views = [form.encode(images)]
        if mirrored:
            views.append(form.encode(np.ascontiguousarray(images[:, :, ::-1])))
        parts.append(torch.stack(views, dim=1).to(form.dtype))
        rows.append(torch.from_numpy(shown))
        on_progress(first + len(wanted) - start)
    return {form.name: torch.cat(parts), "rows": torch.cat(rows)}, broken


def _open(path: Path, count: int, views: int, form: Form) -> dict[str, Tensor] | None:
    """The tensors of a shard, memory-mapped; None where there is none, or a damaged one, which is deleted."""
    if not path.exists():
        return None
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}
            expected = (file.metadata() or {}).get("crc32")
        if tensors.keys() != {form.name, "rows"} or tuple(tensors[form.name].shape) != (count, views, *form.shape):
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
    """Returns the run's own copy of the tokenizer at `path`, made when the run starts.

    Raises:
        InputError: it is none, or codes images of another size than `resolution`.
    """
    tokenizer = own_copy(run, "tokenizer", path, lambda: load_tokenizer(path), save_tokenizer, load_tokenizer)
    if tokenizer.resolution != resolution:
        raise InputError(
            f"data.resolution is {resolution}, but the tokenizer {path} codes images of "
            f"{tokenizer.resolution} px; set data.resolution={tokenizer.resolution}, or train another tokenizer"
        )
    tokenizer.to(run.device)
    return tokenizer


def prepare_codes(
    tokenizer: ImageTokenizer, dataset: Dataset, mirrored: bool, run: Run, points: bool = False
) -> CachedCodes:
    """Returns the codes of all images, from the cache or encoded now by all processes together."""
    progress = now_and_then(run.say, f"encoding images ({dataset.split})")
    codes = encode_codes(tokenizer, dataset, mirrored, points=points, ranks=run.ranks, on_progress=progress)
    for entry in codes.broken:
        run.quarantine(entry)
    run.say(f"codes of {dataset.split}: {counted(codes.hits, 'image')} from the cache, {codes.misses:,} encoded now")
    return codes
