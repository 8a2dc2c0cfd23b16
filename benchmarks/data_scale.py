"""A million rows of metadata.jsonl, and memory over 10,000 batches: a markdown table.

    python benchmarks/data_scale.py --scratch /tmp/scale       # a million files (hard links), kept there for the next time

Each figure is of a fresh process. `seconds` are CPU seconds of that process and, beside them, those on the clock: the former
do not depend on what else runs. `first` makes the columns of the folder, `again` finds them in the cache.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

WORDS = "a small large red green blue dog cat on the beach with under tree house running happy old young car".split()
FOLDER = 10_000  # pictures in one


def make_folder(root: Path, rows: int) -> None:
    """`rows` pictures in folders of 10,000, hard links to a few, and their metadata.jsonl."""
    from PIL import Image

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


def open_it(root: Path) -> dict[str, float]:
    started = time.perf_counter()
    from t2i.data import View, open_dataset

    data = open_dataset(f"folder:{root}", "train", View())
    assert data.captions[len(data) - 1] and data.ids[0]
    return {"rows": len(data), "clock": time.perf_counter() - started}


def draw_batches(root: Path, workers: int, batches: int = 10_000) -> dict[str, float]:
    """Resident memory of this process and its workers after 1,000 and after all batches."""
    from t2i.data import View, open_dataset
    from t2i.data.loader import Loader, choose_captions

    data = open_dataset(f"folder:{root}", "train", View(32))
    loader = Loader(data, 16, 0, num_workers=workers)
    seen: dict[int, float] = {}
    for number in range(1, batches + 1):
        batch = next(loader)
        choose_captions(data, batch.rows, batch.sample_ids, 0)
        if number in (batches // 10, batches):
            seen[number] = sum(map(resident_mb, [os.getpid(), *children()]))
    return {f"after {number:,} batches, MB": mb for number, mb in seen.items()}


def children() -> list[int]:
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(pid) for pid in path.read_text().split()]


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measured(*case: str, cache: Path) -> dict[str, float]:
    """One case in a process of its own."""
    env = os.environ | {"T2I_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--case", *case], env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/t2i-scale"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--case", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        what, root, *rest = given.case
        found = open_it(Path(root)) if what == "open" else draw_batches(Path(root), int(rest[0]))
        use = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps(found | {"cpu": use.ru_utime + use.ru_stime, "peak, MB": use.ru_maxrss / 1024}))
        return
    large, small = given.scratch / f"rows-{given.rows}", given.scratch / "rows-2000"
    for root, rows in ((large, given.rows), (small, 2000)):
        if not root.exists():
            make_folder(root, rows)
    cache = given.scratch / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    print("| case | figures |\n|---|---|")
    for name, case in (
        ("opened first", ("open", str(large))),
        ("opened again", ("open", str(large))),
        ("10,000 batches of 16", ("batches", str(small), "0")),
        ("the same, 2 workers", ("batches", str(small), "2")),
    ):
        figures = measured(*case, cache=cache)
        print(f"| {name} | {', '.join(f'{key} {value:,.1f}' for key, value in figures.items())} |", flush=True)


if __name__ == "__main__":
    main()
