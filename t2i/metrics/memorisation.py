"""Does the generator copy its training pictures? Neither FID nor CLIP score sees it.

Real pictures that were held out from the training lie at some distance from their nearest training picture. Generated
ones that lie nearer than nearly all of these are copies, or as good as (after Meehan et al., 2020).
"""

import numpy as np
from numpy.typing import NDArray

from t2i.errors import InputError
from t2i.metrics import Inputs, Kind, Measured
from t2i.metrics.intervals import wilson
from t2i.metrics.neighbours import nearest

SHARE = 0.05  # of held-out pictures that are called near


def memorised(
    fake: NDArray[np.floating], real: NDArray[np.floating], train: NDArray[np.floating]
) -> tuple[NDArray[np.bool_], float]:
    """Which generated pictures are nearer to a training picture than 95 % of the held-out ones, and how near all are.

    Args:
        fake, real, train: features [N, D] of generated, [M, D] of held-out and [T, D] of training pictures.

    Returns:
        [N] flags, of which a generator that copies nothing has about 5 %; and the median distance of generated pictures
        from their nearest training picture over that of held-out ones: about 1, and near 0 for copies.

    Raises:
        InputError: half of the held-out pictures are training pictures.
    """
    ours, theirs = nearest(fake, train)[1], nearest(real, train)[1]
    middle = float(np.median(theirs))
    if middle == 0:
        raise InputError("half of the real pictures are training pictures, and cannot tell copies; score held-out ones")
    return ours < np.quantile(theirs, SHARE), float(np.median(ours)) / middle


def _measure(given: Inputs) -> dict[str, Measured]:
    assert given.train is not None
    near, ratio = memorised(given.fake, given.real, given.train)
    interval, bounds = wilson(int(near.sum()), len(near)), {"held-out pictures": SHARE}
    share = Measured(float(near.mean()), interval, "wilson", bounds, samples=near.astype(np.float64))
    return {"memorisation": share, "memorisation-distance-ratio": Measured(ratio, bounds={"held-out pictures": 1.0})}


MEMORISATION = Kind(1, _measure, needs=("train", "real"))
