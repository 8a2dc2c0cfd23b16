"""Scores one can trust. Three things, three kinds of module:

- an extractor turns pictures into features (`features`, `inception`; `EXTRACTORS` names them);
- a statistic condenses features (`statistics`: count, mean, covariance, in one pass over any number of shards);
- a metric is a pure function of features, statistics or what an oracle read (`METRICS` names them), with its
  uncertainty in `intervals`.

`protocol` binds a value to everything that decided it; a score is never reported without it. A new extractor is one
file and one line in `EXTRACTORS`, a new metric one file with a `Kind` and one line in `METRICS`. Axes: N generated
pictures, M real ones, D features, B pictures of one call. Imports no torch.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.names import resolve

Features = NDArray[np.float32]


# ---- metrics -------------------------------------------------------------------------------------------------------

# What a metric reads of a picture: features of any extractor, of one that also reads captions, of one that classifies,
# or the judgement of the oracle of the embedded data.
Reads = Literal["features", "text", "classes", "oracle"]


# What it needs beside generated and real pictures: a caption of each generated one, captions that the oracle
# understands, several pictures of each caption, the pictures of the training, features of the real pictures or at least
# their `GaussianStats`.
Need = Literal["captions", "drawn", "several", "train", "real", "moments"]


@dataclass(frozen=True)
class Inputs:
    """What a metric is given of one scoring, by one extractor. What its `Kind` does not ask for may be missing.

    Attributes:
        fake: [N, D] of the generated pictures; for a `condensed` kind they may be `GaussianStats`.
        real: [M, D] of the real ones; for a kind that needs no more than `moments` they may be `GaussianStats`.
        captions: [N] of the generated pictures; pictures of one prompt share theirs.
        meanings: [N] labels of what the captions ask for: equal for other words of the same meaning.
        text: [N, D] of the captions.
        partners: [N, D] of the real picture of each caption; None: not all have one.
        classes: [classes, D] of the extractor's classifier.
        train: [T, D] of the pictures that the generator was trained on.
        outcomes: what the oracle judged, of the generated pictures (`fake`), and of others to read that against:
            aspect -> [N] bool each.
        groups: name -> [N] bool, captions that are counted apart.
        seed: decides subsets and bootstraps.
        force: go on with fewer pictures than the rules ask for.
    """

    fake: Features
    real: Features
    captions: Sequence[str] = ()
    meanings: Sequence[Hashable] = ()
    text: Features | None = None
    partners: Features | None = None
    classes: NDArray[np.float32] | None = None
    train: Features | None = None
    outcomes: Mapping[str, Mapping[str, NDArray[np.bool_]]] = field(default_factory=dict)
    groups: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    seed: int = 0
    force: bool = False


class Measured(NamedTuple):
    """A value and how far to trust it; `t2i.metrics.score.Score` is this with its protocol."""

    value: float
    interval: tuple[float, float] | None = None  # 95 %
    method: str | None = None  # of the interval
    bounds: Mapping[str, float] = {}  # what to read it against: `real`, `shuffled`, ...
    counts: tuple[int, int | None] | None = None  # generated and real pictures, where they are not all
    samples: NDArray[np.float64] | None = None  # [N] one a picture, of which the value is the mean; NaN: not counted


@dataclass(frozen=True)
class Kind:
    """A metric, as a line of `METRICS` names it.

    Attributes:
        version: counts changes of the values.
        measure: all its scores, each under the metric's name or one that begins with it and a hyphen. Metrics that share
            their work share one `Kind`, which gives the scores of all.
        needs: what is not there for all pictures.
        usual: scored where no metric is named.
        check: refuses too few pictures before any is seen; called with N, M, D and `force`.
        condensed: with so many features or more, it reads no more of pictures than their `GaussianStats`.
    """

    version: int
    measure: Callable[[Inputs], Mapping[str, Measured]]
    reads: Reads = "features"
    needs: tuple[Need, ...] = ()
    usual: bool = False
    check: Callable[[int, int, int, bool], None] | None = None
    condensed: int | None = None


# name -> "module:Kind"
METRICS: dict[str, str] = {
    "faithfulness": "t2i.metrics.faithfulness:FAITHFULNESS",
    "fid": "t2i.metrics.frechet:FID",
    "fid-infinity": "t2i.metrics.frechet:FID_INFINITY",
    "kid": "t2i.metrics.kernel:KID",
    "cmmd": "t2i.metrics.kernel:CMMD",
    "inception-score": "t2i.metrics.inception_score:INCEPTION_SCORE",
    "precision": "t2i.metrics.neighbours:PRDC_KIND",
    "recall": "t2i.metrics.neighbours:PRDC_KIND",
    "density": "t2i.metrics.neighbours:PRDC_KIND",
    "coverage": "t2i.metrics.neighbours:PRDC_KIND",
    "clip": "t2i.metrics.clip_score:CLIP_SCORE",
    "r-precision": "t2i.metrics.retrieval:R_PRECISION",
    "retrieval": "t2i.metrics.retrieval:RETRIEVAL",
    "diversity": "t2i.metrics.diversity:DIVERSITY",
    "memorisation": "t2i.metrics.neighbours:MEMORISATION",
}


def metric_kind(name: str) -> Kind:
    """The `Kind` of a name in `METRICS`."""
    return resolve(METRICS[name])
