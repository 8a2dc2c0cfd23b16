"""One pass over pictures: every extractor that is asked, the oracle, and the first pictures, by one process or several.

Memory does not grow with N where moments are enough; else features lie in memory up to `MEMORY_BYTES`, and on the disk
beyond. A picture's features do not depend on the batch or the process, so several processes give the values of one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from t2i.data.shapes.oracle import Reading, read
from t2i.distributed import Ranks
from t2i.errors import InputError
from t2i.extractors import Extractor
from t2i.images import ImageArray
from t2i.metrics import Features
from t2i.metrics.statistics import GaussianStats
from t2i.scoring.images.collection import SHOWN, Pictures, Seen, Tick
from t2i.scoring.images.store import FeatureFile, Rows, rows_in_memory

LEAST_SIDE = 16  # of a picture that the oracle reads
ALONE = Ranks(1, True)


class Eye(NamedTuple):
    """An extractor, and whether the features themselves are asked of it or no more than their moments."""

    extractor: Extractor
    whole: bool = True


def look(
    pictures: Pictures,
    what: str,
    eyes: Sequence[Eye],
    oracle: bool,
    tick: Tick,
    ranks: Ranks = ALONE,
    store: FeatureFile | None = None,
    show: bool = False,
) -> Seen:
    """Sees every picture once with every extractor, and with the oracle of the embedded data where it is asked.

    Args:
        what: says in `tick` and of what is read again which pictures these are.
        store: features that it has are not made again, and those that are made are put into it.
        show: keeps the first pictures.

    Returns:
        all that was seen, on the main process; a part of it elsewhere.

    Raises:
        InputError: the oracle is asked about a picture that it cannot read, or there are more processes than pictures.
    """
    if len(pictures) < ranks.num_processes:
        raise InputError(f"{len(pictures)} pictures for {ranks.num_processes} processes; start fewer processes")
    seen, todo = Seen(), list(eyes)
    if store is not None:
        for eye in eyes:
            known = store.get(pictures, what, eye.extractor) if ranks.is_main else None
            if ranks.broadcast(known is not None):
                todo.remove(eye)
            if known is not None:
                seen.features[eye.extractor.digest()] = known
    mine = ranks.share(len(pictures))
    sinks = [_sink(eye, pictures, mine, ranks, store) for eye in todo]
    begin = 0 if oracle else min((sink.done for sink in sinks), default=len(mine))
    for sink in sinks:
        sink.keep(begin)
    _pass(pictures, what, mine[begin:], todo, sinks, seen, oracle, tick)
    if oracle:
        seen.readings = ranks.gather(seen.readings)
    for eye, sink in zip(todo, sinks, strict=True):
        sink.finish(seen, eye.extractor, len(pictures))
    if show and ranks.is_main and len(seen.first) < min(SHOWN, len(pictures)):  # the pass began behind them
        seen.first = [picture for chunk in pictures.chunks(range(len(pictures))[:SHOWN]) for picture in chunk]
    return seen


def _pass(
    pictures: Pictures,
    what: str,
    rows: range,
    eyes: Sequence[Eye],
    sinks: Sequence["_Sink"],
    seen: Seen,
    oracle: bool,
    tick: Tick,
) -> None:
    """Pictures at `rows` through everything that is there."""
    if not eyes and not oracle:
        return
    done = 0
    tick(what, 0, len(rows))
    for chunk in pictures.chunks(rows):
        groups = [(members, np.stack([chunk[k] for k in members])) for members in _by_size(chunk)]
        for eye, sink in zip(eyes, sinks, strict=True):
            features = np.empty((len(chunk), eye.extractor.dim), np.float32)
            for members, batch_BHWC in groups:
                features[members] = eye.extractor.features(batch_BHWC)
            sink.add(features)
        if oracle:
            seen.readings += _read(chunk)
        if rows.start == 0:
            seen.first += chunk[: SHOWN - len(seen.first)]
        done += len(chunk)
        tick(what, done, len(rows))
    if done != len(rows):
        raise RuntimeError(f"{what}: {done} pictures came, {len(rows)} were to be scored")


# ---- where features go ---------------------------------------------------------------------------------------------


class _Sink(Protocol):
    done: int  # rows of this process's share that it has

    def keep(self, rows: int) -> None:
        """Forgets what it has beyond the first `rows`."""
        ...

    def add(self, features: Features) -> None: ...

    def finish(self, seen: Seen, extractor: Extractor, count: int) -> None:
        """Puts what all processes have into `seen`; all of them call it."""
        ...


def _sink(eye: Eye, pictures: Pictures, mine: range, ranks: Ranks, store: FeatureFile | None) -> _Sink:
    if store is not None:
        rows = store.rows(pictures, eye.extractor, mine)
        return _Whole(rows, ranks, lambda features: store.put(pictures, eye.extractor, features))
    if eye.whole:
        return _Whole(rows_in_memory(len(mine), eye.extractor.dim), ranks)
    return _Moments(ranks)


class _Whole:
    """The features themselves."""

    def __init__(self, rows: Rows, ranks: Ranks, put: Callable[[Features], None] | None = None) -> None:
        self._rows, self._ranks, self._put = rows, ranks, put
        self.done, self.keep, self.add = rows.done, rows.keep, rows.add

    def finish(self, seen: Seen, extractor: Extractor, count: int) -> None:
        mine = self._rows.whole()
        if self._ranks.num_processes > 1:
            out = rows_in_memory(count if self._ranks.is_main else 0, extractor.dim).empty()
            self._ranks.gather_rows(mine, out)
            mine = out if self._ranks.is_main else mine
        seen.features[extractor.digest()] = mine
        if self._put is not None and self._ranks.is_main:
            self._put(mine)
        self._rows.close()


class _Moments:
    """Count, sum and outer products alone."""

    def __init__(self, ranks: Ranks) -> None:
        self.done = 0
        self._ranks, self._stats = ranks, None

    def keep(self, rows: int) -> None:
        """There is nothing to forget: it begins anew."""

    def add(self, features: Features) -> None:
        if self._stats is None:  # one shift for all, near the mean
            self._stats = GaussianStats(self._ranks.broadcast(features.mean(axis=0, dtype=np.float64)))
        self._stats.update(features)

    def finish(self, seen: Seen, extractor: Extractor, count: int) -> None:
        stats, sums = self._stats, self._ranks.sum_array
        assert stats is not None
        stats.total, stats.outer = sums(stats.total), sums(stats.outer)
        stats.count = count
        seen.moments[extractor.digest()] = stats


# ---- chunks --------------------------------------------------------------------------------------------------------


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
