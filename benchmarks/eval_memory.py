"""Peak memory of the statistics of 10,000 and of 100,000 feature vectors of 2,048 numbers: it must not grow with N.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python benchmarks/eval_memory.py

A process for each row; only the Frechet step imports torch, whose import alone is the first row. Features are random, made
chunk by chunk as a network would; nothing else holds them. `kept` are features in a file, as `t2i eval score` keeps them where
a metric asks for more than moments. The peak counts pages of files (torch's libraries, kept features), which the kernel may
drop; `own MB` is the peak of the rest.
"""

import argparse
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

DIM = 2048
CHUNK = 256


def chunks(n: int, seed: int) -> Iterator[np.ndarray]:
    """Correlated features, a chunk at a time."""
    rng = np.random.default_rng(seed)
    scale = np.geomspace(1.0, 1e-2, DIM).astype(np.float32)
    for start in range(0, n, CHUNK):
        yield (rng.standard_normal((min(CHUNK, n - start), DIM), dtype=np.float32) + 0.5) * scale


def peak() -> float:
    """Megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Own(threading.Thread):
    """Watches the memory that is of no file; `most` in megabytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0.0

    def run(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            now = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            self.most = max(self.most, now / 1024)
            time.sleep(0.02)


def moments(n: int) -> float:
    """Both sides condensed: what `fid` of a wide extractor asks for."""
    _stats(n, 0), _stats(n, 1)
    return 0.0


def frechet(n: int) -> float:
    """The same with the distance."""
    from t2i.metrics.frechet import Gaussian, distance

    fake, real = _stats(n, 0), _stats(n, 1)
    return distance(Gaussian.of(fake), Gaussian.of(real))


def kept(n: int) -> float:
    """Features in a file, and their moments read back from there."""
    from t2i.metrics.statistics import GaussianStats
    from t2i.scoring.images.store import rows_in_memory

    rows = rows_in_memory(n, DIM)
    for features in chunks(n, 0):
        rows.add(features)
    found = rows.whole()
    stats = GaussianStats(found[:CHUNK].mean(axis=0, dtype=np.float64))
    for start in range(0, n, CHUNK):
        stats.update(found[start : start + CHUNK])
    return float(stats.mean[0])


def torch_alone(n: int) -> float:
    """What importing torch takes."""
    import torch

    return float(torch.zeros(1))


def _stats(n: int, seed: int):
    from t2i.metrics.statistics import GaussianStats

    stats = None
    for features in chunks(n, seed):
        stats = stats or GaussianStats(features.mean(axis=0, dtype=np.float64))
        stats.update(features)
    return stats


ROWS = {"moments": moments, "frechet": frechet, "kept": kept, "torch": torch_alone}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--row", nargs=2, metavar=("NAME", "N"), help="one row, in this process")
    row = parser.parse_args().row
    if row:
        own = Own()
        own.start()
        started = time.perf_counter()
        value = ROWS[row[0]](int(row[1]))
        print(
            f"| {row[0]} | {int(row[1]):,} | {peak():.0f} | {own.most:.0f} | {time.perf_counter() - started:.0f} | {value:.6g} |"
        )
        return
    print("| what | N | peak MB | own MB | seconds | value |\n|---|---|---|---|---|---|", flush=True)
    for name, n in [("torch", 0), *((name, n) for name in ("moments", "frechet", "kept") for n in (10_000, 100_000))]:
        subprocess.run([sys.executable, __file__, "--row", name, str(n)], check=True)


if __name__ == "__main__":
    main()
