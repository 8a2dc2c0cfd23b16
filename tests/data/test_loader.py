"""The order of training data: exact after resuming, the same for any number of processes and workers."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from t2i.data import View, encoded, open_dataset
from t2i.data.loader import Batch, Loader, LoadingEnded, Position, choose_captions
from t2i.errors import InputError
from t2i.images import BrokenImage, ImageArray
from t2i.seeding import permutation


class Numbered:
    """Images that show their row number; rows in `broken` cannot be decoded."""

    address, split, resolution = "numbered", "train", 2

    def __init__(self, size: int, broken: tuple[int, ...] = (), error: type[Exception] = BrokenImage):
        self.ids = [f"picture-{row}.png" for row in range(size)]
        self.captions = [[f"caption {k} of {row}" for k in range(1 + row % 3)] for row in range(size)]
        self._broken, self._error = set(broken), error
        self.calls = 0

    def __len__(self) -> int:
        return len(self.ids)

    def images(self, indices: list[int]) -> ImageArray:
        self.calls += 1
        if bad := self._broken.intersection(indices):
            raise self._error(f"picture-{min(bad)}.png: truncated")
        levels = np.array(indices)[:, None, None, None] // np.array([1, 256, 65536])
        return np.broadcast_to(levels % 256, (len(indices), 2, 2, 3)).astype(np.uint8)

    def fingerprint(self) -> str:
        return "numbered"


def take(loader: Loader, count: int) -> list[Batch]:
    return [next(loader) for _ in range(count)]


def rows_of(batches: list[Batch]) -> list[int]:
    return [int(row) for batch in batches for row in batch.rows]


def shown(batch: Batch) -> list[int]:
    levels = batch.images_BHWC[:, 0, 0].to(torch.int64)
    return (levels * torch.tensor([1, 256, 65536])).sum(1).tolist()


def assert_same(a: Batch, b: Batch) -> None:
    assert torch.equal(a.images_BHWC, b.images_BHWC)
    for left, right in zip(a[1:], b[1:], strict=True):
        np.testing.assert_array_equal(left, right)


def test_every_epoch_is_a_permutation_and_batches_cross_its_border():
    batches = take(Loader(Numbered(10), batch_size=4, seed=3), 10)
    rows = rows_of(batches)
    for epoch in range(4):
        assert rows[10 * epoch : 10 * epoch + 10] == permutation(3, epoch, 10).tolist()
    assert batches[2].epoch.tolist() == [0, 0, 1, 1]
    assert [int(i) for batch in batches for i in batch.sample_ids] == list(range(40))
    for batch in batches:
        assert batch.images_BHWC.dtype == torch.uint8 and shown(batch) == batch.rows.tolist()


def test_a_batch_may_hold_several_epochs_of_a_small_set():
    (batch,) = take(Loader(Numbered(3), batch_size=10, seed=0), 1)
    assert batch.epoch.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert sorted(batch.rows[:9].tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_seeds_differ():
    assert rows_of(take(Loader(Numbered(50), 8, seed=0), 3)) != rows_of(take(Loader(Numbered(50), 8, seed=1), 3))


@pytest.mark.parametrize("stop", [1, 2, 5, 13])
def test_resumed_loader_gives_the_next_fifty_batches(stop):
    whole = take(Loader(Numbered(30), 7, seed=5), stop + 50)
    resumed = Loader(Numbered(30), 7, seed=5, position=Position(7 * stop))
    for batch in whole[stop:]:
        assert_same(batch, next(resumed))


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_one_global_order(workers):
    whole = take(Loader(Numbered(25), 8, seed=2), 20)
    ranks = [Loader(Numbered(25), 4, 2, Position(0, r, 2), num_workers=workers) for r in (0, 1)]
    for batch in whole:
        left, right = (next(rank) for rank in ranks)
        joined = [np.concatenate(pair) for pair in zip(left[1:], right[1:], strict=True)]
        assert_same(batch, Batch(torch.cat([left.images_BHWC, right.images_BHWC]), *joined))


def test_changing_the_number_of_processes_keeps_the_order():
    """1 -> 2 -> 1 processes with the same global batch: the order of rows continues."""
    dataset, seen, consumed = Numbered(25), [], 0
    for processes in (1, 2, 1):
        ranks = [Loader(dataset, 8 // processes, 2, Position(consumed, r, processes)) for r in range(processes)]
        for _ in range(6):
            seen += [row for rank in ranks for row in next(rank).rows.tolist()]
            consumed += 8
    assert seen == rows_of(take(Loader(dataset, 8, 2), 18))


def test_workers_change_nothing_on_real_data():
    dataset = open_dataset("shapes-2", "train", View(resolution=32, limit=40))
    inline, ahead = Loader(dataset, 16, seed=1), Loader(dataset, 16, seed=1, num_workers=2)
    for _ in range(6):
        batch = next(inline)
        assert_same(batch, next(ahead))
        assert batch.images_BHWC.shape == (16, 32, 32, 3)
        np.testing.assert_array_equal(batch.images_BHWC.numpy(), dataset.images(batch.rows.tolist()))
    assert inline.wait_seconds > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_random_crops_are_a_function_of_seed_epoch_and_picture(workers, tmp_path, monkeypatch):
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "cache"))
    for key in range(6):
        pixels = np.random.default_rng(key).integers(0, 256, (8, 60, 3), dtype=np.uint8)
        (tmp_path / "data/train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"data/train/{key}.png")
        (tmp_path / f"data/train/{key}.txt").write_text("noise")

    def crops(start: int = 0, seed: int = 0) -> dict[tuple[int, int], bytes]:
        dataset = open_dataset(str(tmp_path / "data"), "train", View(8, "random", seed=seed))
        loader = Loader(dataset, 4, 3, position=Position(start), num_workers=workers)
        batches = take(loader, 9 - start // 4)
        keys = [(int(row), int(epoch)) for batch in batches for row, epoch in zip(batch.rows, batch.epoch, strict=True)]
        return dict(
            zip(keys, [image.numpy().tobytes() for batch in batches for image in batch.images_BHWC], strict=True)
        )

    first = crops()
    assert len(first) == 36 and len({first[0, epoch] for epoch in range(6)}) > 3
    assert crops(20).items() <= first.items() and crops(seed=1) != first


class Threads:
    """A data set whose images show the number of decoding threads of the process that reads them."""

    address, split, ids, captions, resolution = "threads", "train", ["a"] * 40, [("a",)] * 40, 2

    def __len__(self) -> int:
        return 40

    def images(self, indices, epoch: int = 0) -> ImageArray:
        return np.full((len(indices), 2, 2, 3), encoded._threads(), np.uint8)


@pytest.mark.parametrize(("workers", "threads"), [(0, 8), (2, 4), (3, 2)])
def test_workers_share_the_cores(workers, threads, monkeypatch):
    monkeypatch.setattr(encoded, "workers", lambda: 8)
    loader = Loader(Threads(), 4, seed=0, num_workers=workers)  # type: ignore[arg-type]
    assert next(loader).images_BHWC.unique().tolist() == [threads]


def test_dataset_is_read_in_whole_batches():
    dataset = Numbered(100)
    take(Loader(dataset, 10, seed=0), 5)
    assert dataset.calls == 5


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [BrokenImage, FileNotFoundError])
def test_broken_rows_are_replaced_by_the_next_and_reported_once(workers, error):
    broken = (17, 18, 150)
    reported = []
    loader = Loader(Numbered(300, broken, error), 20, 4, num_workers=workers, on_broken=reported.append)
    batches = take(loader, 45)  # three epochs
    wanted = [19 if row in (17, 18) else 151 if row == 150 else row for e in range(3) for row in permutation(4, e, 300)]
    assert rows_of(batches) == wanted
    assert all(shown(batch) == batch.rows.tolist() for batch in batches)
    assert sorted(entry["row"] for entry in reported) == sorted(broken) and reported == loader.quarantine
    assert {entry["id"] for entry in reported} == {f"picture-{row}.png" for row in broken}
    assert "truncated" in reported[0]["reason"]


def test_substitutes_do_not_depend_on_where_training_started():
    dataset = Numbered(300, (17, 18, 150))
    whole = rows_of(take(Loader(dataset, 20, 4), 30))
    assert rows_of(take(Loader(dataset, 20, 4, position=Position(260)), 17)) == whole[260:]


@pytest.mark.parametrize("workers", [0, 1])
def test_over_one_percent_broken_stops_and_names_them(workers):
    loader = Loader(Numbered(200, tuple(range(0, 200, 50))), 20, 0, num_workers=workers)
    with pytest.raises(InputError, match=r"3 of 200 .* over 1%: picture-\d+\.png \(.*truncated\)") as caught:
        take(loader, 10)
    assert "\n" not in str(caught.value)


def test_all_broken_stops_at_once():
    with pytest.raises(InputError, match="cannot be decoded"):
        next(Loader(Numbered(50, tuple(range(50))), 10, 0))


def test_empty_data_is_refused():
    with pytest.raises(InputError, match="holds no images"):
        Loader(Numbered(0), 4, 0)


def test_workers_survive_an_interrupt_and_end_with_their_owner():
    """Ctrl-C reaches the whole process group, but the main process needs its batches to finish the step."""
    others = multiprocessing.active_children()
    loader = Loader(Numbered(100), 10, 0, num_workers=2)
    take(loader, 2)
    workers = [process for process in multiprocessing.active_children() if process not in others]
    assert len(workers) == 2
    for process in workers:
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGUSR1)
    assert rows_of(take(loader, 6)) == rows_of(take(Loader(Numbered(100), 10, 0), 8))[20:]
    del loader
    for process in workers:
        process.join(20)
        assert process.exitcode == 0


def test_caption_choice_depends_on_seed_and_sample_alone():
    dataset = Numbered(60)
    ids = np.arange(3000, dtype=np.int64)
    rows = ids % 60
    chosen = choose_captions(dataset, rows, ids, seed=1)
    assert [row for row, _ in chosen] == rows.tolist()
    assert choose_captions(dataset, rows[500:700], ids[500:700], seed=1) == chosen[500:700]
    assert choose_captions(dataset, rows, ids, seed=2) != chosen
    for captions in (1, 2, 3):
        counts = np.bincount([k for row, k in chosen if row % 3 == captions - 1], minlength=captions)
        assert len(counts) == captions and counts.min() > 0.8 * 1000 / captions


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_is_one_line_between_two_batches(victim: int) -> None:
    """The error is never raised in the middle of a step, unlike that of torch's own handler."""
    loader = Loader(open_dataset("shapes-1", "train", View(16, limit=64)), 4, 0, num_workers=2)
    next(loader)
    os.kill(multiprocessing.active_children()[victim].pid or 0, signal.SIGKILL)
    time.sleep(0.5)  # a step
    with pytest.raises(LoadingEnded, match="a data worker of 2 has died.*set dataloader_num_workers lower"):
        for _ in range(20):
            next(loader)
