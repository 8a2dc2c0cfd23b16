"""Scores a run, or images from a file or folder, against real images: `score_run` and `score_images`.

Both take the same steps: open the two sides, plan, refuse, extract the real images, extract the generated ones, compute.
Real images are extracted before any image is generated. Every score has its protocol. Scores that depend on captions have
bounds: the score of the real images (ceiling) and that of shuffled captions (floor).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from t2i.data.shapes.oracle import Reading, read
from t2i.distributed import Ranks
from t2i.families import Reconstructs
from t2i.hardware import device
from t2i.images import ImageArray
from t2i.metrics import Features, Metric
from t2i.metrics.score import Score
from t2i.pipeline import TextToImagePipeline
from t2i.sampling.reranking import open_chooser
from t2i.sampling.trained_with import trained_with
from t2i.scoring.comparison import Samples
from t2i.scoring.computation import compute, diversity_scores
from t2i.scoring.images.collection import SHOWN, Images, Tick, dataset_images, silent
from t2i.scoring.images.extraction import ALONE, Evidence, Pass
from t2i.scoring.images.store import FeatureFile
from t2i.scoring.leaks import refuse_leaks
from t2i.scoring.options import ScoreOptions
from t2i.scoring.plan import Real, caption_features, extract_fake, extract_real, extract_train, plan, protocol_of
from t2i.scoring.sides import sides_of_images, sides_of_run, training_images, training_view, view_of
from t2i.scoring.trial import Trial

DIVERSE = 4  # images of each of the first `SHOWN` prompts, for the diversity

Show = Callable[[Sequence[ImageArray], Sequence[str]], None]


def score_run(
    options: ScoreOptions,
    tick: Tick = silent,
    show: Show | None = None,
    ranks: Ranks = ALONE,
    store: FeatureFile | None = None,
    keep: Samples | None = None,
) -> list[Score]:
    """Samples one image for the first caption of each of n real images, and scores them.

    Args:
        options: `target` is a run directory, or another address for `TextToImagePipeline.from_pretrained`.
        tick: called with the name of the stage, the number of finished images and the total.
        show: called with the first 24 generated images and their captions.
        ranks: processes that share the images; only the main one returns scores.
        store: keeps features.
        keep: receives the score of every image.

    Raises:
        InputError: there is no such run, data, metric or weight file, or the rules forbid a score.
    """
    (scores,) = score_settings([options], Pass(tick, ranks, store), show, keep)
    return scores


def score_images(
    options: ScoreOptions,
    tick: Tick = silent,
    ranks: Ranks = ALONE,
    store: FeatureFile | None = None,
    keep: Samples | None = None,
) -> list[Score]:
    """Scores the images in a folder, a .tar or an .npz, of any size, with their captions if all have one.

    Args:
        options: `target` holds the generated images. `against` names real images, their statistics, or a run that samples
            the captions. `data`, instead of `against`, names captioned images: those with the same captions are the real
            ones.
        tick, ranks, store, keep: as in `score_run`.

    Raises:
        InputError: there are no such images, metric or weights, an image is broken, or the rules forbid a score.
    """
    how = Pass(tick, ranks, store)
    fake, real = sides_of_images(options)
    base = protocol_of(real, fake, options, checkpoint=fake.digest)
    metrics = plan(base, fake, real, options, chooser=str(fake.chosen["digest"]) if fake.chosen else None)
    text = caption_features(metrics, fake.captions)
    real_evidence = extract_real(metrics, real, fake, how)
    fake_evidence = replace(extract_fake(metrics, fake, how), text=text)
    if not ranks.is_main:
        return []
    scores = compute(metrics, fake_evidence, real_evidence, options)
    if keep is not None:
        keep.take(fake, scores)
    return scores


def score_settings(
    variants: Sequence[ScoreOptions],
    how: Pass = Pass(),  # noqa: B008
    show: Show | None = None,
    keep: Samples | None = None,
    needed: Sequence[str] = (),
) -> Iterator[list[Score]]:
    """Runs `score_run` for each of several options, which differ only in truncation, guidance and settings.

    Real images are extracted once. Every setting samples one image before any is scored.

    Args:
        needed: names in `METRICS` that must be available.
    """
    options = variants[0]
    pipe = TextToImagePipeline.from_pretrained(options.target, device())
    own = pipe.manifest["config"]["data"]
    _warn_of_training_captions(options, own)
    captioned, real = sides_of_run(options, own)
    chooser = open_chooser(options.reranker, device()) if options.best_of > 1 else None
    trials = [Trial(options.target, pipe, captioned, variant, chooser) for variant in variants]
    for trial in trials:
        trial.images_at([0])  # refuses a wrong setting before all real images are read

    metrics = _plan_trial(trials[0], real, needed)
    leak = _refuse_leaks(pipe, options, own, captioned, real)
    metrics = [replace(metric, protocol=replace(metric.protocol, leak=leak)) for metric in metrics]
    known = _known(metrics, pipe, captioned, real, how)

    for trial in trials:
        trial_metrics = [replace(metric, protocol=trial.marked(metric.protocol)) for metric in metrics]
        fake, scores = _score_trial(trial, trial_metrics, known, how, show is not None)
        if how.ranks.is_main and show is not None:
            show(fake.first, (captioned.captions or [])[:SHOWN])
        if how.ranks.is_main and keep is not None:
            keep.take(captioned, scores)
        yield scores


def _plan_trial(trial: Trial, real: Real, needed: Sequence[str]) -> list[Metric]:
    """Chooses the metrics of a run; see `plan`."""
    pipe, options, fake = trial.pipe, trial.options, trial.images()
    base = trial.marked(protocol_of(real, fake, options))
    if real is None:
        base = replace(base, data=trial.captioned.name, data_digest=trial.captioned.digest)
    roles = trained_with(pipe.text_encoder, pipe.manifest, options.clip)
    chooser = None if trial.chooser is None else trial.chooser.digest()
    return plan(base, fake, real, options, roles, chooser, needed)


class _Known(NamedTuple):
    """Evidence that is the same for all settings."""

    text: dict[str, Features]
    real: Evidence
    train: Evidence


def _known(metrics: Sequence[Metric], pipe: TextToImagePipeline, captioned: Images, real: Real, how: Pass) -> _Known:
    """Extracts the captions, the real images, and the training images if a metric needs them."""
    text = caption_features(metrics, captioned.captions)
    real_evidence, train = extract_real(metrics, real, captioned, how), Evidence()
    if how.ranks.is_main and real is captioned:
        real_evidence.reconstructed = _reconstructed(metrics, pipe, captioned)
    if any("train" in metric.needs for metric in metrics):
        train = extract_train(metrics, training_images(pipe.manifest["config"]["data"]), how)
    return _Known(text, real_evidence, train)


def _score_trial(
    trial: Trial, metrics: Sequence[Metric], known: _Known, how: Pass, show: bool
) -> tuple[Evidence, list[Score]]:
    """Extracts the images of one setting, and computes their scores on the main process."""
    plain = [metric for metric in metrics if metric.name != "diversity"]
    fake = replace(extract_fake(plain, trial.images(), how, show), text=known.text)
    if not how.ranks.is_main:
        return fake, []
    scores = compute(plain, fake, known.real, trial.options, known.train)
    return fake, scores + _diversity([metric for metric in metrics if metric.name == "diversity"], trial)


def _warn_of_training_captions(options: ScoreOptions, own: dict[str, Any]) -> None:
    chosen = options.data or own["address"], options.split
    if options.against is None and options.prompts is None and chosen == (own["address"], "train"):
        warnings.warn("the run was trained on these captions; they are not held out", stacklevel=4)


def _refuse_leaks(
    pipe: TextToImagePipeline, options: ScoreOptions, own: dict[str, Any], captioned: Images, real: Real
) -> str | None:
    """Refuses captions that the run was trained on, and images if the captions belong to a data set."""
    images, view = None, training_view(own)
    if real is captioned and captioned.split is not None:
        images = captioned
        if view != view_of(options, own):
            images = dataset_images(captioned.name, captioned.split, len(captioned), view)
    return refuse_leaks(pipe.home, captioned, images, options.allow_leak)


def _reconstructed(metrics: Sequence[Metric], pipe: TextToImagePipeline, captioned: Images) -> list[Reading]:
    """Returns readings of the real images after the run's tokenizer, if it has one and a metric reads the oracle."""
    if not isinstance(pipe.sampler, Reconstructs) or not any(metric.reads == "oracle" for metric in metrics):
        return []
    chunks = captioned.chunks(range(len(captioned)))
    return [reading for chunk in chunks for reading in read(pipe.sampler.reconstruct(np.stack(chunk)))]


def _diversity(metrics: Sequence[Metric], trial: Trial) -> list[Score]:
    """Returns the diversity of several images for each of the first prompts."""
    if not metrics:
        return []
    shown, captions = range(len(trial.captioned))[:SHOWN], trial.captioned.captions or []
    several = [np.stack(chunk) for k in range(DIVERSE) for chunk in trial.sample(shown, ["again", k])]
    prompts, words = [captions[k] for k in shown] * DIVERSE, f"first {len(shown)}, {DIVERSE} pictures each"
    bound = [replace(metric, protocol=replace(metric.protocol, captions=words)) for metric in metrics]
    return [score for metric in bound for score in diversity_scores(metric, np.concatenate(several), prompts)]
