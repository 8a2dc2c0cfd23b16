"""Keeps features on the disk: for the next scoring (`--save-features`), or because they do not fit into memory.

FILE.safetensors holds a matrix float32 [N, D] for each pair of images and extractor, which its header identifies. If a
scoring is killed, its features are kept in a file beside it, and the next scoring resumes from there.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import lock_descriptor

from t2i.cache import cache_dir
from t2i.errors import InputError, os_errors
from t2i.extractors import Extractor
from t2i.files import refuse_unwritable
from t2i.metrics import Features
from t2i.metrics.score import library_versions
from t2i.scoring.images.collection import Images
from t2i.tensors import read_header, read_tensors, write_tensors

MEMORY_BYTES = 2**28  # features beyond this size are kept in a file
HEADER = "t2i_features"


class FeatureRows:
    """A matrix that grows by rows, in memory or in a file."""

    def __init__(self, count: int, dim: int, file: BinaryIO | None, path: Path | None = None) -> None:
        self._shape, self._file, self._path = (count, dim), file, path
        self._memory = np.empty(self._shape if file is None else (0, dim), np.float32)
        self.done = 0 if file is None else min(count, file.seek(0, 2) // (4 * dim))

    def keep(self, rows: int) -> None:
        """Drops all rows but the first `rows`."""
        self.done = rows
        if self._file is not None:
            self._file.seek(rows * 4 * self._shape[1])
            self._file.truncate()

    def add(self, features: Features) -> None:
        if self._file is None:
            self._memory[self.done : self.done + len(features)] = features
        else:
            self._file.write(features.tobytes())
            self._file.flush()
        self.done += len(features)

    def whole(self) -> Features:
        """Returns [N, D], which must not be changed."""
        if self.done != self._shape[0]:
            raise RuntimeError(f"{self.done} rows of {self._shape[0]}")
        return self._memory if self._file is None else np.memmap(self._file, np.float32, "r", shape=self._shape)

    def empty(self) -> Features:
        """Returns [N, D] to write into."""
        return self._memory if self._file is None else np.memmap(self._file, np.float32, "w+", shape=self._shape)

    def close(self) -> None:
        """Closes and deletes the file; arrays mapped from it stay valid."""
        if self._file is not None:
            self._file.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def rows_in_memory(count: int, dim: int) -> FeatureRows:
    """Returns empty rows in memory, or beyond `MEMORY_BYTES` in a temporary file."""
    if 4 * count * dim <= MEMORY_BYTES:
        return FeatureRows(count, dim, None)
    with os_errors(f"cannot write features into {cache_dir()}", "free some space or set T2I_CACHE"):
        cache_dir().mkdir(parents=True, exist_ok=True)
        return FeatureRows(count, dim, tempfile.TemporaryFile(dir=cache_dir(), buffering=0))


class FeatureFile:
    """A file of features by images and extractor.

    Attributes:
        read: descriptions of the features that were read from the file.
    """

    def __init__(self, path: Path) -> None:
        """Raises InputError if the file holds something else, or cannot be written."""
        self.path, self.read = path, list[str]()
        self._new: dict[str, tuple[dict[str, Any], Features]] = {}
        refuse_unwritable(path, "a .safetensors file", "--save-features")
        self._index = read_header(path, HEADER, "features of --save-features") if path.exists() else {}

    def get(self, images: Images, what: str, extractor: Extractor) -> Features | None:
        """Returns [N, D], or None if the file does not have them; `what` describes the images."""
        key, _ = _entry(images, extractor)
        if key in self._new:
            return self._new[key][1]
        if key not in self._index:
            return None
        features = read_tensors(self.path, [key])[key]
        if features.shape != (len(images), extractor.dim) or features.dtype != np.float32:
            raise InputError(f"{self.path} is damaged: features of shape {list(features.shape)}; delete it")
        self.read.append(f"{what} by {extractor.name}")
        return features

    def rows(self, images: Images, extractor: Extractor, part: range) -> FeatureRows:
        """Opens a file for the features of `part` of the images, with the rows that a killed process left in it.

        Raises:
            InputError: another process writes the same features.
        """
        key, _ = _entry(images, extractor)
        path = self.path.with_name(f".{self.path.name}.{key}-{part.start}-{part.stop}.part")
        with os_errors(f"cannot write {path}", "name another file"):
            file = open(path, "a+b", buffering=0)
            locked = lock_descriptor(file.fileno(), blocking=False)
        if not locked:
            file.close()
            raise InputError(f"another process writes features of these images to {self.path}; name another file")
        return FeatureRows(len(part), extractor.dim, file, path)

    def put(self, images: Images, extractor: Extractor, features: Features) -> None:
        """Adds [N, D] and writes the file."""
        key, entry = _entry(images, extractor)
        self._new[key] = entry, features
        old = read_tensors(self.path, [name for name in self._index if name not in self._new]) if self._index else {}
        entries = {name: self._index[name] for name in old} | {name: entry for name, (entry, _) in self._new.items()}
        tensors = old | {name: np.asarray(features) for name, (_, features) in self._new.items()}
        write_tensors(self.path, tensors, {HEADER: json.dumps(entries)})
        self._index = entries


def _entry(images: Images, extractor: Extractor) -> tuple[str, dict[str, Any]]:
    """Returns the name of a matrix and its entry in the header."""
    entry = {
        "pictures": images.key(),
        "of": images.name,
        "n": len(images),
        "extractor": extractor.name,
        "extractor_digest": extractor.digest(),
        "resize": extractor.resize,
        "libraries": library_versions(),
    }
    hashed = {name: value for name, value in entry.items() if name != "of"}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:32], entry
