"""Frechet distances as metrics, of any extractor's features: FID with the FID Inception, `fid-clip-...`, `fd-dinov2-...`.

FID-infinity (Chong & Forsyth, 2020): the distance of N pictures is nearly a + c / N, and a is what is left of it for
infinitely many. The bias of the real pictures' number stays.
"""

import numpy as np
from numpy.typing import NDArray

from t2i.metrics import Inputs, Kind, Measured
from t2i.metrics.frechet import Reference, check_sample_size, distance, frechet_distance
from t2i.metrics.intervals import frechet_intervals

BOOTSTRAPPED_DIM = 512  # the 100 draws of a wider Frechet distance take minutes
SIZES = 15  # of subsets, from a quarter of the pictures to all


def fid_infinity(fake: NDArray[np.floating], reference: Reference, *, seed: int = 0) -> float:
    """The Frechet distance of [N, D] features extrapolated to infinitely many generated pictures.

    The line is fitted to nested random subsets, drawn from `seed`. It may be below 0 for equal distributions.

    Raises:
        ValueError: fewer than 8 pictures.
    """
    if len(fake) < 8:
        raise ValueError(f"a quarter of {len(fake)} pictures has no covariance")
    order = np.random.default_rng(seed).permutation(len(fake))
    sizes = np.unique(np.linspace(len(fake) / 4, len(fake), SIZES).round().astype(int))
    values = [distance(Reference.of(fake[order[:size]]), reference) for size in sizes]
    return float(np.polyfit(1.0 / sizes, values, 1)[1])


def _measure(given: Inputs) -> dict[str, Measured]:
    reference = Reference.of(given.real)
    value = frechet_distance(given.fake, reference, force=given.force)
    if reference.dim > BOOTSTRAPPED_DIM:
        return {"fid": Measured(value)}
    interval = frechet_intervals(given.fake, reference, seed=given.seed).expected
    return {"fid": Measured(value, interval, "bootstrap, of the expected value at this N")}


def _measure_infinity(given: Inputs) -> dict[str, Measured]:
    return {"fid-infinity": Measured(fid_infinity(given.fake, Reference.of(given.real), seed=given.seed))}


FID = Kind(2, _measure, needs=("moments",), usual=True, check=check_sample_size, condensed=BOOTSTRAPPED_DIM + 1)
FID_INFINITY = Kind(1, _measure_infinity, needs=("moments",), check=check_sample_size)
