"""Fidelity and variety apart: precision and recall (Kynkaanniemi et al., 2019), density and coverage (Naeem et al., 2020).

A set covers the balls around its pictures that reach to their k-th nearest neighbour. Precision: the share of generated
pictures in real balls. Recall: of real pictures in generated balls. Density: in how many real balls a generated picture
lies, over k; above 1 where they crowd. Coverage: the share of real balls with a generated picture. All depend on N and M.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t2i.errors import InputError
from t2i.metrics import Inputs, Kind, Measured
from t2i.metrics.neighbours import radii, squared_distances

NEIGHBOUR = 3  # of precision and recall
NEIGHBOUR_OF_DENSITY = 5


@dataclass(frozen=True)
class PRDC:
    precision: float
    recall: float
    density: float
    coverage: float


def prdc(fake: NDArray[np.floating], real: NDArray[np.floating]) -> PRDC:
    """All four of [N, D] generated and [M, D] real features, in three passes over pairs.

    A picture on the edge of a ball is in it: on sets of equal pictures all are 1 (density: M / k), where `<` gives 0.

    Raises:
        InputError: fewer than 6 real or 4 generated pictures.
    """
    # The same distance comes out of different sums in the last digits, and edges are hit wherever pictures repeat.
    slack = 1e-12 * float(np.square(real - real.mean(axis=0, dtype=np.float64)).sum(axis=1).mean())
    real_3, real_5 = (r + slack for r in radii(real, (NEIGHBOUR, NEIGHBOUR_OF_DENSITY)))
    fake_3 = radii(fake, (NEIGHBOUR,))[0] + slack
    precise, recalled, covered = (np.zeros(n, np.bool_) for n in (len(fake), len(real), len(real)))
    balls = 0
    for i, j, block in squared_distances(fake, real):
        rows, columns = slice(i, i + block.shape[0]), slice(j, j + block.shape[1])
        precise[rows] |= (block <= real_3[columns]).any(axis=1)
        recalled[columns] |= (block <= fake_3[rows, None]).any(axis=0)
        inside = block <= real_5[columns]
        covered[columns] |= inside.any(axis=0)
        balls += int(inside.sum())
    density = balls / (NEIGHBOUR_OF_DENSITY * len(fake))
    return PRDC(float(precise.mean()), float(recalled.mean()), density, float(covered.mean()))


def _measure(given: Inputs) -> dict[str, Measured]:
    return {name: Measured(value) for name, value in vars(prdc(given.fake, given.real)).items()}


def _check(n_fake: int, n_real: int, dim: int, force: bool) -> None:
    fewest = NEIGHBOUR_OF_DENSITY + 1
    if min(n_fake, n_real) < fewest:
        raise InputError(f"neighbours among {n_fake} generated and {n_real} real pictures: give at least {fewest}")


PRDC_KIND = Kind(1, _measure, needs=("real",), check=_check)
