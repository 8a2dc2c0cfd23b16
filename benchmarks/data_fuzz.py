"""Counts how bad data is handled: images, captions, tars, and folders that change. Prints a markdown table.

    python benchmarks/data_fuzz.py     # 2,000 images, 500 captions, 60 tars, 100 changes: some minutes of one core

The exit status is 1 if an assertion fails: each image is trained on, or named with a reason; each caption is trained on, left
out with a warning, or refused with file and line; no tar writes, follows or runs anything, and each is opened or refused by
name; a file that is removed, changed or replaced by a pipe during training is named, and nothing hangs. Peak memory is that
of the whole process.
"""

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from builders import hostile_data as hostile
from t2i.data import View, open_dataset
from t2i.data.loader import Loader
from t2i.errors import InputError
from t2i.images import BrokenImage

HANGS_AFTER = 60  # seconds without an answer


@contextmanager
def in_time() -> Iterator[None]:
    """Ends the process with an error if something waits forever."""
    signal.alarm(HANGS_AFTER)
    try:
        yield
    finally:
        signal.alarm(0)


def fuzz_pictures(folder: Path, count: int) -> dict[str, int]:
    names = hostile.put_pictures(folder, count)
    data = open_dataset(f"folder:{folder.parent}", "train", View(64))
    loader = Loader(data, 50, 0)
    trained = {data.ids[row] for _ in range(-(-len(data) // 50)) for row in next(loader).rows.tolist()}
    named = dict(data.broken) | {entry["id"]: entry["reason"] for entry in loader.quarantine}  # type: ignore[attr-defined]
    assert trained.isdisjoint(named) and all(named.values())
    assert trained | named.keys() == {f"train/{name}" for name in names}
    return {"pictures": count, "trained on": len(trained), "quarantined, named": len(named)}


def fuzz_captions(folder: Path, count: int) -> dict[str, int]:
    found: Counter[str] = Counter()
    rng = random.Random(1)
    picture = hostile.encoded(hostile.Image.fromarray(hostile.pixels(rng)), "PNG")
    for number in range(count):
        place = folder / f"{number:03d}" / "train"
        place.mkdir(parents=True)
        for name, text in (("a", b"plain"), ("b", hostile.CAPTIONS[number % len(hostile.CAPTIONS)](rng))):
            (place / f"{name}.png").write_bytes(picture)
            (place / f"{name}.txt").write_bytes(text)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                data = open_dataset(f"folder:{place.parent}", "train", View(16))
            except InputError as error:
                assert "b.txt line" in str(error) and "\n" not in str(error)
                found["refused with file and line"] += 1
                continue
        if len(data) == 1:
            assert "train/b.png" in str(caught[0].message)
            found["left out, named"] += 1
            continue
        assert all(caption and len(caption) <= 4096 and caption.encode() for caption in data.captions[1])
        found["trained on"] += 1
    assert found.total() == count
    return {"captions": count, **found}


def open_tars(folder: Path, canary: Path) -> dict[str, int]:
    tars = hostile.hostile_tars(folder, canary)
    before = sorted(folder.parent.rglob("*"))
    found: Counter[str] = Counter()
    for path, what in tars.items():
        try:
            data = open_dataset(f"shards:{path}", "train", View(16))
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error), what
            found["refused by name"] += 1
            continue
        for row in range(len(data)):
            try:
                data.images([row])
            except BrokenImage as error:
                assert str(path) in str(error), what
                found["pictures in them named as broken"] += 1
        found["opened without the hostile member"] += 1
    assert sorted(folder.parent.rglob("*")) == before and not canary.exists()
    return {"tars": len(tars), **found, "files written, followed or run": 0}


def change_folders(folder: Path, count: int) -> dict[str, int]:
    """Trains on 200 images, the last of which is changed while training is at its first batch."""
    picture = hostile.encoded(hostile.Image.fromarray(hostile.pixels(random.Random(0))), "PNG")
    found: Counter[str] = Counter()
    for number in range(count):
        place = folder / f"{number:03d}" / "train"
        place.mkdir(parents=True)
        for k in range(200):
            (place / f"{k:03d}.png").write_bytes(picture)
            (place / f"{k:03d}.txt").write_text(f"picture {k}")
        dataset = open_dataset(f"folder:{place.parent}", "train", View(16))
        named: list[str] = []
        with in_time():
            loader = Loader(dataset, 10, number, on_broken=lambda entry, into=named: into.append(entry["id"]))
            shown = next(loader).rows.tolist()
            victim = next(row for row in range(200) if row not in shown)
            change = hostile.CHANGES[number % len(hostile.CHANGES)]
            change(place / f"{victim:03d}.png")
            shown += [row for _ in range(19) for row in next(loader).rows.tolist()]
        assert named == [dataset.ids[victim]] and victim not in shown, change.__name__
        found["named"] += 1
    return {"changes while training": count, **found, "hangs": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--captions", type=int, default=500)
    parser.add_argument("--changes", type=int, default=100)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["T2I_CACHE"] = f"{scratch}/cache"
        root = Path(scratch) / "data"
        for name in ("pictures/train", "captions", "tars", "changes"):
            (root / name).mkdir(parents=True)
        print("| what | counts | seconds | peak memory, MB |\n|---|---|---|---|")
        for what, run in (
            ("pictures", lambda: fuzz_pictures(root / "pictures/train", given.pictures)),
            ("captions", lambda: fuzz_captions(root / "captions", given.captions)),
            ("tars", lambda: open_tars(root / "tars", root / "canary")),
            ("changes", lambda: change_folders(root / "changes", given.changes)),
        ):
            started = time.monotonic()
            counts = ", ".join(f"{count:,} {name}" for name, count in run().items())
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(f"| {what} | {counts} | {time.monotonic() - started:.0f} | {peak} |", flush=True)
            assert peak < 1024, "over 1 GB"


if __name__ == "__main__":
    main()
