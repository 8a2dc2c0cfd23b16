"""One pass over images: every extractor that is asked, the oracle, and the first images, by one process or several.

Memory does not grow with N where moments are enough; else features are kept in memory up to `MEMORY_BYTES`, and in a file
beyond. The features of an image do not depend on its batch or its process, so several processes give the values of one.
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

LEAST_SIDE = 16  # of an image that the oracle reads
ALONE = Ranks(1, True)


@dataclass
class Evidence:
    """Features and readings of N images, without the images themselves.

    Attributes:
        captions, ids: as in `Images`.
        features: extractor's digest -> [N, D]; or only their moments, where no more is asked or stored.
        text: extractor's digest -> [N, D] of the captions.
        readings: one an image, where the oracle was asked.
        reconstructed: readings of the same images through a run's tokenizer.
        first: the first `SHOWN` images, where they were asked.
    """

    captions: list[str] | None = None
    ids: Sequence[str] = ()
    features: dict[str, Features | GaussianStats] = field(default_factory=dict)
    text: dict[str, Features] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    reconstructed: list[Reading] = field(default_factory=list)
    first: list[ImageArray] = field(default_factory=list)


class Pass(NamedTuple):
    """Settings of passes over images: who hears of progress, which processes share the work, where features are kept."""

    tick: Tick = silent
    ranks: Ranks = ALONE
    store: FeatureFile | None = None  # features that it has are not made again, and those that are made are put into it


def extract(
    images: Images,
    what: str,
    extractors: Sequence[Extractor],
    how: Pass,
    condensed: Collection[str] = (),
    oracle: bool = False,
    show: bool = False,
) -> Evidence:
    """Reads every image once with every extractor, and with the oracle of the embedded data where it is asked.

    Args:
        what: names the images in the progress and in messages.
        condensed: digests of extractors whose moments are enough.
        show: keeps the first images.

    Returns:
        all that was extracted, on the main process; a part of it elsewhere.

    Raises:
        InputError: the oracle is asked about an image that it cannot read, or there are more processes than images.
    """
    ranks, store = how.ranks, how.store
    if len(images) < ranks.num_processes:
        raise InputError(f"{counted(len(images), 'image')} for {ranks.num_processes} processes; start fewer processes")
    found = Evidence(images.captions, images.ids)
    todo = [one for one in extractors if not _stored(found, images, what, one, how)]
    mine = ranks.share(len(images))
    sinks = [_sink(one, one.digest() in condensed, images, mine, how) for one in todo]
    begin = 0 if oracle else min((sink.done for sink in sinks), default=len(mine))
    for sink in sinks:
        sink.keep(begin)
    _read_all(images, what, mine[begin:], list(zip(todo, sinks, strict=True)), found, how.tick, oracle)
    if oracle:
        found.readings = ranks.gather(found.readings)
    for one, sink in zip(todo, sinks, strict=True):
        whole = sink.finish(len(images), one.dim)
        found.features[one.digest()] = whole
        if store is not None and ranks.is_main and isinstance(whole, np.ndarray):
            store.put(images, one, whole)
        sink.close()
    if show and ranks.is_main:
        _complete_first(found, images)
    return found


def _complete_first(found: Evidence, images: Images) -> None:
    """Makes the first images anew where the pass began behind them."""
    if len(found.first) < min(SHOWN, len(images)):
        found.first = [image for chunk in images.chunks(range(len(images))[:SHOWN]) for image in chunk]


def _stored(found: Evidence, images: Images, what: str, extractor: Extractor, how: Pass) -> bool:
    """Takes features from the file of kept ones; all processes agree whether it had them."""
    if how.store is None:
        return False
    known = how.store.get(images, what, extractor) if how.ranks.is_main else None
    if known is not None:
        found.features[extractor.digest()] = known
    return how.ranks.broadcast(known is not None)


def _read_all(
    images: Images,
    what: str,
    rows: range,
    into: Sequence[tuple[Extractor, "_Whole | _Moments"]],
    found: Evidence,
    tick: Tick,
    oracle: bool,
) -> None:
    """Passes the images at `rows` through everything that is asked."""
    if not into and not oracle:
        return
    done = 0
    tick(what, 0, len(rows))
    for chunk in images.chunks(rows):
        groups = [(members, np.stack([chunk[k] for k in members])) for members in _by_size(chunk)]
        for extractor, sink in into:
            features = np.empty((len(chunk), extractor.dim), np.float32)
            for members, batch_BHWC in groups:
                features[members] = extractor.features(batch_BHWC)
            sink.add(features)
        if oracle:
            found.readings += _read(chunk)
        if rows.start == 0:
            found.first += chunk[: SHOWN - len(found.first)]
        done += len(chunk)
        tick(what, done, len(rows))
    if done != len(rows):
        raise RuntimeError(f"{what}: {done} images came, {len(rows)} were to be scored")


# ---- where features go ---------------------------------------------------------------------------------------------


def _sink(extractor: Extractor, condensed: bool, images: Images, mine: range, how: Pass) -> "_Whole | _Moments":
    if how.store is not None:
        return _Whole(how.store.rows(images, extractor, mine), how.ranks)
    return _Moments(how.ranks) if condensed else _Whole(rows_in_memory(len(mine), extractor.dim), how.ranks)


class _Whole:
    """Keeps the features themselves."""

    def __init__(self, rows: FeatureRows, ranks: Ranks) -> None:
        self._rows, self._ranks = rows, ranks
        self.done = rows.done  # rows of this process's share that are there
        self.keep: Callable[[int], None] = rows.keep
        self.add: Callable[[Features], None] = rows.add
        self.close: Callable[[], None] = rows.close

    def finish(self, count: int, dim: int) -> Features:
        """Features of all processes, on the main one; every process calls it."""
        mine = self._rows.whole()
        if self._ranks.num_processes > 1:
            out = rows_in_memory(count if self._ranks.is_main else 0, dim).empty()
            self._ranks.gather_rows(mine, out)
            return out if self._ranks.is_main else mine
        return mine


class _Moments:
    """Keeps count, sum and outer products alone."""

    done = 0

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self._stats = ranks, None

    def keep(self, rows: int) -> None:
        """Nothing is kept from an earlier pass."""

    def add(self, features: Features) -> None:
        if self._stats is None:  # one shift for all, near the mean
            self._stats = GaussianStats(self._ranks.broadcast(features.mean(axis=0, dtype=np.float64)))
        self._stats.update(features)

    def finish(self, count: int, dim: int) -> GaussianStats:
        """Moments over all processes; every process calls it."""
        stats, sums = self._stats, self._ranks.sum_array
        assert stats is not None
        stats.total, stats.outer = sums(stats.total), sums(stats.outer)
        stats.count = count
        return stats

    def close(self) -> None:
        """No file is open."""


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
                f"the oracle of faithfulness reads square images of {LEAST_SIDE} pixels or more, one is {width}x{height}; "
                "name the other metrics with --metrics"
            )
        readings.update(zip(members, read(np.stack([chunk[k] for k in members])), strict=True))
    return [readings[k] for k in range(len(chunk))]
