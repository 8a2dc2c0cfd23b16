"""Scores one can trust: pure functions of features, statistics or the judgement of an oracle, with their uncertainty.

- a statistic condenses features (`statistics`: count, mean, covariance, in one pass over any number of shards);
- a metric turns `Inputs` into scores; `METRICS` names them;
- `score` binds a value to its protocol: everything that decided it. No score is reported without one.

A new metric is one file with a `Metric` and one line in `METRICS`. Axes: N generated images, M real ones, D features, B
images of one call. Imports no torch and knows no network.
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

# What a metric reads of an image: features of any extractor, of one that also reads captions, of one that classifies,
# the judgement of the oracle of the embedded data, or what a reader of images finds likely or answers.
Reads = Literal["features", "text", "classes", "oracle", "likelihood", "answers"]

# What it needs beside generated images: a caption of each, captions that the oracle understands, captions
# with two attributes that can be exchanged, questions about captions,
# several images of each caption, the training images, features of the real images or at least their `GaussianStats`.
Need = Literal["captions", "drawn", "exchanged", "asked", "several", "train", "real", "moments"]

NO_PROTOCOL = ScoreProtocol()


@dataclass(frozen=True)
class Inputs:
    """The inputs of a metric in one scoring, from one extractor. A field that the metric does not ask for may be absent.

    Attributes:
        fake: [N, D] of the generated images; for a `condensed` metric they may be `GaussianStats`.
        real: [M, D] of the real ones; for a metric that needs no more than `moments` they may be `GaussianStats`.
        captions: [N] of the generated images; images of one prompt share theirs.
        meanings: [N] labels of what the captions ask for: equal for other words of the same meaning.
        text: [N, D] of the captions.
        swapped: [N, D] of the captions with two attributes exchanged, NaN where they have no two of one kind.
        partners: [N, D] of the real image of each caption; None: not all have one.
        classes: [classes, D] of the extractor's classifier.
        train: [T, D] of the images that the generator was trained on.
        outcomes: judgements of the oracle, of the generated images (`fake`) and of others to compare with:
            aspect -> [N] bool each.
        groups: name -> [N] bool, captions that are counted apart.
        judged: values of a reader, of the generated images (`fake`) and of others to compare with: aspect -> [N] each, NaN
            where an image is not counted; the aspect "" is all of them.
        seed: decides subsets and bootstraps.
        force: go on with fewer images than the rules ask for.
        protocol: of the scores, but for the name of the metric.
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
        """A score under this protocol.

        Args:
            counts: generated and real images, where they are not all.
            more: further fields of `Score`.
        """
        sizes = {} if counts is None else {"n_fake": counts[0], "n_real": counts[1]}
        return Score(value, replace(self.protocol, metric=metric, **sizes), **more)


@dataclass(frozen=True)
class Metric:
    """A metric; `METRICS` names it, and a scoring binds it to an extractor and a protocol.

    Attributes:
        version: counts changes of the values.
        measure: all its scores, each under the metric's name or one that begins with it and a hyphen. Metrics that share
            their work share one `Metric`, which gives the scores of all.
        needs: what must be there for all images.
        usual: scored where no metric is named.
        check: refuses too few images before any is read; called with N, M, D and `force`.
        least_meanings: captions of different meanings that it needs.
        condensed: from so many features on, it reads no more of images than their `GaussianStats`.
        name: in `METRICS`.
        extractor: None: it reads pixels, or what the oracle read.
        protocol: of its scores.
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
        """Its name as in a score's, without N: `fid-shapes`."""
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
    """The metric of a name in `METRICS`."""
    return replace(resolve(METRICS[name]), name=name)
