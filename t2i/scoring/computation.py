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
    """Returns the scores of all metrics, in their order. A metric gives one score, or several whose names start with its own.

    Args:
        fake: evidence from the generated images, with the text features that metrics need.
        real: evidence from the real images, or from a file of statistics.
        train: evidence from the training images, for metrics that need it.
    """
    partners = partners_of(fake, real)
    measured: dict[tuple[object, str | None], list[Score]] = {}  # metrics with the same `measure` share one call
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
    """Returns for each generated image the row of a real image with the same caption; None unless all have one.

    If both sides have the same captions in the same order, the partner is the same row.
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
    """Returns the part of the evidence that one metric reads."""
    captions, digest = fake.captions or [], metric.protocol.extractor_digest
    more: dict[str, Any] = {}
    if metric.reads == "oracle":
        specs = [spec for spec in map(parse, captions) if spec is not None]
        more = {"outcomes": _judged(fake, real, specs, partners, options.seed), "groups": unseen(specs)}
    elif isinstance(reader := metric.extractor, JudgingReader):
        more = {"judged": _judged_by_reader(reader, metric, fake, real, partners, options)}
    elif digest is not None:
        features = real.features.get(digest)
        more = {
            "text": fake.text.get(digest),
            "swapped": _swapped_features(metric, captions) if "exchanged" in metric.needs else None,
            "partners": features[partners] if partners is not None and isinstance(features, np.ndarray) else None,
            "classes": None if metric.extractor is None else metric.extractor.classes,
            "train": train.features.get(digest),
        }
    meanings = [meaning(caption) for caption in captions]
    known = {"seed": options.seed, "force": options.force, "protocol": metric.protocol}
    return Inputs(_features(fake, digest), _features(real, digest), captions, meanings, **more, **known)


def _swapped_features(metric: Metric, captions: Sequence[str]) -> Features:
    """Returns [N, D] features of captions with two attributes swapped; NaN for captions without two of one kind."""
    swapped = {row: caption for row, caption in enumerate(exchanged(captions)) if caption is not None}
    text = cast(ImageTextExtractor, metric.extractor).text_features(list(swapped.values()))
    features = np.full((len(captions), text.shape[1]), np.nan, np.float32)
    features[list(swapped)] = text
    return features


def _judged_by_reader(
    reader: JudgingReader,
    metric: Metric,
    fake: Evidence,
    real: Evidence,
    partners: Sequence[int] | None,
    options: ScoringOptions,
) -> Mapping[str, Mapping[str, NDArray[np.float64]]]:
    """Returns a reader's judgements of the generated images, of the real ones, and of shuffled captions."""
    captions = fake.captions or []
    questions = () if metric.reads == "likelihood" else questions_about_captions(captions, options.questions)

    def judge_images(features: Features, order: Sequence[int]) -> Mapping[str, NDArray[np.float64]]:
        if metric.reads == "likelihood":
            return {"": reader.likelihoods(features, [captions[k] for k in order])}
        return reader.right(features, [questions[k] for k in order])

    in_order = range(len(captions))
    judged = {"fake": judge_images(_features(fake, reader.digest()), in_order)}
    features = real.features.get(reader.digest())
    if partners is not None and isinstance(features, np.ndarray):
        judged["real"] = judge_images(features[partners], in_order)
    meanings = [meaning(caption) for caption in captions]
    if can_shuffle(meanings):
        shuffled = derangement(meanings, options.seed).tolist()
        judged["shuffled"] = judge_images(_features(fake, reader.digest()), shuffled)
    return judged


def _features(evidence: Evidence, digest: str | None) -> Any:
    """Returns the features, or their moments if only these are known, or no rows."""
    return evidence.features.get(digest or "", np.empty((0, 0), np.float32))


def _judged(
    fake: Evidence, real: Evidence, specs: Sequence[Spec], partners: Sequence[int] | None, seed: int
) -> Mapping[str, Mapping[str, NDArray[np.bool_]]]:
    """Returns the oracle's verdicts on the generated images, on the real ones, and on shuffled captions."""
    verdicts = {"fake": judge(fake.readings, specs)}
    if partners is not None:
        verdicts["real"] = judge([real.readings[k] for k in partners], specs)
    meanings = [meaning(caption) for caption in fake.captions or []]
    if can_shuffle(meanings):
        verdicts["shuffled"] = judge(fake.readings, [specs[k] for k in derangement(meanings, seed)])
    if real.reconstructed:
        verdicts["reconstructed"] = judge(real.reconstructed, specs)
    return verdicts


def diversity_scores(metric: Metric, images_NHWC: NDArray[np.uint8], prompts: Sequence[str]) -> list[Score]:
    """Returns the diversity of several images for each prompt. On pixels: the root mean square difference in grey levels.

    Args:
        prompts: [N] the prompt of each image.
    """
    features: Features
    if metric.extractor is None:
        features = (images_NHWC.reshape(len(images_NHWC), -1) / math.sqrt(images_NHWC[0].size)).astype(np.float32)
    else:
        features = metric.extractor.features(images_NHWC)
    return metric.measure(Inputs(features, features[:0], prompts, protocol=metric.protocol))


def unseen(specs: Sequence[Spec]) -> dict[str, NDArray[np.bool_]]:
    """Returns flags [N] of captions with a combination that is held out from the embedded training data.

    Kinds of combinations that no caption has are not included.
    """
    pairs = [any(pair in HELDOUT_PAIRS for pair in zip(z.shapes, z.colors, strict=True)) for z in specs]
    relations = [any((z.shapes[a], r, z.shapes[b]) in HELDOUT_RELATIONS for a, r, b in z.relations) for z in specs]
    return {
        name: np.array(flags) for name, flags in (("unseen-pair", pairs), ("unseen-relation", relations)) if any(flags)
    }
