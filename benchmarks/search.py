"""Measures search among a million features of 128 numbers: time and memory of exact search, and of the graph with its recall.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/search.py [ROWS]

`random` rows are uniform on the sphere, the hardest case, as no rows are near each other; `clustered` rows are near one of
ROWS / 100 centres, with noise of the length of the centre. Queries are new rows of the same kind. Each kind is a separate
process with its own peak of memory; `recall@10` is relative to exact search. Needs the extra `t2i[search]`.
"""

import resource
import subprocess
import sys

import numpy as np
from timing import median, timed

from t2i.retrieval.exact import nearest_rows
from t2i.retrieval.graph import build_graph, near_rows, recall
from t2i.retrieval.store import unit_features

ROWS, DIM, QUERIES, K = 1_000_000, 128, 100, 10
EFS = (64, 128, 256, 512, 1024, 2048, 4096)
KINDS = ("clustered", "random")


def features(kind: str, count: int, centres: int, seed: int) -> np.ndarray:
    """Returns float32 [count, DIM] of unit length, computed in parts."""
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
    """Returns the peak memory in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(kind: str, count: int) -> None:
    rows = features(kind, count, max(1, count // 100), 0)
    queries = features(kind, QUERIES, max(1, count // 100), 1)
    made = peak()
    print(
        f"{kind}: {count:,} rows, {rows.nbytes / 2**20:,.0f} MB; with them the process has {made:,.0f} MB", flush=True
    )
    singles = [timed(lambda q=q: nearest_rows(queries[q : q + 1], rows, K)) for q in range(10)]
    exact, together = timed(lambda: nearest_rows(queries, rows, K))
    single = median([taken for _, taken in singles])
    print(
        f"  exact, one query: {single.wall * 1e3:.0f} ms, {single.cpu * 1e3:.0f} CPU ms; {QUERIES} at once: "
        f"{together.cpu / QUERIES * 1e3:.1f} CPU ms each; peak {peak():,.0f} MB",
        flush=True,
    )
    graph, build = timed(lambda: build_graph(rows))
    print(f"  graph: built in {build.wall:,.0f} s, {build.cpu:,.0f} CPU s; peak {peak():,.0f} MB", flush=True)
    for ef in EFS:
        found, taken = timed(lambda ef=ef: near_rows(graph, queries, rows, K, ef))
        print(
            f"  ef {ef:>5}: {taken.cpu / QUERIES * 1e3:7.2f} CPU ms a query, recall@{K} {recall(found, exact):.4f}",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        measure(sys.argv[2], int(sys.argv[1]))
    else:
        rows = sys.argv[1] if len(sys.argv) > 1 else str(ROWS)
        for kind in KINDS:
            subprocess.run([sys.executable, __file__, rows, kind], check=True)
