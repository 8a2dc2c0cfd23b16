"""Scores a run, or images from a file or folder, against real images: `score_run` and `score_images`.

Both read the same way: open the two sides, plan, refuse, extract the real images, extract the generated ones, compute.
All that a score needs of the real images is there before any image is generated. Every score carries its protocol; what
depends on captions is bounded by the real images (ceiling) and by others' captions (floor).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

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

DIVERSE = 4  # images a prompt for the diversity, of the first `SHOWN` prompts

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
        options: `target` is a run directory, or what else `TextToImagePipeline.from_pretrained` reads.
        tick: called with what is going on, how many images are done and of how many.
        show: called with the first 24 generated images and their captions.
        ranks: the processes that share the images; all but the main one return no scores.
        store: keeps features.
        keep: receives the score of every image.

    Raises:
        InputError: no such run, data, metric or weights, or a score that the rules forbid.
    """
    (found,) = score_settings([options], Pass(tick, ranks, store), show, keep)
    return found


def score_images(
    options: ScoreOptions,
    tick: Tick = silent,
    ranks: Ranks = ALONE,
    store: FeatureFile | None = None,
    keep: Samples | None = None,
) -> list[Score]:
    """Scores the images in a folder, a .tar or an .npz, of any size, with their captions if all have one.

    Args:
        options: `target` holds the generated images; `against` real images, all of which are the reference, statistics
            of them, or a run that samples the captions; `data`, instead, captioned images, of which those of the same
            captions are the real ones.
        tick, ranks, store, keep: as `score_run` takes them.

    Raises:
        InputError: no such images, metric or weights, a broken image, or a score that the rules forbid.
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
    """`score_run` for each of several options, which differ in truncation, guidance and settings alone.

    The real images are extracted once, and every setting samples one image before any is scored.

    Args:
        needed: names in `METRICS` that may not be left out.
    """
    options = variants[0]
    pipe = TextToImagePipeline.from_pretrained(options.target, device())
    own = pipe.manifest["config"]["data"]
    _warn_of_training_captions(options, own)
    asked, real = sides_of_run(options, own)
    chooser = open_chooser(options.reranker, device()) if options.best_of > 1 else None
    trials = [Trial(options.target, pipe, asked, variant, chooser) for variant in variants]
    for trial in trials:
        trial.images_at([0])  # a wrong setting is refused now, not after all real images were read

    base = trials[0].marked(protocol_of(real, trials[0].images(), options))
    if real is None:
        base = replace(base, data=asked.name, data_digest=asked.digest)
    roles, digest = (
        trained_with(pipe.text_encoder, pipe.manifest, options.clip),
        None if chooser is None else chooser.digest(),
    )
    metrics = plan(base, trials[0].images(), real, options, roles, digest, needed)
    leak = _refuse_leaks(pipe, options, own, asked, real)
    text = caption_features(metrics, asked.captions)

    real_evidence = extract_real(metrics, real, asked, how)
    if how.ranks.is_main and real is asked:
        real_evidence.reconstructed = _reconstructed(metrics, pipe, asked)
    train = Evidence()
    if any("train" in metric.needs for metric in metrics):
        train = extract_train(metrics, training_images(own), how)

    for trial in trials:
        bound = [replace(one, protocol=trial.marked(replace(one.protocol, leak=leak))) for one in metrics]
        fake, scores = _score_trial(trial, bound, text, (real_evidence, train), how, show is not None)
        if how.ranks.is_main and show is not None:
            show(fake.first, (asked.captions or [])[:SHOWN])
        if how.ranks.is_main and keep is not None:
            keep.take(asked, scores)
        yield scores


def _score_trial(
    trial: Trial,
    metrics: Sequence[Metric],
    text: dict[str, Features],
    real_and_train: tuple[Evidence, Evidence],
    how: Pass,
    show: bool,
) -> tuple[Evidence, list[Score]]:
    """Extracts the images of one way of sampling, and on the main process computes their scores."""
    plain = [metric for metric in metrics if metric.name != "diversity"]
    fake = replace(extract_fake(plain, trial.images(), how, show), text=text)
    if not how.ranks.is_main:
        return fake, []
    real, train = real_and_train
    scores = compute(plain, fake, real, trial.options, train)
    return fake, scores + _diversity([metric for metric in metrics if metric.name == "diversity"], trial)


def _warn_of_training_captions(options: ScoreOptions, own: dict[str, Any]) -> None:
    asked = options.data or own["address"], options.split
    if options.against is None and options.prompts is None and asked == (own["address"], "train"):
        warnings.warn("these are the captions that the run was trained on, not held-out ones", stacklevel=4)


def _refuse_leaks(
    pipe: TextToImagePipeline, options: ScoreOptions, own: dict[str, Any], asked: Images, real: Real
) -> str | None:
    """Looks for captions and images that the run was trained on; images only where the captions are those of a data set."""
    whole, view = None, training_view(own)
    if real is asked and asked.split is not None:
        whole = asked
        if view != view_of(options, own):
            whole = dataset_images(asked.name, asked.split, len(asked), view)
    return refuse_leaks(pipe.home, asked, whole, options.allow_leak)


def _reconstructed(metrics: Sequence[Metric], pipe: TextToImagePipeline, asked: Images) -> list[Reading]:
    """Readings of the real images through the run's tokenizer, where it has one and the oracle is asked."""
    if not isinstance(pipe.sampler, Reconstructs) or not any(metric.reads == "oracle" for metric in metrics):
        return []
    chunks = asked.chunks(range(len(asked)))
    return [reading for chunk in chunks for reading in read(pipe.sampler.reconstruct(np.stack(chunk)))]


def _diversity(metrics: Sequence[Metric], trial: Trial) -> list[Score]:
    """Diversity within the first prompts, of several images each."""
    if not metrics:
        return []
    shown, captions = range(len(trial.asked))[:SHOWN], trial.asked.captions or []
    several = [np.stack(chunk) for k in range(DIVERSE) for chunk in trial.sample(shown, ["again", k])]
    prompts, words = [captions[k] for k in shown] * DIVERSE, f"first {len(shown)}, {DIVERSE} pictures each"
    bound = [replace(metric, protocol=replace(metric.protocol, captions=words)) for metric in metrics]
    return [score for metric in bound for score in diversity_scores(metric, np.concatenate(several), prompts)]
