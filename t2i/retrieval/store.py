"""Features of images on disk, by the contents of the image: each is seen once by each encoder, in whatever folder it is.

Layout: ROOT/features/KEY/NAME.safetensors. KEY hashes what decides the features: the encoder's digest, its resizing, the size
and cut of the images. A shard holds `contents` [n, 32], the hashes of n images, and `features` [n, D], float32 of unit length;
NAME hashes its contents. An image whose contents change has another hash, so nothing stale is ever read. Shards are written
whole or not at all; a damaged one is deleted and made again. The folder may be deleted at any time.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from t2i.cache import cache_dir, checksum, write_shard
from t2i.errors import InputError
from t2i.extractors import ImageTextExtractor
from t2i.files import open_regular
from t2i.images import TRANSFORM, ImageArray
from t2i.metrics import Features

FORMAT = 1
HASH_BYTES = 32
SHARD_IMAGES = 4096
KEEP_EVERY_S = 60.0  # what a kill may cost

Batch = tuple[Sequence[bytes], ImageArray]  # the contents of B images, and their pixels


class FeatureStore:
    """Features by one encoder."""

    def __init__(self, encoder: ImageTextExtractor) -> None:
        self._encoder = encoder
        self._folder = folder_of(encoder)
        self._shards: list[Features] = []
        self._place: dict[bytes, tuple[int, int]] = {}  # shard and row
        for path in sorted(self._folder.glob("*.safetensors")):
            self._add(path)

    def __contains__(self, content: bytes) -> bool:
        return content in self._place

    def fill(self, batches: Iterator[Batch], tick: Callable[[int], None] = lambda count: None) -> None:
        """Encodes images and writes them, a shard at a time.

        Args:
            tick: told how many images were encoded, batch by batch.

        Raises:
            InputError: the cache cannot be written, or the features of an image have no direction.
        """
        new: dict[bytes, Features] = {}
        kept = time.monotonic()
        try:
            for contents, images_BHWC in batches:
                new |= zip(contents, unit_features(self._encoder.features(images_BHWC)), strict=True)
                if len(new) >= SHARD_IMAGES or time.monotonic() - kept > KEEP_EVERY_S:
                    self._write(new)
                    kept, new = time.monotonic(), {}
                tick(len(contents))
        finally:  # an interrupt keeps what was done
            if new:
                self._write(new)

    def read(self, contents: Sequence[bytes], out_ND: Features) -> None:
        """Writes the features of images into the rows of `out_ND`; raises KeyError where one was never encoded."""
        where = np.array([self._place[content] for content in contents], np.int64).reshape(-1, 2)
        for number in np.unique(where[:, 0]).tolist():
            own = np.flatnonzero(where[:, 0] == number)
            out_ND[own] = self._shards[number][where[own, 1]]

    def _write(self, new: Mapping[bytes, Features]) -> None:
        contents = b"".join(new)
        hashes = torch.frombuffer(bytearray(contents), dtype=torch.uint8).reshape(-1, HASH_BYTES)
        path = self._folder / f"{_name(contents)}.safetensors"
        write_shard(path, {"contents": hashes, "features": torch.from_numpy(np.stack(list(new.values())))})
        self._add(path)

    def _add(self, path: Path) -> None:
        try:
            open_regular(path).close()
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                expected = (file.metadata() or {}).get("crc32")
            contents, features = tensors["contents"].numpy().tobytes(), tensors["features"]
            if path.stem != _name(contents) or features.shape != (len(contents) // HASH_BYTES, self._encoder.dim):
                raise ValueError("its tensors are not those of its name")
            if expected != checksum(tensors):
                raise ValueError("its checksum is wrong")
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            warnings.warn(f"feature cache: {path} is damaged ({error}); its images are encoded again", stacklevel=4)
            with suppress(OSError):
                path.unlink()
            return
        starts = range(0, len(contents), HASH_BYTES)
        number = len(self._shards)
        self._place |= {contents[i : i + HASH_BYTES]: (number, row) for row, i in enumerate(starts)}
        self._shards.append(features.numpy())


def folder_of(encoder: ImageTextExtractor) -> Path:
    """The folder of all that is kept by an encoder."""
    parts = [FORMAT, TRANSFORM, encoder.digest(), encoder.resize, encoder.side]
    return cache_dir() / "features" / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def unit_features(features_BD: Features) -> Features:
    """Rows scaled to unit length.

    Raises:
        InputError: a row is zero or not finite.
    """
    norms = np.linalg.norm(features_BD.astype(np.float64), axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise InputError("the encoder gives features without a direction (zero, or not finite); check its weights")
    return (features_BD / norms).astype(np.float32)


def _name(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()[:32]
