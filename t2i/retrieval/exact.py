"""Exact search by cosine similarity, in blocks of rows: returns what a sort of all rows would, in bounded memory.

A float32 matrix product excludes nearly all rows of a block. Its last digits depend on the block, so the remaining rows are
compared by a float64 product computed row by row: equal rows have equal scores and are returned in their order.

Axes: Q queries, N rows, D features, K results.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.metrics.statistics import Array

BLOCK = 2**16  # rows
_EPS = 2.0**-24  # unit roundoff of float32


class Nearest(NamedTuple):
    """The rows most similar to each query, in order of decreasing similarity; ties are in the order of the rows."""

    rows_QK: NDArray[np.int64]
    scores_QK: Array  # cosines


def nearest_rows(queries_QD: NDArray[np.float32], rows_ND: NDArray[np.float32], k: int, block: int = BLOCK) -> Nearest:
    """Returns the k rows most similar to each query, or all rows if there are fewer.

    Args:
        queries_QD, rows_ND: of unit length; the rows may be mapped from a file.
        block: rows compared at once; affects memory but not the result.
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
    """Returns [N] dot products in float64; the value of a row does not depend on the other rows."""
    return (rows_ND.astype(np.float64) * query_D.astype(np.float64)).sum(axis=1)


def _first(rows: NDArray[np.int64], scores: Array, count: int) -> tuple[NDArray[np.int64], Array]:
    order = np.lexsort((rows, -scores))[:count]
    return rows[order], scores[order]
