"""R-precision (Xu et al., 2018): among its own caption and 99 mismatched ones, how often is a picture nearest its own?

Mismatched captions ask for something else: never one of the same meaning. Instead of drawing the 99 with a seed, and
again with more seeds, the share is the expected one over all draws, which is a hypergeometric probability: of m
mismatched captions b are at least as near as the own one, and none of the b may be among 99 of m.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from t2i.errors import InputError
from t2i.metrics import Inputs, Kind, Measured
from t2i.metrics.intervals import Estimate, Labels, estimated, group_index, mean_estimate
from t2i.metrics.retrieval import TIE
from t2i.metrics.statistics import unit_rows

MISMATCHED = 99
_BLOCK = 1024


def r_precision(
    images: NDArray[np.floating], captions: NDArray[np.floating], meanings: Labels, mismatched: int = MISMATCHED
) -> Estimate:
    """Expected R-precision in [0, 1], by cosine similarity; a mismatched caption as near as the own one beats it.

    Args:
        images: [N, D] image features.
        captions: [N, D] text features of the same encoder, row i the caption of picture i.
        meanings: [N] labels, equal for captions that ask for the same; of these the first is a candidate for others.

    Raises:
        InputError: a picture with fewer than `mismatched` captions of another meaning.
    """
    x, y = unit_rows(images), unit_rows(captions)
    if x.shape != y.shape or len(x) != len(meanings):
        raise ValueError(f"features of pictures {x.shape}, of captions {y.shape}, {len(meanings)} meanings")
    labels, first = np.unique(group_index(meanings), return_index=True)
    others = len(labels) - 1
    if others < mismatched:
        raise InputError(
            f"R-precision sets {mismatched} captions of other meanings beside each, and there are {others}; "
            "score more captions"
        )
    index, candidates = group_index(meanings), y[first]
    beaten = np.empty(len(x), np.int64)
    for i in range(0, len(x), _BLOCK):
        rows = slice(i, i + _BLOCK)
        own = (x[rows] * y[rows]).sum(axis=1, keepdims=True)
        nearer = x[rows] @ candidates.T >= own - TIE
        beaten[rows] = (nearer & (labels != index[rows, None])).sum(axis=1)
    return mean_estimate(hypergeom.pmf(0, others, beaten, mismatched), meanings)


def _measure(given: Inputs) -> dict[str, Measured]:
    assert given.text is not None
    bounds = {"chance": 1 / (MISMATCHED + 1)}
    if given.partners is not None:
        bounds["real"] = r_precision(given.partners, given.text, given.meanings).value
    return {"r-precision": estimated(r_precision(given.fake, given.text, given.meanings), bounds)}


def _check(n_fake: int, n_real: int, dim: int, force: bool) -> None:
    if n_fake <= MISMATCHED:
        raise InputError(f"R-precision of {n_fake} pictures: give at least {MISMATCHED + 1} of different captions")


R_PRECISION = Kind(1, _measure, reads="text", needs=("captions",), check=_check)
