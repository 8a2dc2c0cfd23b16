"""Shapley values of words for a score: what each adds to it, averaged over all orders in which words may come (Shapley, 1953)."""

from collections.abc import Callable, Sequence
from math import factorial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i import seeding

EXACT = 10  # words up to which all their sets are tried
ORDERS = 200  # sampled where there are more

Sets = Sequence[frozenset[int]]


class Shares(NamedTuple):
    """values sum to whole - none."""

    values: NDArray[np.float64]
    whole: float  # the score with all words
    none: float  # and with none


def shapley(count: int, score: Callable[[Sets], Sequence[float]], seed: int = 0) -> Shares:
    """Values of `count` players; exact up to EXACT, else the mean over ORDERS orders drawn from `seed`.

    Args:
        score: of sets of players, many at once.
    """
    if count <= EXACT:
        return _exact(count, score)
    orders = [np.argsort(seeding.uniform(seed, "shapley", [k], count)[0]).tolist() for k in range(ORDERS)]
    return _along(count, score, orders)


def _exact(count: int, score: Callable[[Sets], Sequence[float]]) -> Shares:
    sets = [frozenset(i for i in range(count) if code >> i & 1) for code in range(2**count)]
    found = np.array(score(sets), np.float64)
    values = np.zeros(count)
    for code, members in enumerate(sets):
        for i in set(range(count)) - members:
            weight = factorial(len(members)) * factorial(count - len(members) - 1) / factorial(count)
            values[i] += weight * (found[code | 1 << i] - found[code])
    return Shares(values, float(found[-1]), float(found[0]))


def _along(count: int, score: Callable[[Sets], Sequence[float]], orders: Sequence[Sequence[int]]) -> Shares:
    """The mean over orders of what each player adds to those before it."""
    paths = [[frozenset(order[:k]) for k in range(count + 1)] for order in orders]
    sets = list(dict.fromkeys(one for path in paths for one in path))
    found = dict(zip(sets, score(sets), strict=True))
    values = np.zeros(count)
    for order, path in zip(orders, paths, strict=True):
        for i, before, after in zip(order, path, path[1:], strict=False):
            values[i] += (found[after] - found[before]) / len(orders)
    return Shares(values, float(found[frozenset(range(count))]), float(found[frozenset()]))
