"""Yields batches in an order that depends only on (seed, samples consumed), so a resumed run continues bit for bit.

Position p of training shows row `permutation(seed, p // N)[p % N]`; for a mixture, a random draw first chooses the data set. A
global batch covers the next batch_size x num_processes positions, across the borders of epochs, and process r takes its r-th
slice. The order of samples thus does not depend on the numbers of processes and workers.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import suppress
from itertools import count
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from t2i.data import Augmentation, Dataset
from t2i.data.augment import augment
from t2i.errors import InputError
from t2i.images import BrokenImage, ImageArray, LostConnection
from t2i.names import counted
from t2i.seeding import permutation, uniform

DYING_SECONDS = 5.0  # how long a killed process may take to disappear
PROBES = 8  # images that are probed if one cannot be read, to detect vanished data
MAX_BROKEN = 0.01  # maximum share of rows that cannot be decoded
Broken = Mapping[str, Any]
Integers = NDArray[np.int64]


class LoadingEnded(InputError):
    """Loading has ended because the data has vanished or a data worker has died; the training so far is sound."""


class Position(NamedTuple):
    """Where a loader starts: samples that all processes have consumed, and this process's slice of each global batch."""

    samples_consumed: int = 0
    process_index: int = 0
    num_processes: int = 1


START = Position()


class Batch(NamedTuple):
    """One micro-batch of one process; all four fields have the same images along axis B."""

    images_BHWC: torch.Tensor  # uint8
    rows: Integers  # of the data set, after substitution
    sample_ids: Integers  # positions since the start of training: unique, the keys of all random draws
    epoch: Integers


class Rows(NamedTuple):
    """A micro-batch without images, for training on cached codes."""

    rows: Integers
    sample_ids: Integers
    epoch: Integers


class RowLoader(Iterator[Rows]):
    """Yields the same order as `Loader` without images; the arguments are the same."""

    def __init__(self, dataset: Sized, batch_size: int, seed: int, position: Position = START):
        self._others: Sequence[tuple[int, float]] = getattr(dataset, "others", ())  # of a `Mixture`
        self._count = len(dataset) - sum(count for count, _ in self._others)
        self._batch_size, self._seed, self._position = batch_size, seed, position
        self._permutations: dict[int, tuple[int, Integers]] = {}
        self._index = 0

    def __next__(self) -> Rows:
        self._index += 1
        return self.batch(self._index - 1)

    def batch(self, index: int) -> Rows:
        """Returns the rows of this process's batch number `index`."""
        consumed, process, processes = self._position
        start = consumed + (index * processes + process) * self._batch_size
        sample_ids = start + np.arange(self._batch_size, dtype=np.int64)
        rows, epoch = self._rows_of(0, self._count, sample_ids)
        if self._others:
            draws = uniform(self._seed, "mixture", sample_ids, 1)[:, 0]
            first, low = self._count, 0.0
            for number, (count, share) in enumerate(self._others, 1):
                taken = (draws >= low) & (draws < low + share)
                own, epoch[taken] = self._rows_of(number, count, sample_ids[taken])
                rows[taken] = first + own
                first, low = first + count, low + share
        return Rows(rows, sample_ids, epoch)

    def _rows_of(self, number: int, count: int, sample_ids: Integers) -> tuple[Integers, Integers]:
        """Returns the rows of one member of a mixture, which has `count` images, and the epoch of each."""
        epoch, places = np.divmod(sample_ids, count)
        rows = np.empty_like(sample_ids)
        for one in np.unique(epoch).tolist():
            if self._permutations.get(number, (-1,))[0] != one:
                self._permutations[number] = one, permutation(self._seed + number, one, count)
            rows[epoch == one] = self._permutations[number][1][places[epoch == one]]
        return rows, epoch


class Loader(Iterator[Batch]):
    """Yields endless batches of one data set.

    Args:
        dataset: its `images` is called with whole batches.
        batch_size: images per batch on this process.
        seed: seed of the order.
        position: where to start; `Run.position` continues a run.
        num_workers: processes that decode in advance; 0: this process decodes.
        on_broken: called once with {"row", "id", "reason"} for each row that cannot be decoded.
        augmented: names of augmentations (`t2i.data.augment`).

    Attributes:
        wait_seconds: time spent waiting for batches so far.
        quarantine: the rows that cannot be decoded; each is replaced by the next row that can be.

    Raises:
        InputError: while iterating, when over 1 % of the rows are broken.
        LoadingEnded: while iterating, when the data has vanished or a worker has died.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        position: Position = START,
        num_workers: int = 0,
        on_broken: Callable[[Broken], None] = lambda broken: None,
        augmented: Sequence[Augmentation] = (),
    ):
        if len(dataset) == 0:
            raise InputError(f"data {dataset.address}, split {dataset.split}, holds no images; nothing to train on")
        self.wait_seconds = 0.0
        self.quarantine: list[Broken] = []
        self._dataset, self._num_workers, self._on_broken = dataset, num_workers, on_broken
        batches = _Batches(dataset, RowLoader(dataset, batch_size, seed, position), seed, augmented)
        self._batches: Iterator[Any] = (
            _in_workers(batches, num_workers) if num_workers else map(batches.__getitem__, count())
        )

    def __next__(self) -> Batch:
        started = time.perf_counter()
        try:
            batch, broken = next(self._batches)
        # a dead worker causes a RuntimeError of torch, or an error of the connection during a batch
        except (RuntimeError, OSError, EOFError) as error:
            ends = [worker.sentinel for worker in getattr(self._batches, "_workers", ())]
            if not connection.wait(ends, DYING_SECONDS):
                raise
            self._batches = iter(())
            raise LoadingEnded(
                f"a data worker of {self._num_workers} has died, perhaps because memory ran out; free some memory, or set "
                "dataloader_num_workers lower"
            ) from error
        self.wait_seconds += time.perf_counter() - started
        if broken and broken[-1].get("vanished"):
            self._batches = iter(())
            raise LoadingEnded(f"data {self._dataset.address} has vanished ({broken[-1]['reason']}); bring it back")
        known = {entry["row"] for entry in self.quarantine}  # workers find the same row independently
        for entry in broken:
            if entry["row"] not in known:
                self.quarantine.append(entry)
                self._on_broken(entry)
        if batch is None or _too_many(len(self.quarantine), len(self._dataset)):
            self._batches = iter(())  # ends the workers now, not when the traceback is freed
            share = f"{len(self.quarantine)} of {counted(len(self._dataset), 'image')} cannot be decoded, over {MAX_BROKEN:.0%}"
            first = ", ".join(f"{entry['id']} ({entry['reason']})" for entry in self.quarantine[:3])
            raise InputError(
                f"data {self._dataset.address}: {share}: {first}; repair or remove them, `t2i data check` lists all"
            )
        return batch


def _too_many(broken: int, total: int) -> bool:
    return broken > MAX_BROKEN * total


class RowReader:
    """Reads images of given rows, and replaces those that cannot be decoded by the next row that can be."""

    def __init__(self, dataset: Dataset):
        self._dataset: Any = dataset
        self._broken: set[int] = set()

    def read(self, rows: Integers, epoch: Integers | None = None) -> tuple[ImageArray | None, Integers, list[Broken]]:
        """Returns (images, the rows they show, newly broken rows); images are None if too many rows are broken.

        The batch is read at once, and image by image only if that fails.

        Args:
            epoch: epoch of each row, for random crops; None: the first.
        """
        epoch = np.zeros_like(rows) if epoch is None else epoch
        rows = np.array([self._substitute(int(row)) for row in rows], dtype=np.int64)
        with suppress(BrokenImage, OSError):
            return self._images(rows, epoch), rows, []
        images: list[ImageArray] = []
        broken: list[Broken] = []
        while len(images) < len(rows):
            i = len(images)
            rows[i] = row = self._substitute(int(rows[i]))
            try:
                images.append(self._images(rows[i : i + 1], epoch[i : i + 1]))
            except (BrokenImage, OSError) as error:
                reason = " ".join(str(error).split())[:200]
                if isinstance(error, LostConnection) or self._vanished():
                    return None, rows, [*broken, {"row": row, "vanished": True, "reason": reason}]
                self._broken.add(row)
                broken.append({"row": row, "id": self._dataset.ids[row], "reason": reason})
                if _too_many(len(self._broken), len(self._dataset)):
                    return None, rows, broken
        return np.concatenate(images), rows, broken

    def _vanished(self) -> bool:
        """Returns True if none of a few images, spread over the data, can be read."""
        source = getattr(self._dataset, "source", None)
        if source is None:
            return False
        last = len(self._dataset) - 1
        for row in sorted({last * part // (PROBES - 1) for part in range(PROBES)} - self._broken):
            try:
                if not isinstance(found := source(row), Path) or found.exists():
                    return False
            except (BrokenImage, OSError):
                continue
        return True

    def _images(self, rows: Integers, epoch: Integers) -> ImageArray:
        if not getattr(self._dataset, "redraws", False):  # images are the same in every epoch
            return self._dataset.images(rows.tolist())
        images_BHWC = np.empty((len(rows), *(self._dataset.resolution,) * 2, 3), np.uint8)
        for number in np.unique(epoch).tolist():
            images_BHWC[epoch == number] = self._dataset.images(rows[epoch == number].tolist(), number)
        return images_BHWC

    def _substitute(self, row: int) -> int:
        """Returns the row, or for a broken row the next one that is not known to be broken."""
        while row in self._broken:
            row = (row + 1) % len(self._dataset)
        return row


class _Batches(torch.utils.data.Dataset):
    """Reads this process's batches by number; each worker gets a copy, which keeps its own list of broken rows."""

    def __init__(self, dataset: Dataset, order: RowLoader, seed: int, augmented: Sequence[Augmentation]):
        self._reader, self._order, self._seed, self._augmented = RowReader(dataset), order, seed, augmented

    def __getitem__(self, index: int) -> tuple[Batch | None, list[Broken]]:
        """Returns the batch, None if too many rows are broken, and the rows that were found broken for the first time."""
        rows, sample_ids, epoch = self._order.batch(index)
        images, rows, broken = self._reader.read(rows, epoch)
        if images is None:
            return None, broken
        images = augment(images, self._augmented, self._seed, sample_ids)
        return Batch(torch.from_numpy(np.ascontiguousarray(images)), rows, sample_ids, epoch), broken


def _in_workers(batches: _Batches, num_workers: int) -> Iterator[Any]:
    handler = signal.getsignal(signal.SIGCHLD)
    iterator = iter(
        torch.utils.data.DataLoader(
            batches,
            batch_size=None,
            sampler=count(),  # pyright: ignore[reportArgumentType]  # any iterable of indices will do
            num_workers=num_workers,
            collate_fn=tuple,  # changes nothing
            worker_init_fn=_leave_signals_to_the_main_process,
        )
    )
    # torch's handler would raise in the middle of a step if a worker dies; without it, reading the next batch fails
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
    return iterator


def _leave_signals_to_the_main_process(_: int) -> None:
    """Ignores signals in a worker: Ctrl-C reaches the whole process group, but the main process has to finish its step."""
    for name in ("SIGINT", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):  # Windows only has the first
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def choose_captions(
    dataset: Dataset, rows: Sequence[int] | Integers, sample_ids: Integers, seed: int
) -> list[tuple[int, int]]:
    """Chooses (row, number of one of its captions) for each sample, a function of (seed, sample id) alone."""
    draws = uniform(seed, "caption", sample_ids, 1)[:, 0]
    return [(int(row), int(u * len(dataset.captions[int(row)]))) for row, u in zip(rows, draws, strict=True)]
