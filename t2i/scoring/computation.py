"""Computes metrics from extracted features."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t2i.data.shapes.captions import Spec, meaning
from t2i.data.shapes.oracle import Reading, judge
from t2i.data.shapes.vocabulary import HELDOUT_PAIRS, HELDOUT_RELATIONS
from t2i.metrics import METRICS, Features, Inputs, Measured
from t2i.metrics.score import Score
from t2i.scoring.images.collection import Seen
from t2i.scoring.options import Options
from t2i.scoring.selection import Metric


@dataclass
class Case:
    """The pictures of one scoring, as far as they have been seen."""

    captions: list[str] | None  # of the generated pictures
    specs: list[Spec] | None  # what these ask for, where all are in the grammar of the embedded data
    partners: list[int] | None  # the real picture of each caption
    options: Options
    shuffled: Sequence[int] | NDArray[np.int64] = ()  # for each picture, one with another caption
    real: Seen = field(default_factory=Seen)
    fake: Seen = field(default_factory=Seen)
    reconstructed: list[Reading] | None = None  # the real pictures through the run's tokenizer, row by row
    text: dict[str, Features] = field(default_factory=dict)  # extractor's digest -> [N, D] of the captions
    train: Seen = field(default_factory=Seen)  # the pictures that the run was trained on, where a metric needs them
    # score's name -> [N] values, one a picture, whose mean it is; NaN: of a picture that is not counted
    samples: dict[str, NDArray[np.float64]] = field(default_factory=dict, init=False)
    # what a kind of metric gave by an extractor; of these very pictures, so no copy takes it along
    _given: dict[tuple[str, str | None], Mapping[str, Measured]] = field(default_factory=dict, init=False)


def compute(metric: Metric, case: Case) -> list[Score]:
    """The scores of one metric: one, or several whose names begin with its own."""
    digest = None if metric.extractor is None else metric.extractor.digest()
    key = METRICS[metric.kind], digest
    if key not in case._given:
        case._given[key] = metric.of.measure(_inputs(metric, case, digest))
    scores = scored(metric, case._given[key])
    for score in scores:
        if (samples := case._given[key][score.protocol.metric].samples) is not None:
            case.samples[score.name] = samples
    return scores


def scored(metric: Metric, given: Mapping[str, Measured]) -> list[Score]:
    """What a metric gave, each with its protocol."""
    scores = []
    for name, (value, interval, method, bounds, counts, _) in given.items():
        if name == metric.kind or name.startswith(f"{metric.kind}-"):
            protocol = replace(metric.protocol, metric=name)
            if counts is not None:
                protocol = replace(protocol, n_fake=counts[0], n_real=counts[1])
            scores.append(Score(value, protocol, interval, method, bounds))
    return scores


def _inputs(metric: Metric, case: Case, digest: str | None) -> Inputs:
    """What the metric asks for."""
    captions, options = case.captions or [], case.options
    more: dict[str, Any] = {}
    if metric.of.reads == "oracle":
        more = {"outcomes": _judged(case), "groups": unseen(case.specs or [])}
    elif digest is not None:
        more = {
            "text": case.text.get(digest),
            "partners": None if case.partners is None else case.real.features[digest][case.partners],
            "classes": None if metric.extractor is None else metric.extractor.classes,
            "train": case.train.features.get(digest),
        }
    fake, real = (_known(seen, digest) for seen in (case.fake, case.real))
    meanings = [meaning(caption) for caption in captions]
    return Inputs(fake, real, captions, meanings, **more, seed=options.seed, force=options.force)


def _known(seen: Seen, digest: str | None) -> Any:
    """Features, or where no more is known or asked, their moments."""
    if digest in seen.features:
        return seen.features[digest]
    return seen.moments[digest] if digest in seen.moments else np.empty((0, 0), np.float32)


def _judged(case: Case) -> Mapping[str, Mapping[str, NDArray[np.bool_]]]:
    specs = case.specs
    assert specs is not None
    found = {"fake": judge(case.fake.readings, specs)}
    if case.partners is not None:
        found["real"] = judge([case.real.readings[k] for k in case.partners], specs)
    found["shuffled"] = judge(case.fake.readings, [specs[k] for k in case.shuffled])
    if case.reconstructed is not None:
        found["reconstructed"] = judge(case.reconstructed, specs)
    return found


def diversity_scores(metric: Metric, images_NHWC: NDArray[np.uint8], prompts: Sequence[str]) -> list[Score]:
    """Of pictures drawn for it; `prompts` [N] says of which. By pixels: root mean square difference in grey levels."""
    if metric.extractor is None:
        features = (images_NHWC.reshape(len(images_NHWC), -1) / math.sqrt(images_NHWC[0].size)).astype(np.float32)
    else:
        features = metric.extractor.features(images_NHWC)
    return scored(metric, metric.of.measure(Inputs(features, features[:0], prompts)))


def unseen(specs: Sequence[Spec]) -> dict[str, NDArray[np.bool_]]:
    """Which captions ask for what training pictures of the embedded data never show; empty where none does."""
    pairs = [any(pair in HELDOUT_PAIRS for pair in zip(z.shapes, z.colors, strict=True)) for z in specs]
    relations = [any((z.shapes[a], r, z.shapes[b]) in HELDOUT_RELATIONS for a, r, b in z.relations) for z in specs]
    return {
        name: np.array(flags) for name, flags in (("unseen-pair", pairs), ("unseen-relation", relations)) if any(flags)
    }
