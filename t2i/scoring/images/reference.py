"""Reads and writes statistics of real images, to score any number of models against: `t2i eval reference`.

The file is a safetensors file. NAME is a hash of an extractor's digest and resize; for each extractor the file has
`NAME/shift`, `NAME/total` [D] and `NAME/outer` [D, D] (float64, as in `GaussianStats`), and optionally `NAME/features`
float32 [N, D]. The header describes the images and each extractor. An .npz with `mu` and `sigma`, as pytorch-fid and ADM
write it, can be read too; it names neither the images nor the network.
"""

import hashlib
import json
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from t2i.distributed import Ranks
from t2i.errors import InputError
from t2i.extractors import Extractor
from t2i.files import open_regular
from t2i.metrics.frechet import FEW_IMAGES
from t2i.metrics.score import library_versions
from t2i.metrics.statistics import GaussianStats
from t2i.scoring.images.collection import Images, Tick, silent
from t2i.scoring.images.extraction import ALONE, Evidence, Pass, extract
from t2i.scoring.images.npz import npz_names
from t2i.tensors import read_header, read_tensors, write_tensors

SCHEMA = 1
HEADER = "t2i_reference"
MAX_DIM = 8192  # length of mu in an .npz
_MOMENTS = ("shift", "total", "outer")


@dataclass(frozen=True)
class Reference:
    """A file of statistics of real images. The other attributes are as in `Images`.

    Attributes:
        extractors: NAME -> extractor, extractor_digest, resize, dim, features; None: the file does not name its
            extractor, which is assumed to be the Inception.
    """

    path: Path
    name: str
    split: str | None
    digest: str
    n: int | None
    resolution: int | None
    sizes: str | None
    extractors: dict[str, dict[str, Any]] | None
    skipped: int = 0
    formats: str | None = None
    captions: None = field(default=None, init=False)

    def why_not(self, extractor: Extractor, features: bool) -> str:
        """Returns the reason why statistics, or features, of this extractor are missing; "" if they are there."""
        if self.extractors is None:
            if features:
                return f"{self.path} holds only statistics"
            known = extractor.name.startswith("inception") and extractor.dim == self._dim()
            return "" if known else f"{self.path} holds mu and sigma of {self._dim()} features of an Inception"
        entry = self.extractors.get(_name(extractor))
        if entry is not None:
            lacks_features = features and not entry["features"]
            return f"{self.path} holds only statistics; make it with --save-features" if lacks_features else ""
        for other in self.extractors.values():
            if other["extractor_digest"] == extractor.digest():
                return f"the images of {self.path} were resized by {other['resize']}, here by {extractor.resize}"
        names = ", ".join(
            f"{other['extractor']} (weights {other['extractor_digest'][:8]})" for other in self.extractors.values()
        )
        return f"{self.path} holds {names}, not {extractor.name} (weights {extractor.digest()[:8]})"

    def evidence(self, extractors: Sequence[Extractor], condensed: Collection[str]) -> Evidence:
        """Reads features of these extractors; only moments for those in `condensed`, or if the file has no features."""
        evidence = Evidence()
        for extractor in extractors:
            digest, name = extractor.digest(), _name(extractor)
            if self.why_not(extractor, features=False):
                continue
            if self.extractors is None:
                evidence.features[digest] = _of_npz(self.path)
            elif digest not in condensed and not self.why_not(extractor, features=True):
                evidence.features[digest] = read_tensors(self.path, [f"{name}/features"])[f"{name}/features"]
            else:
                tensors = read_tensors(self.path, [f"{name}/{part}" for part in _MOMENTS])
                evidence.features[digest] = _stats(*tensors.values(), count=int(self.n or 0))
        return evidence

    def _dim(self) -> int:
        return len(_of_npz(self.path).shift)


def _name(extractor: Extractor) -> str:
    return hashlib.sha256(json.dumps([extractor.digest(), extractor.resize]).encode()).hexdigest()[:16]


def _stats(shift: np.ndarray, total: np.ndarray, outer: np.ndarray, count: int) -> GaussianStats:
    stats = GaussianStats(shift)
    stats.count, stats.total, stats.outer = count, total, outer
    return stats


def make_reference(
    images: Images,
    extractors: Sequence[Extractor],
    out: Path,
    features: bool = False,
    tick: Tick = silent,
    ranks: Ranks = ALONE,
) -> None:
    """Writes the statistics of images with all extractors, in one pass over the images.

    Args:
        features: keeps the features too; all metrics but the Frechet distance need them.

    Raises:
        InputError: an image cannot be decoded, or the file cannot be written.
    """
    condensed = [] if features else [extractor.digest() for extractor in extractors]
    evidence = extract(images, "real images", extractors, Pass(tick, ranks), condensed)
    if not ranks.is_main:
        return
    tensors: dict[str, np.ndarray] = {}
    entries: dict[str, dict[str, Any]] = {}
    for extractor in extractors:
        name, digest = _name(extractor), extractor.digest()
        stats = evidence.features[digest]
        if not isinstance(stats, GaussianStats):
            tensors[f"{name}/features"] = stats
            stats = GaussianStats.of(stats)
        tensors |= {f"{name}/{part}": getattr(stats, part) for part in _MOMENTS}
        entries[name] = {
            "extractor": extractor.name,
            "extractor_digest": digest,
            "resize": extractor.resize,
            "dim": extractor.dim,
            "features": features,
        }
    write_tensors(out, tensors, {HEADER: json.dumps(_about(images) | {"extractors": entries})})


def _about(images: Images) -> dict[str, Any]:
    """Returns the header without the extractors."""
    return {
        "schema": SCHEMA,
        "data": images.name,
        "data_digest": images.digest,
        "split": images.split,
        "n": len(images),
        "resolution": images.resolution,
        "sizes": images.sizes,
        "formats": images.formats,
        "skipped": images.skipped,
        "libraries": library_versions(),
    }


def open_reference(path: Path) -> Reference | None:
    """Opens the statistics in a .safetensors file, or in an .npz with mu and sigma; returns None for an .npz of images.

    Raises:
        InputError: the file cannot be read or holds something else.
    """
    if path.suffix.lower() == ".npz":
        names = npz_names(path)
        if "arr_0" in names or not {"mu", "sigma"} <= set(names):
            return None
        with open_regular(path) as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        _of_npz(path)
        return Reference(path, f"npz:{path}", None, content, None, None, None, None)
    about = read_header(path, HEADER, "reference statistics of t2i eval reference")
    try:
        if about["schema"] != SCHEMA:
            raise InputError(f"{path}: statistics of schema {about['schema']}, expected {SCHEMA}; make them again")
        keys = ("data", "split", "data_digest", "n", "resolution", "sizes", "extractors", "skipped")
        return Reference(path, *(about[key] for key in keys), formats=about.get("formats"))
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path}: its header lacks {error}; make the statistics again with t2i eval reference"
        ) from error


def _of_npz(path: Path) -> GaussianStats:
    """Reads mu and sigma. The number of images is unknown and assumed to be sufficient."""
    try:
        with zipfile.ZipFile(path) as archive:
            largest = max(archive.getinfo(f"{name}.npy").file_size for name in ("mu", "sigma"))
        if largest > 8 * MAX_DIM**2 + 4096:
            raise ValueError(f"{largest:,} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            mu, sigma = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: its mu and sigma cannot be read ({error}); make the statistics again") from error
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise InputError(f"{path}: mu {list(mu.shape)} and sigma {list(sigma.shape)} are not a mean and a covariance")
    count = max(FEW_IMAGES, 2 * len(mu) + 1)
    return _stats(mu, np.zeros_like(mu), sigma * (count - 1), count)
