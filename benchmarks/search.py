"""Search among a million features of 128 numbers: time and memory of the exact search, and of the graph with its recall.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/search.py [ROWS]

`random` rows are uniform on the sphere, the hardest case there is, as nothing is near anything; `clustered` rows lie about one of
ROWS / 100 centres, with noise of the length of the centre. Queries are new rows of the same kind. A process for each kind, so
that the peak is its own; `recall@10` is against the exact search. Needs the extra `t2i[search]`.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from t2i.retrieval.exact import nearest_rows
from t2i.retrieval.graph import build_graph, near_rows, recall
from t2i.retrieval.store import unit_features

ROWS, DIM, QUERIES, K = 1_000_000, 128, 100, 10
EFS = (64, 128, 256, 512, 1024, 2048, 4096)
KINDS = ("clustered", "random")


def features(kind: str, count: int, centres: int, seed: int) -> np.ndarray:
    """float32 [count, DIM] of unit length, made in parts."""
    rng = np.random.default_rng(seed)
    if kind == "random":
        parts = (rng.standard_normal((min(65536, count - s), DIM), np.float32) for s in range(0, count, 65536))
        return np.concatenate([unit_features(part) for part in parts])
    middle = unit_features(np.random.default_rng(99).standard_normal((centres, DIM), np.float32))
    parts = []
    for start in range(0, count, 65536):
        n = min(65536, count - start)
        noise = rng.standard_normal((n, DIM), np.float32) / np.sqrt(DIM).astype(np.float32)
        parts.append(unit_features(middle[rng.integers(0, centres, n)] + noise))
    return np.concatenate(parts)


def peak() -> float:
    """Megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(what: Callable[[], Any]) -> tuple[Any, float, float]:
    """Its result, seconds of the clock and of the processor."""
    begun, cpu = time.perf_counter(), time.process_time()
    found = what()
    return found, time.perf_counter() - begun, time.process_time() - cpu


def measure(kind: str, count: int) -> None:
    rows = features(kind, count, max(1, count // 100), 0)
    queries = features(kind, QUERIES, max(1, count // 100), 1)
    made = peak()
    print(
        f"{kind}: {count:,} rows, {rows.nbytes / 2**20:,.0f} MB; with them the process has {made:,.0f} MB", flush=True
    )
    singles = [timed(lambda q=q: nearest_rows(queries[q : q + 1], rows, K)) for q in range(10)]
    exact, _, cpu = timed(lambda: nearest_rows(queries, rows, K))
    wall, each = (float(np.median([one[i] for one in singles])) for i in (1, 2))
    print(
        f"  exact, one query: {wall * 1e3:.0f} ms, {each * 1e3:.0f} CPU ms; {QUERIES} at once: {cpu / QUERIES * 1e3:.1f} "
        f"CPU ms each; peak {peak():,.0f} MB",
        flush=True,
    )
    graph, wall, cpu = timed(lambda: build_graph(rows))
    print(f"  graph: built in {wall:,.0f} s, {cpu:,.0f} CPU s; peak {peak():,.0f} MB", flush=True)
    for ef in EFS:
        found, _, cpu = timed(lambda ef=ef: near_rows(graph, queries, rows, K, ef))
        print(
            f"  ef {ef:>5}: {cpu / QUERIES * 1e3:7.2f} CPU ms a query, recall@{K} {recall(found, exact):.4f}",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        measure(sys.argv[2], int(sys.argv[1]))
    else:
        rows = sys.argv[1] if len(sys.argv) > 1 else str(ROWS)
        for kind in KINDS:
            subprocess.run([sys.executable, __file__, rows, kind], check=True)
