"""Approximate search with an HNSW graph (Malkov and Yashunin, 2018) of FAISS, which the extra `t2i[search]` installs.

The scores of the rows that the graph returns are computed as in the exact search, so scores and order are the same, and
the result can only lack rows. Axes are those of `t2i.retrieval.exact`.
"""

import hashlib
import json
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t2i.errors import InputError
from t2i.files import new_file, open_regular
from t2i.metrics import Features
from t2i.retrieval.exact import Nearest, cosines

LINKS, BUILD_EF, SEARCH_EF = 32, 100, 256
ADDED = 16_384  # rows added between two calls of `tick`
TIE = 1e-6  # a row whose score is this close to the last exact result counts as found
_READ = 1 << 24  # bytes

Graph = Any  # faiss.IndexHNSWFlat


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise InputError(
            "--ann needs FAISS, which is not installed: pip install 't2i[search]', or search without --ann"
        ) from error
    return faiss


def build_graph(rows_ND: Features, tick: Callable[[int], None] = lambda done: None) -> Graph:
    """Builds a graph over rows of unit length.

    Raises:
        InputError: FAISS is not installed.
    """
    faiss = _faiss()
    graph = faiss.IndexHNSWFlat(rows_ND.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = BUILD_EF
    for start in range(0, len(rows_ND), ADDED):
        graph.add(np.ascontiguousarray(rows_ND[start : start + ADDED]))
        tick(min(start + ADDED, len(rows_ND)))
    return graph


def cached_graph(rows_ND: Features, folder: Path, contents: list[bytes], tick: Callable[[int], None]) -> Graph:
    """Loads the graph over the features of these contents from the encoder's cache folder, or builds and writes it.

    Raises:
        InputError: FAISS is not installed, or the cache cannot be written.
    """
    faiss = _faiss()
    key = hashlib.sha256(json.dumps([LINKS, BUILD_EF]).encode() + b"".join(contents)).hexdigest()[:32]
    for path in folder.glob(f"{key}-*.hnsw"):  # the name ends with the checksum
        if path.stem.endswith(f"-{_crc(path)}"):
            return faiss.read_index(str(path))
        with suppress(OSError):
            path.unlink()
    graph = build_graph(rows_ND, tick)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with new_file(folder / f"{key}.hnsw") as temporary:
            faiss.write_index(graph, str(temporary))
            checked = folder / f"{key}-{_crc(temporary)}.hnsw"
        (folder / f"{key}.hnsw").replace(checked)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "the graph was not written completely"
        raise InputError(f"cannot write the cache {folder}: {reason}; free some space or set T2I_CACHE") from error
    return graph


def near_rows(graph: Graph, queries_QD: Features, rows_ND: Features, k: int, ef: int = SEARCH_EF) -> Nearest:
    """Returns the k rows most similar to each query, among those that the graph search visits.

    Args:
        ef: number of nodes that a query visits; at least k are visited.
    """
    count = min(k, len(rows_ND))
    graph.hnsw.efSearch = max(ef, count)
    visited_QK = graph.search(np.ascontiguousarray(queries_QD), count)[1]
    rows: list[NDArray[np.int64]] = []
    scores: list[NDArray[np.float64]] = []
    for query_D, visited_K in zip(queries_QD, visited_QK, strict=True):
        near = visited_K[visited_K >= 0]  # FAISS pads with -1 if it visits fewer than k rows
        similarity = cosines(query_D, rows_ND[near])
        order = np.lexsort((near, -similarity))
        rows.append(near[order])
        scores.append(similarity[order])
    least = min(map(len, rows))
    return Nearest(np.stack([one[:least] for one in rows]), np.stack([one[:least] for one in scores]))


def recall(approximate: Nearest, exact: Nearest) -> float:
    """Returns the share of the exact results that were found, in [0, 1]; rows with equal scores are interchangeable."""
    last_Q = exact.scores_QK[:, -1:]
    return float((approximate.scores_QK >= last_Q - TIE).sum() / exact.scores_QK.size)


def _crc(path: Path) -> str:
    crc = 0
    with open_regular(path) as file:
        while part := file.read(_READ):
            crc = zlib.crc32(part, crc)
    return f"{crc:08x}"
