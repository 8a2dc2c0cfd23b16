"""Broken images, odd captions, hostile tars and folders that change: all are counted and named; nothing hangs or runs.

benchmarks/data_fuzz.py has the counts of many.
"""

import random
import warnings
from pathlib import Path

import numpy as np
import pytest

from builders import hostile_data as hostile
from t2i.data import View, open_dataset
from t2i.data.loader import Loader, RowLoader
from t2i.errors import InputError
from t2i.images import BrokenImage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data" / "train").mkdir(parents=True)
    return tmp_path / "data" / "train"


def test_fuzzed_pictures_are_trained_on_or_named(folder: Path) -> None:
    names = hostile.put_pictures(folder, 160)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = open_dataset(f"folder:{folder.parent}", "train", View(16))
    loader = Loader(data, 10, 0)
    trained = {data.ids[row] for _ in range(-(-len(data) // 10)) for row in next(loader).rows.tolist()}
    broken = dict(data.broken)  # type: ignore[attr-defined]
    assert loader.quarantine == [] and trained.isdisjoint(broken)
    assert trained | broken.keys() == {f"train/{name}" for name in names}
    assert 30 < len(broken) < 80 and all(broken.values())
    kinds = {hostile.PICTURES[int(name[6:11]) % 16].__name__ for name in broken}
    assert kinds >= {"truncated", "header", "bomb", "empty", "tiny"}
    assert kinds.isdisjoint({"sound", "cmyk", "palette", "deep", "animated", "misnamed"})


@pytest.mark.parametrize("kind", range(len(hostile.CAPTIONS)))
def test_odd_captions_are_cleaned_left_out_or_named(kind: int, folder: Path) -> None:
    rng = random.Random(kind)
    for name in ("a", "b"):
        (folder / f"{name}.png").write_bytes(hostile.encoded(hostile.Image.fromarray(hostile.pixels(rng)), "PNG"))
    (folder / "a.txt").write_text("plain")
    (folder / "b.txt").write_bytes(hostile.CAPTIONS[kind](rng))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            data = open_dataset(f"folder:{folder.parent}", "train", View(16))
        except InputError as error:
            assert "b.txt line" in str(error) and "not UTF-8" in str(error)
            return
    if len(data) == 1:
        assert "without a caption" in str(caught[0].message) and "train/b.png" in str(caught[0].message)
    for caption in data.captions[-1]:
        assert caption and len(caption) <= 4096 and caption.encode() and "\0" not in caption


def test_hostile_tars_touch_nothing_and_are_counted_or_named(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    tars = hostile.hostile_tars(folder, canary)
    assert len(tars) == 60
    before = sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)
    opened = refused = 0
    for path, what in tars.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                data = open_dataset(f"shards:{path}", "train", View(16))
            except InputError as error:
                assert str(path) in str(error) and "\n" not in str(error), what
                refused += 1
                continue
        for i in range(len(data)):
            try:
                data.images([i])
            except BrokenImage as error:
                assert str(path) in str(error), what
        opened += 1
    assert opened + refused == 60 and opened > 30 and refused > 5
    assert sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts) == before
    assert not canary.exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("change", "workers"),
    [*((change, 0) for change in hostile.CHANGES), (hostile.remove, 2), (hostile.pipe_instead, 2)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_folder_that_changes_while_training(change, workers: int, folder: Path) -> None:
    picture = hostile.encoded(hostile.Image.fromarray(hostile.pixels(random.Random(0))), "PNG")
    for number in range(120):
        (folder / f"{number:03d}.png").write_bytes(picture)
        (folder / f"{number:03d}.txt").write_text(f"picture {number}")
    dataset = open_dataset(f"folder:{folder.parent}", "train", View(16))
    order = RowLoader(range(120), 10, 0)
    last = int([next(order) for _ in range(12)][-1].rows[3])  # no worker is as far ahead
    named: list[str] = []
    loader = Loader(dataset, 10, 0, num_workers=workers, on_broken=lambda entry: named.append(entry["id"]))
    change(folder / f"{last:03d}.png")
    seen = np.concatenate([next(loader).rows for _ in range(12)])
    assert named == [dataset.ids[last]] and last not in seen and len(np.unique(seen)) == 119
