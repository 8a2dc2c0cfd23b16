"""Cached features of images, keyed by image contents: an encoder sees each image only once, in whatever folder it is.

Layout: ROOT/features/KEY/NAME.safetensors. KEY is a hash of all that determines the features: the encoder's digest and
resizing, the size and crop of the images. A shard holds `contents` [n, 32], the hashes of n images, and `features` [n, D],
float32 of unit length; NAME is a hash of `contents`. A changed image has another hash, so no stale features are read. Shards
are written completely or not at all; damaged ones are deleted and their images encoded again. The folder may be deleted at any
time.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from t2i.cache import cache_dir, read_shard, write_shard
from t2i.errors import InputError
from t2i.extractors import ImageTextExtractor
from t2i.images import TRANSFORM, ImageArray
from t2i.metrics import Features

FORMAT = 1
HASH_BYTES = 32
SHARD_IMAGES = 4096
WRITE_EVERY_S = 60.0  # the most work that a kill can lose

Batch = tuple[Sequence[bytes], ImageArray]  # content hashes and pixels of B images


class FeatureStore:
    """The cached features of one encoder."""

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
        """Encodes images and writes their features, shard by shard.

        Args:
            tick: called with the number of encoded images after each batch.

        Raises:
            InputError: the cache cannot be written, or the features of an image are zero or not finite.
        """
        new: dict[bytes, Features] = {}
        written = time.monotonic()
        try:
            for contents, images_BHWC in batches:
                new |= zip(contents, unit_features(self._encoder.features(images_BHWC)), strict=True)
                if len(new) >= SHARD_IMAGES or time.monotonic() - written > WRITE_EVERY_S:
                    self._write(new)
                    written, new = time.monotonic(), {}
                tick(len(contents))
        finally:  # also after an interrupt
            if new:
                self._write(new)

    def read(self, contents: Sequence[bytes], out_ND: Features) -> None:
        """Copies the features of images to the rows of `out_ND`; raises KeyError for images that were never encoded."""
        places = np.array([self._place[content] for content in contents], np.int64).reshape(-1, 2)
        for number in np.unique(places[:, 0]).tolist():
            rows = np.flatnonzero(places[:, 0] == number)
            out_ND[rows] = self._shards[number][places[rows, 1]]

    def _write(self, new: Mapping[bytes, Features]) -> None:
        contents = b"".join(new)
        hashes = torch.frombuffer(bytearray(contents), dtype=torch.uint8).reshape(-1, HASH_BYTES)
        path = self._folder / f"{_name(contents)}.safetensors"
        write_shard(path, {"contents": hashes, "features": torch.from_numpy(np.stack(list(new.values())))})
        self._add(path)

    def _add(self, path: Path) -> None:
        def check(tensors: dict[str, torch.Tensor]) -> bool:
            contents, features = tensors["contents"].numpy().tobytes(), tensors["features"]
            if path.stem != _name(contents) or features.shape != (len(contents) // HASH_BYTES, self._encoder.dim):
                raise ValueError("its tensors do not match its name")
            return True

        if (shard := read_shard(path, "feature", check)) is None:
            return
        contents, features = shard[0]["contents"].numpy().tobytes(), shard[0]["features"]
        starts = range(0, len(contents), HASH_BYTES)
        number = len(self._shards)
        self._place |= {contents[i : i + HASH_BYTES]: (number, row) for row, i in enumerate(starts)}
        self._shards.append(features.numpy())


def folder_of(encoder: ImageTextExtractor) -> Path:
    """Returns the cache folder of an encoder's features and graphs."""
    parts = [FORMAT, TRANSFORM, encoder.digest(), encoder.resize, encoder.side]
    return cache_dir() / "features" / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def unit_features(features_BD: Features) -> Features:
    """Scales rows to unit length.

    Raises:
        InputError: a row is zero or not finite.
    """
    norms = np.linalg.norm(features_BD.astype(np.float64), axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise InputError("the encoder returned features that are zero or not finite; check its weights")
    return (features_BD / norms).astype(np.float32)


def _name(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()[:32]
