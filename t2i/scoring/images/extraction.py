"""Extracts features and readings of images in one pass, with one process or several.

If moments suffice, memory does not grow with N. Otherwise features are kept in memory up to `MEMORY_BYTES` and in a file
beyond. The features of an image do not depend on its batch or process, so several processes give the same values as one.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from t2i.data.shapes.oracle import Reading, read
from t2i.distributed import Ranks
from t2i.errors import InputError
from t2i.extractors import Extractor
from t2i.images import ImageArray
from t2i.metrics import Features
from t2i.metrics.statistics import GaussianStats
from t2i.names import counted
from t2i.scoring.images.collection import SHOWN, Images, Tick, silent
from t2i.scoring.images.store import FeatureFile, FeatureRows, rows_in_memory

LEAST_SIDE = 16  # minimum size of an image for the oracle, in pixels per side
ALONE = Ranks(1, True)


@dataclass
class Evidence:
    """Features and readings of N images, without the images.

    Attributes:
        captions, ids: as in `Images`.
        features: extractor's digest -> [N, D], or only the moments.
        text: extractor's digest -> [N, D] of the captions.
        readings: readings of the oracle, one for each image, or none.
        reconstructed: readings of the same images after a run's tokenizer.
        first: the first `SHOWN` images, or none.
    """

    captions: list[str] | None = None
    ids: Sequence[str] = ()
    features: dict[str, Features | GaussianStats] = field(default_factory=dict)
    text: dict[str, Features] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    reconstructed: list[Reading] = field(default_factory=list)
    first: list[ImageArray] = field(default_factory=list)


class Pass(NamedTuple):
    """Settings of a pass over images."""

    tick: Tick = silent
    ranks: Ranks = ALONE
    store: FeatureFile | None = None  # supplies the features that it has, and receives the others


def extract(
    images: Images,
    what: str,
    extractors: Sequence[Extractor],
    how: Pass,
    condensed: Collection[str] = (),
    oracle: bool = False,
    show: bool = False,
) -> Evidence:
    """Reads every image once, with every extractor and optionally the oracle; the main process returns all evidence.

    Args:
        what: name of the images in progress and messages.
        condensed: digests of extractors whose moments suffice.
        show: keeps the first images.

    Raises:
        InputError: the oracle cannot read an image, or there are more processes than images.
    """
    ranks, evidence = how.ranks, Evidence(images.captions, images.ids)
    if len(images) < ranks.num_processes:
        raise InputError(f"{counted(len(images), 'image')} for {ranks.num_processes} processes; start fewer processes")
    extractors = [extractor for extractor in extractors if not _stored(evidence, images, what, extractor, how)]
    rows = ranks.share(len(images))
    sinks = [(one, _sink(one, one.digest() in condensed, images, rows, how)) for one in extractors]
    start = 0 if oracle else min((sink.done for _, sink in sinks), default=len(rows))
    for _, sink in sinks:
        sink.keep(start)
    _read_all(images, what, rows[start:], sinks, evidence, how.tick, oracle)
    if oracle:
        evidence.readings = ranks.gather(evidence.readings)
    for extractor, sink in sinks:
        features = sink.finish(len(images), extractor.dim)
        evidence.features[extractor.digest()] = features
        if how.store is not None and ranks.is_main and isinstance(features, np.ndarray):
            how.store.put(images, extractor, features)
        sink.close()
    if show and ranks.is_main and len(evidence.first) < min(SHOWN, len(images)):  # the pass started after them
        evidence.first = [image for chunk in images.chunks(range(len(images))[:SHOWN]) for image in chunk]
    return evidence


def _stored(evidence: Evidence, images: Images, what: str, extractor: Extractor, how: Pass) -> bool:
    """Adds features from the feature file, if it has them; returns the same answer on all processes."""
    if how.store is None:
        return False
    features = how.store.get(images, what, extractor) if how.ranks.is_main else None
    if features is not None:
        evidence.features[extractor.digest()] = features
    return how.ranks.broadcast(features is not None)


def _read_all(
    images: Images,
    what: str,
    rows: range,
    sinks: Sequence[tuple[Extractor, "_Whole | _Moments"]],
    evidence: Evidence,
    tick: Tick,
    oracle: bool,
) -> None:
    """Reads the images at `rows` with all extractors and the oracle."""
    if not sinks and not oracle:
        return
    done = 0
    tick(what, 0, len(rows))
    for chunk in images.chunks(rows):
        groups = [(members, np.stack([chunk[k] for k in members])) for members in _by_size(chunk)]
        for extractor, sink in sinks:
            features = np.empty((len(chunk), extractor.dim), np.float32)
            for members, batch_BHWC in groups:
                features[members] = extractor.features(batch_BHWC)
            sink.add(features)
        if oracle:
            evidence.readings += _read(chunk)
        if rows.start == 0:
            evidence.first += chunk[: SHOWN - len(evidence.first)]
        done += len(chunk)
        tick(what, done, len(rows))
    if done != len(rows):
        raise RuntimeError(f"{what}: read {done} images, expected {len(rows)}")


# ---- sinks of features ---------------------------------------------------------------------------------------------


def _sink(extractor: Extractor, condensed: bool, images: Images, rows: range, how: Pass) -> "_Whole | _Moments":
    if how.store is not None:
        return _Whole(how.store.rows(images, extractor, rows), how.ranks)
    return _Moments(how.ranks) if condensed else _Whole(rows_in_memory(len(rows), extractor.dim), how.ranks)


class _Whole:
    """Keeps the features."""

    def __init__(self, rows: FeatureRows, ranks: Ranks) -> None:
        self._rows, self._ranks = rows, ranks
        self.done = rows.done  # rows of this process that an earlier pass left
        self.keep: Callable[[int], None] = rows.keep
        self.add: Callable[[Features], None] = rows.add
        self.close: Callable[[], None] = rows.close

    def finish(self, count: int, dim: int) -> Features:
        """Returns the features of all processes on the main one; every process must call it."""
        share = self._rows.whole()
        if self._ranks.num_processes > 1:
            out = rows_in_memory(count if self._ranks.is_main else 0, dim).empty()
            self._ranks.gather_rows(share, out)
            return out if self._ranks.is_main else share
        return share


class _Moments:
    """Keeps only count, sum and outer products."""

    done = 0

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self._stats = ranks, None

    def keep(self, rows: int) -> None:
        """Has no effect, as moments do not outlive a pass."""

    def add(self, features: Features) -> None:
        if self._stats is None:  # all processes use one shift, near the mean
            self._stats = GaussianStats(self._ranks.broadcast(features.mean(axis=0, dtype=np.float64)))
        self._stats.update(features)

    def finish(self, count: int, dim: int) -> GaussianStats:
        """Returns the moments over all processes; every process must call it."""
        stats, sums = self._stats, self._ranks.sum_array
        assert stats is not None
        stats.total, stats.outer = sums(stats.total), sums(stats.outer)
        stats.count = count
        return stats

    def close(self) -> None:
        """Has no effect, as no file is open."""


# ---- chunks --------------------------------------------------------------------------------------------------------


def _by_size(chunk: Sequence[ImageArray]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for k, image in enumerate(chunk):
        groups.setdefault(image.shape, []).append(k)
    return list(groups.values())


def _read(chunk: Sequence[ImageArray]) -> list[Reading]:
    readings: dict[int, Reading] = {}
    for members in _by_size(chunk):
        height, width, _ = chunk[members[0]].shape
        if height != width or height < LEAST_SIDE:
            raise InputError(
                f"faithfulness needs square images of {LEAST_SIDE} pixels or more, got {width}x{height}; name other metrics "
                "with --metrics"
            )
        readings.update(zip(members, read(np.stack([chunk[k] for k in members])), strict=True))
    return [readings[k] for k in range(len(chunk))]
