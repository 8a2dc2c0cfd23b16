"""Shapley values of words for a score: the increase by each word, averaged over all orders of the words (Shapley, 1953)."""

from collections.abc import Callable, Sequence
from math import factorial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i import seeding

EXACT = 10  # up to this many words, all subsets are scored
ORDERS = 200  # random orders for more words

Sets = Sequence[frozenset[int]]


class Shares(NamedTuple):
    """Shapley values, which sum to whole - none."""

    values: NDArray[np.float64]
    whole: float  # the score with all words
    none: float  # the score without words


def shapley(count: int, score: Callable[[Sets], Sequence[float]], seed: int = 0) -> Shares:
    """Computes the values of `count` players, exactly up to EXACT, else as the mean over ORDERS orders drawn from `seed`.

    Args:
        score: returns the scores of several sets of players.
    """
    if count <= EXACT:
        return _exact(count, score)
    orders = [np.argsort(seeding.uniform(seed, "shapley", [k], count)[0]).tolist() for k in range(ORDERS)]
    return _along(count, score, orders)


def _exact(count: int, score: Callable[[Sets], Sequence[float]]) -> Shares:
    sets = [frozenset(i for i in range(count) if code >> i & 1) for code in range(2**count)]
    scores = np.array(score(sets), np.float64)
    values = np.zeros(count)
    for code, members in enumerate(sets):
        for i in set(range(count)) - members:
            weight = factorial(len(members)) * factorial(count - len(members) - 1) / factorial(count)
            values[i] += weight * (scores[code | 1 << i] - scores[code])
    return Shares(values, float(scores[-1]), float(scores[0]))


def _along(count: int, score: Callable[[Sets], Sequence[float]], orders: Sequence[Sequence[int]]) -> Shares:
    """Returns the mean over orders of the increase by each player over those before it."""
    paths = [[frozenset(order[:k]) for k in range(count + 1)] for order in orders]
    sets = list(dict.fromkeys(one for path in paths for one in path))
    scores = dict(zip(sets, score(sets), strict=True))
    values = np.zeros(count)
    for order, path in zip(orders, paths, strict=True):
        for i, before, after in zip(order, path, path[1:], strict=False):
            values[i] += (scores[after] - scores[before]) / len(orders)
    return Shares(values, float(scores[frozenset(range(count))]), float(scores[frozenset()]))
