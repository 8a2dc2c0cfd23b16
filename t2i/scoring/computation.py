"""Computes metrics from evidence."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from t2i.data.published.question_files import questions_about_captions
from t2i.data.shapes.captions import Spec, meaning, parse
from t2i.data.shapes.oracle import judge
from t2i.data.shapes.vocabulary import HELDOUT_PAIRS, HELDOUT_RELATIONS
from t2i.data.swaps import exchanged
from t2i.extractors import ImageTextExtractor
from t2i.metrics import Features, Inputs, Metric
from t2i.metrics.clip_score import can_shuffle, derangement
from t2i.metrics.score import Score
from t2i.reader.judging import JudgingReader
from t2i.scoring.images.collection import Images
from t2i.scoring.images.extraction import Evidence
from t2i.scoring.options import ScoringOptions

NOTHING = Evidence()


def compute(
    metrics: Sequence[Metric],
    fake: Evidence,
    real: Evidence,
    options: ScoringOptions,
    train: Evidence = NOTHING,
) -> list[Score]:
    """The scores of all metrics, in their order; of a metric one, or several whose names begin with its own.

    Args:
        fake: of the generated images, with the text features that metrics need.
        real: of the real images, or of a file of statistics.
        train: of the images that a run was trained on, where a metric needs them.
    """
    partners = partners_of(fake, real)
    measured: dict[tuple[object, str | None], list[Score]] = {}  # metrics that share their work are measured once
    scores = []
    for metric in metrics:
        key = metric.measure, metric.protocol.extractor_digest
        if key not in measured:
            measured[key] = metric.measure(_inputs(metric, fake, real, train, partners, options))
        scores += [score for score in measured[key] if _is_of(metric, score)]
    return scores


def _is_of(metric: Metric, score: Score) -> bool:
    return score.protocol.metric == metric.name or score.protocol.metric.startswith(f"{metric.name}-")


def partners_of(fake: Evidence | Images, real: Evidence | Images) -> list[int] | None:
    """For each generated image a real one of the same caption; None unless all have one.

    Where both are of the same captions row by row, the partner is that of the row.
    """
    if fake.captions is None or real.captions is None:
        return None
    if fake.captions == real.captions and list(fake.ids) == list(real.ids):
        return list(range(len(fake.captions)))
    rows = {caption: row for row, caption in reversed(list(enumerate(real.captions)))}
    if any(caption not in rows for caption in fake.captions):
        return None
    return [rows[caption] for caption in fake.captions]


def _inputs(
    metric: Metric,
    fake: Evidence,
    real: Evidence,
    train: Evidence,
    partners: Sequence[int] | None,
    options: ScoringOptions,
) -> Inputs:
    """The part of the evidence that one metric reads."""
    captions, digest = fake.captions or [], metric.protocol.extractor_digest
    more: dict[str, Any] = {}
    if metric.reads == "oracle":
        specs = [spec for spec in map(parse, captions) if spec is not None]
        more = {"outcomes": _judged(fake, real, specs, partners, options.seed), "groups": unseen(specs)}
    elif isinstance(reader := metric.extractor, JudgingReader):
        more = {"judged": _read_by(reader, metric, fake, real, partners, options)}
    elif digest is not None:
        features = real.features.get(digest)
        more = {
            "text": fake.text.get(digest),
            "swapped": _exchanged(metric, captions) if "exchanged" in metric.needs else None,
            "partners": features[partners] if partners is not None and isinstance(features, np.ndarray) else None,
            "classes": None if metric.extractor is None else metric.extractor.classes,
            "train": train.features.get(digest),
        }
    meanings = [meaning(caption) for caption in captions]
    known = {"seed": options.seed, "force": options.force, "protocol": metric.protocol}
    return Inputs(_features(fake, digest), _features(real, digest), captions, meanings, **more, **known)


def _exchanged(metric: Metric, captions: Sequence[str]) -> Features:
    """[N, D] of captions with two attributes exchanged, NaN where they have no two of one kind."""
    swapped = exchanged(captions)
    rows = [row for row, caption in enumerate(swapped) if caption is not None]
    found = cast(ImageTextExtractor, metric.extractor).text_features(
        [caption for caption in swapped if caption is not None]
    )
    features = np.full((len(captions), found.shape[1]), np.nan, np.float32)
    features[rows] = found
    return features


def _read_by(
    reader: JudgingReader,
    metric: Metric,
    fake: Evidence,
    real: Evidence,
    partners: Sequence[int] | None,
    options: ScoringOptions,
) -> Mapping[str, Mapping[str, NDArray[np.float64]]]:
    """What a reader finds in the generated images, in the real ones, and under others' captions."""
    captions = fake.captions or []
    questions = () if metric.reads == "likelihood" else questions_about_captions(captions, options.questions)

    def found_in(features: Features, order: Sequence[int]) -> Mapping[str, NDArray[np.float64]]:
        if metric.reads == "likelihood":
            return {"": reader.likelihoods(features, [captions[k] for k in order])}
        return reader.right(features, [questions[k] for k in order])

    own = range(len(captions))
    found = {"fake": found_in(_features(fake, reader.digest()), own)}
    features = real.features.get(reader.digest())
    if partners is not None and isinstance(features, np.ndarray):
        found["real"] = found_in(features[partners], own)
    meanings = [meaning(caption) for caption in captions]
    if can_shuffle(meanings):
        found["shuffled"] = found_in(_features(fake, reader.digest()), derangement(meanings, options.seed).tolist())
    return found


def _features(evidence: Evidence, digest: str | None) -> Any:
    """Features, their moments where no more is known, or none."""
    return evidence.features.get(digest or "", np.empty((0, 0), np.float32))


def _judged(
    fake: Evidence, real: Evidence, specs: Sequence[Spec], partners: Sequence[int] | None, seed: int
) -> Mapping[str, Mapping[str, NDArray[np.bool_]]]:
    """Verdicts of the oracle on the generated images, on the real ones, and under shuffled captions."""
    found = {"fake": judge(fake.readings, specs)}
    if partners is not None:
        found["real"] = judge([real.readings[k] for k in partners], specs)
    meanings = [meaning(caption) for caption in fake.captions or []]
    if can_shuffle(meanings):
        found["shuffled"] = judge(fake.readings, [specs[k] for k in derangement(meanings, seed)])
    if real.reconstructed:
        found["reconstructed"] = judge(real.reconstructed, specs)
    return found


def diversity_scores(metric: Metric, images_NHWC: NDArray[np.uint8], prompts: Sequence[str]) -> list[Score]:
    """Diversity of several images a prompt; `prompts` [N]. By pixels: root mean square difference in grey levels."""
    features: Features
    if metric.extractor is None:
        features = (images_NHWC.reshape(len(images_NHWC), -1) / math.sqrt(images_NHWC[0].size)).astype(np.float32)
    else:
        features = metric.extractor.features(images_NHWC)
    return metric.measure(Inputs(features, features[:0], prompts, protocol=metric.protocol))


def unseen(specs: Sequence[Spec]) -> dict[str, NDArray[np.bool_]]:
    """Captions that ask for what training images of the embedded data never show; empty where none does."""
    pairs = [any(pair in HELDOUT_PAIRS for pair in zip(z.shapes, z.colors, strict=True)) for z in specs]
    relations = [any((z.shapes[a], r, z.shapes[b]) in HELDOUT_RELATIONS for a, r, b in z.relations) for z in specs]
    return {
        name: np.array(flags) for name, flags in (("unseen-pair", pairs), ("unseen-relation", relations)) if any(flags)
    }
