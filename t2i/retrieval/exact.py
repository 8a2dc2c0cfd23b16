"""Exact search by cosine similarity, in blocks of rows: the result is that of a sort of all rows, in bounded memory.

A matrix product in float32 rules out nearly all rows of a block. Its last digits depend on the block, so those that are left
are compared by a product in float64 that is made row by row: equal rows score alike, and the first comes first.

Axes: Q queries, N rows, D features, K results.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.metrics.statistics import Array

BLOCK = 2**16  # rows
_EPS = 2.0**-24  # of float32


class Nearest(NamedTuple):
    """The rows most similar to each query, the most similar first; of equal ones the first row."""

    rows_QK: NDArray[np.int64]
    scores_QK: Array  # cosines


def nearest_rows(queries_QD: NDArray[np.float32], rows_ND: NDArray[np.float32], k: int, block: int = BLOCK) -> Nearest:
    """The k rows most similar to each query, or all where there are fewer.

    Args:
        queries_QD, rows_ND: of unit length; the rows may be mapped from a file.
        block: rows compared at once; decides memory, not the result.
    """
    count, slack = min(k, len(rows_ND)), 3 * _EPS * rows_ND.shape[1]
    best = [(np.empty(0, np.int64), np.empty(0))] * len(queries_QD)
    for start in range(0, len(rows_ND), block):
        part_BD = np.asarray(rows_ND[start : start + block])
        rough_QB = queries_QD @ part_BD.T
        for q, rough_B in enumerate(rough_QB):
            rows, scores = best[q]
            bar = scores[-1] if len(scores) == count else -np.inf
            if len(rough_B) > count:
                bar = max(bar, np.partition(rough_B, -count)[-count])
            near = np.flatnonzero(rough_B >= bar - slack)
            rows = np.concatenate([rows, near + start])
            scores = np.concatenate([scores, cosines(queries_QD[q], part_BD[near])])
            best[q] = _first(rows, scores, count)
    return Nearest(np.stack([rows for rows, _ in best]), np.stack([scores for _, scores in best]))


def cosines(query_D: NDArray[np.float32], rows_ND: NDArray[np.float32]) -> Array:
    """[N] products in float64; that of a row does not depend on the rows beside it."""
    return (rows_ND.astype(np.float64) * query_D.astype(np.float64)).sum(axis=1)


def _first(rows: NDArray[np.int64], scores: Array, count: int) -> tuple[NDArray[np.int64], Array]:
    order = np.lexsort((rows, -scores))[:count]
    return rows[order], scores[order]
