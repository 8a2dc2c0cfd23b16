"""Plans a scoring: protocol, metrics and everything else that can fail before an image is read."""

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

from t2i.data.published.question_files import questions_about_captions
from t2i.data.shapes.captions import meaning, parse
from t2i.data.swaps import exchanged
from t2i.errors import InputError
from t2i.extractors import Extractor, ImageTextExtractor
from t2i.hardware import device
from t2i.metrics import METRICS, Features, Metric, find_metric
from t2i.metrics.clip_score import can_shuffle
from t2i.metrics.score import ScoreProtocol
from t2i.names import counted
from t2i.scoring.computation import partners_of
from t2i.scoring.images.collection import Images
from t2i.scoring.images.extraction import Evidence, Pass, extract
from t2i.scoring.images.reference import Reference
from t2i.scoring.options import ScoringOptions
from t2i.scoring.selection import Missing, choose_metrics, open_extractors, refuse_or_mark

CHROMA = re.compile(r" \(4:\d:\d\)")  # in the description of a JPEG
Real = Images | Reference | None  # real images, a file of their statistics, or nothing


def protocol_of(real: Real, fake: Images, options: ScoringOptions, **more: Any) -> ScoreProtocol:
    """Returns the protocol that all metrics share, with the encoder that selected the images, if any."""
    source = fake if real is None else real
    skipped = {"generated": fake.skipped, "real": 0 if real is None else real.skipped}
    chosen = fake.chosen
    if chosen:
        more["reranking"] = reranking(chosen["best_of"], chosen["scorer"], str(chosen["digest"]))
    return ScoreProtocol(
        n_real=real.n if isinstance(real, Reference) else None if real is None else len(real),
        n_fake=len(fake),
        data=source.name,
        data_digest=source.digest,
        split=source.split,
        captions="first, 1 picture each" if fake.captions else None,
        resolution=source.resolution if source.resolution == fake.resolution else None,
        seed=options.seed,
        sizes=_sizes(real, fake),
        formats=formats_that_differ(real, fake),
        skipped=", ".join(f"{count} {which}" for which, count in skipped.items() if count) or None,
        named=options.named,
        **more,
    )


def reranking(best_of: int, name: str, digest: str) -> str:
    """Returns the entry of a protocol about the encoder that selected the images."""
    return f"best of {best_of} by {name} {digest}"


def _sizes(real: Real, fake: Images) -> str | None:
    """Describes the sizes of both sides if they differ."""
    parts = [f"generated {fake.sizes}"] if fake.sizes else []
    if real is not None and real.sizes:
        parts.append(f"real {real.sizes}")
    if not parts and real is not None and real.resolution and fake.resolution and real.resolution != fake.resolution:
        parts.append(f"generated {fake.resolution}, real {real.resolution} pixels a side")
    return "; ".join(parts) or None


def formats_that_differ(real: Real, fake: Images) -> str | None:
    """Describes the file formats of both sides if they are known and differ."""
    if real is None or real.formats is None or fake.formats is None:
        return None
    sides = [fake.formats, real.formats]
    if not all(map(CHROMA.search, sides)):  # of grey images, or of statistics that an earlier version wrote
        sides = [CHROMA.sub("", one) for one in sides]
    return None if sides[0] == sides[1] else f"generated {fake.formats}, real {real.formats}"


def plan(
    base: ScoreProtocol,
    fake: Images,
    real: Real,
    options: ScoringOptions,
    roles: Mapping[str, str] | None = None,
    chooser: str | None = None,
    needed: Sequence[str] = (),
) -> list[Metric]:
    """Chooses the metrics, each bound to an extractor and a protocol.

    Args:
        roles: digest -> role of that encoder in training; None: the images are not a run's.
        chooser: digest of the encoder that selected the images among candidates.
        needed: names in `METRICS` that must be available.

    Raises:
        InputError: a metric is unknown or not available, or its encoder took part in the training.
    """
    extractors = open_extractors(options, device())
    missing = _missing(fake, real, extractors, of_a_run=roles is not None)
    if options.reader is not None and fake.captions is not None:
        missing = {**missing, **_missing_questions(fake.captions, options)}
    chosen = choose_metrics(base, extractors, missing, options, chooser, needed)
    metrics = refuse_or_mark(chosen, roles or {}, options.force)
    _warn(metrics, missing, base, fake, real)
    return metrics


def caption_features(metrics: Sequence[Metric], captions: Sequence[str] | None) -> dict[str, Features]:
    """Returns features [N, D] of the captions by the digest of each extractor whose metrics read them."""
    features: dict[str, Features] = {}
    for metric in metrics:
        digest = metric.protocol.extractor_digest or ""
        if metric.reads == "text" and captions is not None and digest not in features:
            features[digest] = cast(ImageTextExtractor, metric.extractor).text_features(captions)
    return features


def extract_fake(metrics: Sequence[Metric], fake: Images, how: Pass, show: bool = False) -> Evidence:
    """Extracts generated images for these metrics."""
    extractors, condensed = extractors_of(metrics)
    return extract(fake, "generated images", extractors, how, condensed, _need_oracle(metrics), show)


def extract_real(metrics: Sequence[Metric], real: Real, fake: Images, how: Pass) -> Evidence:
    """Extracts the real images, or reads their features from a file of statistics."""
    extractors, condensed = extractors_of(metrics)
    if real is None:
        return Evidence()
    if isinstance(real, Reference):
        return real.evidence(extractors, condensed)
    oracle = _need_oracle(metrics) and partners_of(fake, real) is not None
    return extract(real, "real images", extractors, how, condensed, oracle)


def extract_train(metrics: Sequence[Metric], train: Images, how: Pass) -> Evidence:
    """Extracts training images for the metrics that need them."""
    extractors, condensed = extractors_of([metric for metric in metrics if "train" in metric.needs])
    return extract(train, "training images", extractors, how, condensed)


def extractors_of(metrics: Sequence[Metric]) -> tuple[list[Extractor], set[str]]:
    """Returns the extractors, each once, and the digests of those whose moments suffice for all metrics."""
    extractors: dict[str, Extractor] = {}
    whole: set[str] = set()
    for metric in metrics:
        if (extractor := metric.extractor) is not None:
            extractors[extractor.digest()] = extractor
            if metric.condensed is None or extractor.dim < metric.condensed:
                whole.add(extractor.digest())
    return list(extractors.values()), extractors.keys() - whole


def _need_oracle(metrics: Sequence[Metric]) -> bool:
    return any(metric.reads == "oracle" for metric in metrics)


def _missing(fake: Images, real: Real, extractors: Sequence[Extractor], of_a_run: bool) -> Missing:
    """Returns the needs of metrics that are not met, with the reasons."""
    captions, missing = fake.captions, dict[tuple[str, str], str]()
    if captions is None:
        why = f"{fake.captioned or 'none'} of {counted(len(fake), 'image')} in {fake.name} have captions"
        why = f"only {why}" if fake.captioned else why
        missing |= dict.fromkeys((("captions", ""), ("rendered", ""), ("exchanged", ""), ("several", "")), why)
    elif other := next((caption for caption in captions if parse(caption) is None), None):
        missing["rendered", ""] = (
            f"the oracle reads rendered shapes, but caption {other[:80]!r} describes something else"
        )
    if captions is not None and not any(exchanged(captions)):
        missing["exchanged", ""] = "no caption has two attributes of one kind, such as two colours, to swap"
    if captions is not None:
        meanings = len({meaning(caption) for caption in captions})
        for name, least in ((name, find_metric(name).least_meanings) for name in METRICS):
            if meanings < least:
                missing[name, ""] = f"it needs {least} captions of different meanings, got {meanings}"
    if not of_a_run:
        missing["train", ""] = f"{fake.name} has no record of training images"
        if captions is not None and min(Counter(captions).values()) < 2:
            missing["several", ""] = f"not every caption in {fake.name} has several images"
    elif real is not None and real.split == "train":
        missing["train", ""] = (
            "the real images are the training split, so copies cannot be detected; score another split"
        )
    if real is None:
        why = "there are no real images; name some with --against or --data"
        missing |= dict.fromkeys((("real", ""), ("moments", "")), why)
    elif isinstance(real, Reference):
        for extractor in extractors:
            for need, features in (("real", True), ("moments", False)):
                if why := real.why_not(extractor, features):
                    missing[need, extractor.digest()] = why
    return missing


def _missing_questions(captions: Sequence[str], options: ScoringOptions) -> Missing:
    """Returns the reason if there are no questions about these captions."""
    try:
        questions_about_captions(captions, options.questions)
    except InputError as error:
        if options.questions is not None:
            raise
        return {("questions", ""): str(error)}
    return {}


def _warn(metrics: Sequence[Metric], missing: Missing, base: ScoreProtocol, fake: Images, real: Real) -> None:
    """Warns of scores that are weak evidence."""
    reasons = []
    if ("rendered", "") in missing and any(metric.protocol.extractor in ("shapes", "aligned") for metric in metrics):
        reasons.append("the embedded scorer was trained on rendered shapes: its scores say little about other images")
    if base.sizes is not None:
        reasons.append(f"images differ in size ({base.sizes}): each extractor resizes them; the protocol records it")
    if base.formats is not None:
        reasons.append(
            f"file formats differ ({base.formats}): compression alone adds a distance; the protocol records it; store "
            "both sides in one format"
        )
    captions = fake.captions
    if captions is not None and {metric.name for metric in metrics} & {"clip", "faithfulness"}:
        if not can_shuffle([meaning(caption) for caption in captions]):
            reasons.append("no scores of shuffled captions: more than half of the images share one caption")
        if isinstance(real, Images) and partners_of(fake, real) is None:
            reasons.append(f"no real-image scores: not all captions in {fake.name} are among those of {real.name}")
    for reason in reasons:
        warnings.warn(reason, stacklevel=4)
