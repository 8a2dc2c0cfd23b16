"""Metrics: pure functions of features, statistics or verdicts of an oracle, with their uncertainty.

- `statistics` condenses features to count, mean and covariance, in one pass over any number of shards.
- A metric turns `Inputs` into scores. `METRICS` lists all metrics.
- `score` combines a value with its protocol, everything that decided it. Every score has a protocol.

A new metric is one file with a `Metric` and one line in `METRICS`. Axes: N generated images, M real ones, D features, B
images of one call. Imports no torch and no network.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from t2i.metrics.score import Score, ScoreProtocol, score_name
from t2i.names import resolve

if TYPE_CHECKING:
    from t2i.extractors import Extractor

Features = NDArray[np.float32]

# Input of a metric: features of any extractor, of one that also reads captions, of one with a classifier, verdicts of the
# oracle of the embedded data, or likelihoods or answers of a reader.
Reads = Literal["features", "text", "classes", "oracle", "likelihood", "answers"]

# Needs of a metric besides generated images: captions, captions that the oracle can read, captions with two attributes to
# swap, questions about captions, several images of each caption, the training images, features of the real images, or at
# least their `GaussianStats`.
Need = Literal["captions", "rendered", "exchanged", "questions", "several", "train", "real", "moments"]

NO_PROTOCOL = ScoreProtocol()


@dataclass(frozen=True)
class Inputs:
    """Inputs of a metric in one scoring, from one extractor. Fields that the metric does not need may be missing.

    Attributes:
        fake: [N, D] features of the generated images; for a `condensed` metric they may be `GaussianStats`.
        real: [M, D] features of the real images; for a metric that needs only `moments` they may be `GaussianStats`.
        captions: [N] captions of the generated images.
        meanings: [N] labels of the captions, equal for captions of the same meaning.
        text: [N, D] features of the captions.
        swapped: [N, D] features of the captions with two attributes swapped, NaN for captions without two of one kind.
        partners: [N, D] features of the real image of each caption; None: not all captions have one.
        classes: [classes, D] weights of the extractor's classifier.
        train: [T, D] features of the training images.
        outcomes: verdicts of the oracle on the generated images (`fake`) and on others to compare with, each aspect ->
            [N] bool.
        groups: name -> [N] bool, subgroups of captions.
        judged: values of a reader for the generated images (`fake`) and for others to compare with, each aspect -> [N],
            with NaN for images that do not count; the aspect "" is the whole.
        seed: seed of subsets and bootstraps.
        force: allows fewer images than a metric requires.
        protocol: protocol of the scores, without the name of the metric.
    """

    fake: Features
    real: Features
    captions: Sequence[str] = ()
    meanings: Sequence[Hashable] = ()
    text: Features | None = None
    swapped: Features | None = None
    partners: Features | None = None
    classes: NDArray[np.float32] | None = None
    train: Features | None = None
    outcomes: Mapping[str, Mapping[str, NDArray[np.bool_]]] = field(default_factory=dict)
    groups: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    judged: Mapping[str, Mapping[str, NDArray[np.float64]]] = field(default_factory=dict)
    seed: int = 0
    force: bool = False
    protocol: ScoreProtocol = NO_PROTOCOL

    def score(self, metric: str, value: float, counts: tuple[int, int | None] | None = None, **more: Any) -> Score:
        """Returns a score with this protocol.

        Args:
            counts: numbers of generated and real images, if not all were used.
            more: other fields of `Score`.
        """
        sizes = {} if counts is None else {"n_fake": counts[0], "n_real": counts[1]}
        return Score(value, replace(self.protocol, metric=metric, **sizes), **more)


@dataclass(frozen=True)
class Metric:
    """A metric of `METRICS`. A scoring adds its extractor and protocol.

    Attributes:
        version: incremented when the values change.
        measure: returns all scores; the name of a score is the metric's name, or starts with it and a hyphen. Metrics that
            are computed together share one `Metric`, which returns the scores of all.
        needs: inputs that all images must have.
        usual: scored by default.
        check: refuses too few images before any is read; called with N, M, D and `force`.
        least_meanings: required number of captions with different meanings.
        condensed: number of features from which on the metric reads only `GaussianStats`.
        name: key in `METRICS`.
        extractor: None: the metric reads pixels, or the oracle.
        protocol: protocol of the scores.
    """

    version: int
    measure: Callable[[Inputs], list[Score]]
    reads: Reads = "features"
    needs: tuple[Need, ...] = ()
    usual: bool = False
    check: Callable[[int, int, int, bool], None] | None = None
    least_meanings: int = 0
    condensed: int | None = None
    name: str = ""
    extractor: "Extractor | None" = None
    protocol: ScoreProtocol = NO_PROTOCOL

    @property
    def title(self) -> str:
        """Returns the name of the score without N, e.g. `fid-shapes`."""
        return score_name(self.protocol).rpartition("@")[0]


# name -> "module:Metric"
METRICS: dict[str, str] = {
    "faithfulness": "t2i.metrics.faithfulness:FAITHFULNESS",
    "fid": "t2i.metrics.frechet:FID",
    "fid-infinity": "t2i.metrics.frechet:FID_INFINITY",
    "kid": "t2i.metrics.kernel:KID",
    "cmmd": "t2i.metrics.kernel:CMMD",
    "inception-score": "t2i.metrics.inception_score:INCEPTION_SCORE",
    "precision": "t2i.metrics.neighbours:PRDC_METRIC",
    "recall": "t2i.metrics.neighbours:PRDC_METRIC",
    "density": "t2i.metrics.neighbours:PRDC_METRIC",
    "coverage": "t2i.metrics.neighbours:PRDC_METRIC",
    "clip": "t2i.metrics.clip_score:CLIP_SCORE",
    "caption-likelihood": "t2i.metrics.reading:CAPTION_LIKELIHOOD",
    "questions": "t2i.metrics.reading:QUESTIONS",
    "r-precision": "t2i.metrics.retrieval:R_PRECISION",
    "retrieval": "t2i.metrics.retrieval:RETRIEVAL",
    "binding": "t2i.metrics.retrieval:BINDING",
    "diversity": "t2i.metrics.diversity:DIVERSITY",
    "memorisation": "t2i.metrics.neighbours:MEMORISATION",
}


def find_metric(name: str) -> Metric:
    """Returns the metric of a name in `METRICS`."""
    return replace(resolve(METRICS[name]), name=name)
