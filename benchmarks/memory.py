"""Measures memory while steps, scored images and rows grow tenfold: a markdown table, whose last column should stay near 1.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/memory.py

Each row is a separate process. `peak` includes pages of files (torch's libraries, mapped tables, kept features), which the
kernel may drop; `own` is the peak of all other memory, workers included. The last column is its ratio to the row above with
the same case. CPU seconds include the start.

Steps: training by the command line, with validation and a checkpoint four times, and batches of a loader. Scored: random
features of 2,048 numbers, in chunks as a network returns them; `kept` are features in a file, as `t2i eval score` keeps them
if a metric needs more than moments. Rows: opening a folder with `metadata.jsonl` and as many hard links, which are kept in
the scratch folder; `first` writes the table, `again` reads it from the cache.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

DIM = 2048
CHUNK = 256
WORDS = "a small large red green blue dog cat on the beach with under tree house running happy old young car".split()
FOLDER = 10_000  # images in one
PARTS = ("steps", "scored", "rows")


class Own(threading.Thread):
    """Watches the memory of this process and its children that does not belong to files; `most` is in megabytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0.0

    def run(self) -> None:
        tasks = Path(f"/proc/self/task/{os.getpid()}/children")
        while True:
            self.most = max(self.most, sum(map(anonymous_mb, ["self", *tasks.read_text().split()])))
            time.sleep(0.02)


def anonymous_mb(pid: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)


# ---- steps ---------------------------------------------------------------------------------------------------------


def training(family: str, n: int, scratch: Path) -> None:
    """Trains the tiny config of a family for n steps on rendered scenes."""
    from t2i.cli.app import main

    run = scratch / "runs" / f"{family}-{n}"
    shutil.rmtree(run, ignore_errors=True)
    settings = {
        "max_train_steps": n,
        "max_train_minutes": "null",
        "data.limit": 512,
        "validation_n": 32,
        "validation_steps": n // 4,
        "checkpointing_steps": n // 4,
    }
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    status = main(["train", family, "--config", f"{family}-tiny", "--data", "shapes-1", *sets, "--run-dir", str(run)])
    if status:
        raise SystemExit(f"training ended with status {status}")


def batches(workers: int, n: int, scratch: Path) -> None:
    """Reads n batches of a folder of 2,000 images."""
    from t2i.data import View, open_dataset
    from t2i.data.loader import Loader, choose_captions

    data = open_dataset(f"folder:{folder_of(2000, scratch)}", "train", View(32))
    loader = Loader(data, 16, 0, num_workers=workers)
    for _ in range(n):
        batch = next(loader)
        choose_captions(data, batch.rows, batch.sample_ids, 0)


# ---- scored --------------------------------------------------------------------------------------------------------


def chunks(n: int, seed: int) -> Iterator[np.ndarray]:
    """Yields correlated features, a chunk at a time."""
    rng = np.random.default_rng(seed)
    scale = np.geomspace(1.0, 1e-2, DIM).astype(np.float32)
    for start in range(0, n, CHUNK):
        yield (rng.standard_normal((min(CHUNK, n - start), DIM), dtype=np.float32) + 0.5) * scale


def statistics_of(n: int, seed: int):
    from t2i.metrics.statistics import GaussianStats

    stats = GaussianStats(next(chunks(n, seed)).mean(axis=0, dtype=np.float64))
    for features in chunks(n, seed):
        stats.update(features)
    return stats


def moments(n: int, scratch: Path) -> None:
    """Condenses both sides, as `fid` of a wide extractor requires."""
    statistics_of(n, 0), statistics_of(n, 1)


def frechet(n: int, scratch: Path) -> None:
    """Also computes the distance, which imports torch."""
    from t2i.metrics.frechet import Gaussian, distance

    distance(Gaussian.of(statistics_of(n, 0)), Gaussian.of(statistics_of(n, 1)))


def kept(n: int, scratch: Path) -> None:
    """Keeps features in a file and reads their moments from there."""
    from t2i.metrics.statistics import GaussianStats
    from t2i.scoring.images.store import rows_in_memory

    rows = rows_in_memory(n, DIM)
    for features in chunks(n, 0):
        rows.add(features)
    found = rows.whole()
    stats = GaussianStats(found[:CHUNK].mean(axis=0, dtype=np.float64))
    for start in range(0, n, CHUNK):
        stats.update(found[start : start + CHUNK])


# ---- rows ----------------------------------------------------------------------------------------------------------


def folder_of(rows: int, scratch: Path) -> Path:
    """Returns a folder of `rows` images in folders of 10,000, hard links to a few, and their metadata.jsonl."""
    from PIL import Image

    root = scratch / f"rows-{rows}"
    if root.exists():
        return root
    rng = random.Random(0)
    part = root.with_name(root.name + ".partial")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with open(part / "metadata.jsonl", "w") as file:
        for i in range(rows):
            path = part / f"{i // FOLDER:03d}" / f"{i:09d}.jpg"
            if i % FOLDER == 0:
                path.parent.mkdir()
                Image.new("RGB", (64, 64), (i % 256, 80, 90)).save(source := path)
            else:
                os.link(source, path)
            row = {"file_name": path.relative_to(part).as_posix(), "text": " ".join(rng.choices(WORDS, k=10))}
            file.write(json.dumps(row) + "\n")
    part.rename(root)
    return root


def opening(n: int, scratch: Path) -> None:
    from t2i.data import View, open_dataset

    data = open_dataset(f"folder:{folder_of(n, scratch)}", "train", View())
    assert data.captions[len(data) - 1] and data.ids[0]


# ---- the table -----------------------------------------------------------------------------------------------------

CASES: dict[str, Callable[[int, Path], None]] = {
    **{f"train {family}": lambda n, at, f=family: training(f, n, at) for family in ("vqvae", "align", "cgan")},
    "batches": lambda n, at: batches(0, n, at),
    "batches, 2 workers": lambda n, at: batches(2, n, at),
    "moments": moments,
    "frechet": frechet,
    "kept": kept,
    "opened first": opening,
    "opened again": opening,
}


def plan(parts: list[str], steps: int, most_rows: int) -> Iterator[tuple[str, int]]:
    if "steps" in parts:
        yield from ((f"train {family}", n) for family in ("vqvae", "align", "cgan") for n in (steps, 10 * steps))
        yield from ((case, n) for case in ("batches", "batches, 2 workers") for n in (1_000, 10_000))
    if "scored" in parts:
        yield from ((case, n) for case in ("moments", "frechet", "kept") for n in (10_000, 100_000))
    if "rows" in parts:
        sizes = [10**power for power in range(3, 7) if 10**power <= most_rows]
        yield from ((case, n) for case in ("opened first", "opened again") for n in sizes)


def measured(case: str, n: int, scratch: Path) -> dict[str, float]:
    """Runs one case in a separate process."""
    env = os.environ | {"T2I_CACHE": str(scratch / "cache")}
    command = [sys.executable, "-W", "ignore", __file__, "--scratch", str(scratch), "--case", case, str(n)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def run_case(case: str, n: int, scratch: Path) -> None:
    own = Own()
    own.start()
    CASES[case](n, scratch)
    use = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in use)
    print(json.dumps({"peak": use[0].ru_maxrss / 1024, "own": own.most, "cpu": cpu}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "t2i-memory")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", type=int, default=60, help="steps of the shorter trainings")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the largest folder")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.scratch.mkdir(parents=True, exist_ok=True)
    if given.case:
        run_case(given.case[0], int(given.case[1]), given.scratch)
        return
    shutil.rmtree(given.scratch / "cache", ignore_errors=True)
    print("| case | N | peak MB | own MB | CPU s | own, of the row above |\n|---|---|---|---|---|---|", flush=True)
    before: tuple[str, float] = ("", 0.0)
    for case, n in plan(given.only, given.steps, given.rows):
        if case == "opened first":
            folder_of(n, given.scratch)
        found = measured(case, n, given.scratch)
        ratio = f"{found['own'] / before[1]:.2f}" if before[0] == case else ""
        print(
            f"| {case} | {n:,} | {found['peak']:,.0f} | {found['own']:,.0f} | {found['cpu']:,.1f} | {ratio} |",
            flush=True,
        )
        before = case, found["own"]


if __name__ == "__main__":
    main()
