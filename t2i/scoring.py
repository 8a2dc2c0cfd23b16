"""Scores a run on captioned pictures, or a folder of pictures against another: `score_run` and `score_folders`.

All that a score needs of the real pictures is computed before any is drawn, in case that fails. Every score carries its
protocol; what depends on captions is bounded by the real pictures (ceiling) and by others' captions (floor).
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from t2i import seeding
from t2i.data import View
from t2i.data.shapes_captions import meaning, parse
from t2i.data.shapes_oracle import read
from t2i.images import ImageArray
from t2i.metrics import Extractor, ImageTextExtractor
from t2i.metrics.clip_score import derangement
from t2i.metrics.features import digest_folder
from t2i.metrics.protocol import Protocol, Score
from t2i.pipeline import TextToImagePipeline
from t2i.reranking import open_reranker, reranker_name
from t2i.samplers import Reconstructs
from t2i.scoring_metrics import (
    Case,
    Kind,
    Metric,
    Options,
    check_sizes,
    choose_metrics,
    compute,
    diversity_score,
    leave_out_the_chooser,
    open_extractors,
    refuse_or_mark,
)
from t2i.scoring_pictures import SHOWN, Pictures, Seen, Tick, dataset_pictures, folder_pictures, look
from t2i.text import TextConfig, fit_encoder
from t2i.text.aligned import AlignedEncoder

DIVERSE = 4  # pictures a prompt for the diversity, of the first `SHOWN` prompts
DEFAULTS = Options()
DRAWN = 256  # prompts handed to the pipeline at once


def silent(what: str, done: int, total: int) -> None:
    """Shows no progress."""


def score_run(
    run: Path | str,
    data: str | None = None,
    split: str = "val",
    n: int | None = None,
    options: Options = DEFAULTS,
    tick: Tick = silent,
    show: Callable[[Sequence[ImageArray], Sequence[str]], None] | None = None,
) -> list[Score]:
    """Draws one picture for the first caption of each of n real pictures, and scores them.

    Args:
        run: a run directory, or what else `TextToImagePipeline.from_pretrained` reads.
        data: address of the captioned pictures; None: what the run was trained on.
        n: None: 1,000, or all where there are fewer.
        tick: called with what is going on, how many pictures are done and of how many.
        show: called with the first 24 generated pictures and their captions.

    Raises:
        InputError: no such run, data, metric or weights, or a score that the rules forbid.
    """
    (found,) = score_settings(run, data, split, n, [options], tick, show)
    return found


def score_settings(
    run: Path | str,
    data: str | None,
    split: str,
    n: int | None,
    variants: Sequence[Options],
    tick: Tick = silent,
    show: Callable[[Sequence[ImageArray], Sequence[str]], None] | None = None,
) -> Iterator[list[Score]]:
    """`score_run` for each of several options, which differ in truncation, guidance and settings alone.

    The real pictures are seen once, and every setting is tried on one picture before any is scored.
    """
    pipe = TextToImagePipeline.from_pretrained(run, _device())
    own, options = pipe.manifest["config"]["data"], variants[0]
    address = own["address"] if data is None else data
    if (address, split) == (own["address"], "train"):
        warnings.warn("these are the captions that the run was trained on, not held-out ones", stacklevel=3)
    view = View(own["resolution"], own["fit"], None, own["split_seed"])
    real = dataset_pictures(address, split, n, view)
    chooser = open_reranker(options.reranker, _device()) if options.best_of > 1 else None
    trials = [_Trial(pipe, real, variant, chooser) for variant in variants]
    for trial in trials:
        next(trial.drawn([0]))  # a wrong knob is told now, not when all real pictures have been seen
    base = trials[0].marked(_protocol(real, replace(real, name=str(run)), options))
    partners = list(range(len(real)))
    digest = None if chooser is None else chooser.digest()
    metrics, case = _prepare(base, real, real, partners, trained_with(pipe, options), digest, options, tick)
    if case.specs is not None and isinstance(pipe.sampler, Reconstructs):
        case.reconstructed = [
            reading for chunk in real.chunks() for reading in read(pipe.sampler.reconstruct(np.stack(chunk)))
        ]
    for trial in trials:
        fake = replace(real, name=str(run), chunks=lambda trial=trial: trial.drawn(partners))
        own_metrics = [metric._replace(protocol=trial.marked(metric.protocol)) for metric in metrics]
        yield _score_trial(trial, own_metrics, replace(case, fake=Seen()), fake, tick, show)


@dataclass(frozen=True)
class _Trial:
    """One way to draw pictures for the captions of the real ones."""

    pipe: TextToImagePipeline
    real: Pictures
    options: Options
    chooser: ImageTextExtractor | None

    def marked(self, protocol: Protocol) -> Protocol:
        """With what is particular to this way."""
        pipe, options = self.pipe, self.options
        settings = pipe.sampler.tuned(options.settings).settings()
        chooser = self.chooser
        return replace(
            protocol,
            truncation=pipe.truncation if options.truncation is None else options.truncation,
            guidance=pipe.guidance_scale if options.guidance is None else options.guidance,
            temperature=settings.get("temperature"),
            sampling=json.dumps(settings) if settings else None,
            reranking=chooser and reranking(options.best_of, reranker_name(chooser), chooser.digest()),
            run=pipe.manifest["config_hash"],
            checkpoint=pipe.manifest["sha256"],
        )

    def drawn(self, rows: Sequence[int], words: Sequence[str | int] = ()) -> Iterator[list[ImageArray]]:
        options, captions = self.options, self.real.captions or []
        for start in range(0, len(rows), DRAWN):
            part = rows[start : start + DRAWN]
            seeds = [seeding.derive(options.seed, "score", self.real.ids[k], *words) for k in part]
            output = self.pipe(
                [captions[k] for k in part],
                1,
                options.guidance,
                options.truncation,
                seeds,
                output_type="np",
                best_of=options.best_of,
                scorer=self.chooser,
                **options.settings,
            )
            yield list(cast(ImageArray, output.images))


def _score_trial(
    trial: _Trial,
    metrics: Sequence[Metric],
    case: Case,
    fake: Pictures,
    tick: Tick,
    show: Callable[[Sequence[ImageArray], Sequence[str]], None] | None,
) -> list[Score]:
    scores = _see_and_compute(metrics, case, fake, tick)
    captions = fake.captions or []
    for metric in metrics:
        if metric.kind == "diversity":
            shown = range(len(fake))[:SHOWN]
            several = [np.stack(chunk) for k in range(DIVERSE) for chunk in trial.drawn(shown, ["again", k])]
            protocol = replace(metric.protocol, captions=f"first {len(shown)}, {DIVERSE} pictures each")
            scores.append(diversity_score(protocol, np.concatenate(several), [captions[k] for k in shown] * DIVERSE))
    if show is not None:
        show(case.fake.first, captions[:SHOWN])
    return scores


def reranking(best_of: int, name: str, digest: str) -> str:
    """How a protocol says that an encoder chose the pictures."""
    return f"best of {best_of} by {name} {digest}"


def score_folders(
    folder: str, against: str, n: int | None = None, options: Options = DEFAULTS, tick: Tick = silent
) -> list[Score]:
    """Scores the pictures of one folder, of any size, with their captions if they have some, against those of another.

    Args:
        folder: the generated pictures.
        against: the real pictures; all of them are the reference.
        n: pictures of `folder` that are scored; None: all.

    Raises:
        InputError: no such folder, metric or weights, a broken picture, or a score that the rules forbid.
    """
    real, fake = folder_pictures(against, None), folder_pictures(folder, n)
    chosen, digest = fake.chosen or {}, None
    base = _protocol(real, fake, options, checkpoint=fake.digest)
    if chosen:
        digest = str(chosen["digest"])
        base = replace(base, reranking=reranking(chosen["best_of"], chosen["scorer"], digest))
    metrics, case = _prepare(base, fake, real, _partners(fake, real), {}, digest, options, tick)
    return _see_and_compute(metrics, case, fake, tick)


def _protocol(real: Pictures, fake: Pictures, options: Options, **more: Any) -> Protocol:
    """What all metrics have in common."""
    return Protocol(
        metric="",
        metric_version=0,
        extractor=None,
        extractor_digest=None,
        n_real=len(real),
        n_fake=len(fake),
        data=real.name,
        data_digest=real.digest,
        split=real.split,
        captions="first, 1 picture each" if fake.captions else None,
        resize=None,
        resolution=real.resolution if real.resolution == fake.resolution else None,
        seed=options.seed,
        **more,
    )


def _partners(fake: Pictures, real: Pictures) -> list[int] | None:
    """For each generated picture a real one of the same caption; None unless all have one."""
    rows = {caption: row for row, caption in reversed(list(enumerate(real.captions or [])))}
    if fake.captions is None or any(caption not in rows for caption in fake.captions):
        return None
    return [rows[caption] for caption in fake.captions]


def trained_with(pipe: TextToImagePipeline, options: Options) -> dict[str, str]:
    """Digests of the encoders that took part in the training, and what they did."""
    encoder, guide = pipe.text_encoder, pipe.manifest.get("guide_digest")
    text = encoder.digest()
    # the digest of `aligned` also tells its length limit, a scorer's is of the dual encoder alone
    found = {encoder.dual.digest() if isinstance(encoder, AlignedEncoder) else text: "text encoder"}
    if options.clip is not None and encoder.name == "clip":  # whose digest is of the text tower alone
        same = TextConfig(encoder="clip", path=str(options.clip), max_tokens=encoder.max_tokens)
        if fit_encoder(same, []).digest() == text:
            found[digest_folder(options.clip)] = "text encoder"
    return found | ({guide: "guide"} if guide else {})


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _prepare(
    base: Protocol,
    fake: Pictures,
    real: Pictures,
    partners: list[int] | None,
    roles: Mapping[str, str],
    chooser: str | None,
    options: Options,
    tick: Tick,
) -> tuple[list[Metric], Case]:
    """Chooses the metrics, and does all that can fail without a generated picture."""
    captions = fake.captions
    parsed = [parse(caption) for caption in captions or []]
    specs = [spec for spec in parsed if spec is not None]
    missing: dict[Kind, str] = {}
    if captions is None:
        missing = dict.fromkeys(("clip", "faithfulness"), f"not all pictures in {fake.name} have captions")
    elif len(specs) < len(parsed):
        odd = captions[parsed.index(None)]
        missing = {"faithfulness": f"the oracle reads drawn shapes, and no caption of these is {odd[:80]!r}"}
    extractors = open_extractors(options, _device())
    metrics = refuse_or_mark(choose_metrics(base, extractors, missing, options), roles, options.force)
    if chooser is not None:
        metrics = leave_out_the_chooser(metrics, chooser, options)
    check_sizes(metrics, options.force)
    kinds = {metric.kind for metric in metrics}
    if missing and any(metric.protocol.extractor in ("shapes", "aligned") for metric in metrics):
        warnings.warn(
            "the embedded scorer was trained on drawn shapes: of other pictures its scores say little", stacklevel=3
        )
    case = Case(captions, None if missing else specs, partners, options)
    if captions is not None and kinds & {"clip", "faithfulness"}:
        case.shuffled = derangement([meaning(caption) for caption in captions], options.seed)
        if partners is None:
            warnings.warn(
                f"no real-image scores: not all captions in {fake.name} are among those of {real.name}", stacklevel=3
            )
    for metric in metrics:
        if metric.kind == "clip" and captions is not None:
            reader = cast(ImageTextExtractor, metric.extractor)
            case.text[reader.digest()] = reader.text_features(captions)
    case.real = look(real, "real pictures", _eyes(metrics), "faithfulness" in kinds and partners is not None, tick)
    return metrics, case


def _see_and_compute(metrics: Sequence[Metric], case: Case, fake: Pictures, tick: Tick) -> list[Score]:
    oracle = any(metric.kind == "faithfulness" for metric in metrics)
    case.fake = look(fake, "generated pictures", _eyes(metrics), oracle, tick)
    return [score for metric in metrics if metric.kind != "diversity" for score in compute(metric, case)]


def _eyes(metrics: Sequence[Metric]) -> list[Extractor]:
    found = {metric.extractor.digest(): metric.extractor for metric in metrics if metric.extractor is not None}
    return list(found.values())
