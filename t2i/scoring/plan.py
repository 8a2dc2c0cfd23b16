"""What one scoring goes through, whoever made the pictures: their protocol, the metrics that apply, the real side, the rest."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from t2i.data.shapes.captions import meaning, parse
from t2i.extractors import Extractor, ImageTextExtractor
from t2i.hardware import device
from t2i.metrics.clip_score import derangement
from t2i.metrics.score import Protocol, Score
from t2i.scoring.computation import Case, compute
from t2i.scoring.images.collection import Pictures, Seen
from t2i.scoring.images.extraction import Eye
from t2i.scoring.images.reference import Reference
from t2i.scoring.options import Options
from t2i.scoring.selection import (
    Metric,
    Missing,
    check_sizes,
    choose_metrics,
    leave_out_the_chooser,
    open_extractors,
    refuse_or_mark,
)

Real = Pictures | Reference | None  # pictures, what a file says of pictures, or nothing to compare with


See = Callable[..., Seen]  # `look`, told how: by which processes, with what progress


def protocol_of(real: Real, fake: Pictures, options: Options, **more: Any) -> Protocol:
    """What all metrics have in common."""
    source = fake if real is None else real
    skipped = {"generated": fake.skipped, "real": 0 if real is None else real.skipped}
    return Protocol(
        metric="",
        metric_version=0,
        extractor=None,
        extractor_digest=None,
        n_real=real.n if isinstance(real, Reference) else None if real is None else len(real),
        n_fake=len(fake),
        data=source.name,
        data_digest=source.digest,
        split=source.split,
        captions="first, 1 picture each" if fake.captions else None,
        resize=None,
        resolution=source.resolution if source.resolution == fake.resolution else None,
        seed=options.seed,
        sizes=_sizes(real, fake),
        skipped=", ".join(f"{count} {which}" for which, count in skipped.items() if count) or None,
        named=options.named,
        **more,
    )


def _sizes(real: Real, fake: Pictures) -> str | None:
    """Where sizes differ, in words."""
    told = [f"generated {fake.sizes}"] if fake.sizes else []
    if real is not None and real.sizes:
        told.append(f"real {real.sizes}")
    if not told and real is not None and real.resolution and fake.resolution and real.resolution != fake.resolution:
        told.append(f"generated {fake.resolution}, real {real.resolution} pixels a side")
    return "; ".join(told) or None


def partners_of(fake: Pictures, real: Real) -> list[int] | None:
    """For each generated picture a real one of the same caption; None unless all have one."""
    if real is None or real.captions is None or fake.captions is None:
        return None
    rows = {caption: row for row, caption in reversed(list(enumerate(real.captions)))}
    if any(caption not in rows for caption in fake.captions):
        return None
    return [rows[caption] for caption in fake.captions]


def plan(
    base: Protocol,
    fake: Pictures,
    real: Real,
    partners: list[int] | None,
    roles: Mapping[str, str],
    chooser: str | None,
    options: Options,
    trained: bool = False,
) -> tuple[list[Metric], Case]:
    """Chooses the metrics, and does all that can fail without a picture.

    Args:
        roles: digest -> what that encoder did in training.
        chooser: digest of the encoder that chose the pictures among candidates.
        trained: the pictures of its training can be had.
    """
    captions = fake.captions
    parsed = [parse(caption) for caption in captions or []]
    extractors = open_extractors(options, device())
    missing = _missing(fake, real, parsed, trained, extractors)
    metrics = refuse_or_mark(choose_metrics(base, extractors, missing, options), roles, options.force)
    if chooser is not None:
        metrics = leave_out_the_chooser(metrics, chooser, options)
    metrics = check_sizes(metrics, options.force)
    kinds = {metric.kind for metric in metrics}
    _warn(metrics, missing, base)
    specs = None if "drawn" in missing else [spec for spec in parsed if spec is not None]
    case = Case(captions, specs, partners, options)
    if captions is not None and kinds & {"clip", "faithfulness"}:
        case.shuffled = derangement([meaning(caption) for caption in captions], options.seed)
        if partners is None and isinstance(real, Pictures):
            warnings.warn(
                f"no real-image scores: not all captions in {fake.name} are among those of {real.name}", stacklevel=3
            )
    for metric in metrics:
        if metric.of.reads == "text" and captions is not None:
            reader = cast(ImageTextExtractor, metric.extractor)
            if reader.digest() not in case.text:
                case.text[reader.digest()] = reader.text_features(captions)
    return metrics, case


def see_real(
    metrics: Sequence[Metric], case: Case, real: Real, see: See, train: Callable[[], Pictures] | None = None
) -> None:
    """Sees what generated pictures are compared with.

    Args:
        train: opens the pictures that a run was trained on.
    """
    eyes = eyes_of(metrics)
    if isinstance(real, Pictures):
        read = case.partners is not None and any(metric.kind == "faithfulness" for metric in metrics)
        case.real = see(real, "real pictures", eyes, read)
    elif real is not None:
        case.real = real.seen(eyes)
    if train is not None and (copying := [metric for metric in metrics if "train" in metric.of.needs]):
        case.train = see(train(), "training pictures", eyes_of(copying), False)


def _missing(
    fake: Pictures, real: Real, parsed: Sequence[object], trained: bool, extractors: Sequence[Extractor]
) -> Missing:
    """What metrics may need and there is not, and why."""
    captions = fake.captions
    missing: dict[str | tuple[str, str], str] = {}
    if captions is None:
        missing |= dict.fromkeys(("captions", "drawn", "several"), f"not all pictures in {fake.name} have captions")
    elif None in parsed:
        odd = captions[parsed.index(None)]
        missing["drawn"] = f"the oracle reads drawn shapes, and no caption of these is {odd[:80]!r}"
    if not trained:
        missing["train"] = f"{fake.name} tells nothing of the pictures it was trained on"
        if captions is not None and min(Counter(captions).values()) < 2:
            missing["several"] = f"not every caption in {fake.name} has several pictures"
    elif real is not None and real.split == "train":
        missing["train"] = "the real pictures are of the training split, and cannot tell copies; score another split"
    if real is None:
        missing |= dict.fromkeys(("real", "moments"), "there are no real pictures; name some with --against or --data")
    elif isinstance(real, Reference):
        for extractor in extractors:
            for need, features in (("real", True), ("moments", False)):
                if why := real.why_not(extractor, features):
                    missing[extractor.digest(), need] = why
    return missing


def _warn(metrics: Sequence[Metric], missing: Missing, base: Protocol) -> None:
    """Of what is scored all the same, and says less than it seems to."""
    if "drawn" in missing and any(metric.protocol.extractor in ("shapes", "aligned") for metric in metrics):
        warnings.warn(
            "the embedded scorer was trained on drawn shapes: of other pictures its scores say little", stacklevel=4
        )
    if base.sizes is not None:
        warnings.warn(
            f"pictures differ in size ({base.sizes}): each extractor resizes them, and the protocol says so",
            stacklevel=4,
        )


def eyes_of(metrics: Sequence[Metric]) -> list[Eye]:
    """Their extractors, each once, and whether moments are enough for all metrics by it."""
    extractors: dict[str, Extractor] = {}
    whole: set[str] = set()
    for metric in metrics:
        if (eye := metric.extractor) is not None:
            extractors[eye.digest()] = eye
            if metric.of.condensed is None or eye.dim < metric.of.condensed:
                whole.add(eye.digest())
    return [Eye(eye, digest in whole) for digest, eye in extractors.items()]


def see_and_compute(metrics: Sequence[Metric], case: Case, fake: Pictures, see: See, main: bool) -> list[Score]:
    """Sees the generated pictures; on the main process, the scores."""
    oracle = any(metric.kind == "faithfulness" for metric in metrics)
    case.fake = see(fake, "generated pictures", eyes_of(metrics), oracle)
    return [score for metric in metrics for score in compute(metric, case)] if main else []


def chosen_by(base: Protocol, fake: Pictures) -> tuple[Protocol, str | None]:
    """The protocol of pictures that an encoder chose among candidates, and its digest."""
    if not fake.chosen:
        return base, None
    digest = str(fake.chosen["digest"])
    return replace(base, reranking=reranking(fake.chosen["best_of"], fake.chosen["scorer"], digest)), digest


def reranking(best_of: int, name: str, digest: str) -> str:
    """How a protocol says that an encoder chose the pictures."""
    return f"best of {best_of} by {name} {digest}"
