"""Scores a run, or pictures from a file or folder, against real pictures: `score_run` and `score_pictures`.

All that a score needs of the real pictures is computed before any is drawn, in case that fails. Every score carries its
protocol; what depends on captions is bounded by the real pictures (ceiling) and by others' captions (floor).
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from t2i.data import View, open_dataset
from t2i.data.shapes.oracle import read
from t2i.distributed import Ranks
from t2i.errors import InputError
from t2i.extractors import open_image_text
from t2i.families import Reconstructs
from t2i.hardware import device
from t2i.images import ImageArray
from t2i.metrics.score import Score
from t2i.pipeline import TextToImagePipeline, trained_with
from t2i.scoring.comparison import Samples
from t2i.scoring.computation import Case, diversity_scores
from t2i.scoring.images.collection import (
    SHOWN,
    Pictures,
    Seen,
    Tick,
    dataset_partners,
    dataset_pictures,
    prompt_pictures,
)
from t2i.scoring.images.extraction import ALONE, look
from t2i.scoring.images.reference import Reference, open_reference
from t2i.scoring.images.sources import open_pictures
from t2i.scoring.images.store import FeatureFile
from t2i.scoring.leaks import refuse_leaks
from t2i.scoring.options import Options
from t2i.scoring.plan import Real, See, chosen_by, partners_of, plan, protocol_of, see_and_compute, see_real
from t2i.scoring.selection import Metric
from t2i.scoring.trial import Trial
from t2i.weights import INDEX, shipped

DIVERSE = 4  # pictures a prompt for the diversity, of the first `SHOWN` prompts


DEFAULTS = Options()


Show = Callable[[Sequence[ImageArray], Sequence[str]], None]


def silent(what: str, done: int, total: int) -> None:
    """Shows no progress."""


def score_run(
    run: Path | str,
    data: str | None = None,
    split: str = "val",
    n: int | None = None,
    options: Options = DEFAULTS,
    tick: Tick = silent,
    show: Show | None = None,
    **more: Any,
) -> list[Score]:
    """Draws one picture for the first caption of each of n real pictures, and scores them.

    Args:
        run: a run directory, or what else `TextToImagePipeline.from_pretrained` reads.
        data: address of the captioned pictures; None: what the run was trained on.
        n: None: 1,000, or all where there are fewer.
        tick: called with what is going on, how many pictures are done and of how many.
        show: called with the first 24 generated pictures and their captions.
        more: as `score_settings` takes it.

    Raises:
        InputError: no such run, data, metric or weights, or a score that the rules forbid.
    """
    (found,) = score_settings(run, data, split, n, [options], tick, show, **more)
    return found


def score_settings(
    run: Path | str,
    data: str | None,
    split: str,
    n: int | None,
    variants: Sequence[Options],
    tick: Tick = silent,
    show: Show | None = None,
    against: str | None = None,
    prompts: Path | None = None,
    ranks: Ranks = ALONE,
    store: FeatureFile | None = None,
    keep: Samples | None = None,
) -> Iterator[list[Score]]:
    """`score_run` for each of several options, which differ in truncation, guidance and settings alone.

    The real pictures are seen once, and every setting is tried on one picture before any is scored.

    Args:
        against: instead of `data`: pictures, whose captions are drawn where they have some; statistics of pictures; or
            another run.
        prompts: a file of captions to draw, instead of those of the real pictures.
        ranks: the processes that share the pictures; all but the main one yield no scores.
        store: keeps features.
        keep: is given what each picture scored.
    """
    pipe = TextToImagePipeline.from_pretrained(run, device())
    own, options = pipe.manifest["config"]["data"], variants[0]
    address = own["address"] if data is None else data
    if against is None and prompts is None and (address, split) == (own["address"], "train"):
        warnings.warn("these are the captions that the run was trained on, not held-out ones", stacklevel=3)
    view = View(options.resolution or own["resolution"], own["fit"], None, own["split_seed"])
    asked, real = _sides(address, split, n, view, against, prompts, options)
    chooser = open_image_text(options.reranker, device()) if options.best_of > 1 else None
    trials = [Trial(run, pipe, asked, variant, chooser) for variant in variants]
    fakes = [trial.pictures() for trial in trials]
    for trial in trials:
        next(trial.drawn([0]))  # a wrong knob is told now, not when all real pictures have been seen
    base = trials[0].marked(protocol_of(real, fakes[0], options))
    if real is None:
        base = replace(base, data=asked.name, data_digest=asked.digest)
    partners = list(range(len(asked))) if real is asked else partners_of(asked, real)
    digest = None if chooser is None else chooser.digest()
    see = partial(look, tick=tick, ranks=ranks, store=store)
    trained_on = partial(_training_pictures, own)
    roles = trained_with(pipe, options.clip)
    metrics, case = plan(base, fakes[0], real, partners, roles, digest, options, trained=True)
    whole = None
    if prompts is None and real is asked and asked.split is not None:
        noted = View(own["resolution"], "center" if own["fit"] == "random" else own["fit"], None, own["split_seed"])
        whole = asked if noted == view else dataset_pictures(address, split, n, noted)
    leak = refuse_leaks(pipe.home, asked, whole, options.allow_leak)
    see_real(metrics, case, real, see, trained_on)
    if ranks.is_main and case.specs is not None and isinstance(pipe.sampler, Reconstructs) and real is asked:
        every = asked.chunks(range(len(asked)))
        case.reconstructed = [reading for chunk in every for reading in read(pipe.sampler.reconstruct(np.stack(chunk)))]
    for trial, fake in zip(trials, fakes, strict=True):
        own_metrics = [
            metric._replace(protocol=trial.marked(replace(metric.protocol, leak=leak))) for metric in metrics
        ]
        trial_case = replace(case, fake=Seen())
        yield _score_trial(trial, own_metrics, trial_case, fake, partial(see, show=show is not None), ranks.is_main)
        if ranks.is_main and show is not None:
            show(trial_case.fake.first, (fake.captions or [])[:SHOWN])
        if keep is not None:
            keep.take(fake, trial_case.samples)


def _sides(
    address: str, split: str, n: int | None, view: View, against: str | None, prompts: Path | None, options: Options
) -> tuple[Pictures, Real]:
    """(whose captions are drawn, what the pictures are compared with)."""
    if against is None:
        asked = dataset_pictures(address, split, n, view) if prompts is None else prompt_pictures(prompts, n)
        return asked, asked if prompts is None else None
    drawn = is_run(against)
    real = None if drawn else open_real(against, options, n if prompts is None else None)
    if prompts is not None:
        asked = prompt_pictures(prompts, n)
    elif isinstance(real, Pictures) and real.captions is not None:
        asked = real
    elif isinstance(real, Reference) and real.split is not None:
        asked = _asked_of(real, n, view)
    else:
        asked = dataset_pictures(address, split, n, view)
    return asked, drawn_by(against, asked, options) if drawn else real


def _asked_of(reference: Reference, n: int | None, view: View) -> Pictures:
    """The pictures of a data set that a file of statistics is of, for their captions."""
    assert reference.split is not None and reference.n is not None
    view = replace(view, resolution=reference.resolution or view.resolution)
    asked = dataset_pictures(reference.name, reference.split, n or reference.n, view)
    if len(asked) == reference.n and asked.digest != reference.digest:
        raise InputError(
            f"{reference.path} was made of other pictures than {reference.name}, split {reference.split}, holds now; make "
            "it anew with t2i eval reference"
        )
    return asked


def is_run(place: str) -> bool:
    """Whether a model lies there, as opposed to pictures."""
    path = Path(place).expanduser()
    if not path.exists():
        return place in shipped()
    return path.is_dir() and any((path / name).exists() for name in ("checkpoints", "config.yaml", INDEX))


def open_real(against: str, options: Options, n: int | None = None) -> Pictures | Reference:
    """Statistics, or pictures from a folder or file.

    Raises:
        InputError: neither is there.
    """
    path = Path(against).expanduser()
    if path.suffix.lower() in (".safetensors", ".npz"):
        if (reference := open_reference(path)) is not None:
            return reference
    return open_pictures(against, n, options.skip_broken)


def drawn_by(run: str, asked: Pictures, options: Options) -> Pictures:
    """What another run draws for the same captions, with its own settings."""
    plain = Options(seed=options.seed)
    return Trial(run, TextToImagePipeline.from_pretrained(run, device()), asked, plain, None).pictures()


def _training_pictures(own: Mapping[str, Any]) -> Pictures:
    """All pictures that the run with this data config was trained on."""
    view = View(own["resolution"], own["fit"], own["limit"], own["split_seed"])
    return dataset_pictures(own["address"], "train", len(open_dataset(own["address"], "train", view)), view)


def _score_trial(
    trial: Trial, metrics: Sequence[Metric], case: Case, fake: Pictures, see: See, main: bool
) -> list[Score]:
    diverse = [metric for metric in metrics if metric.kind == "diversity"]
    scores = see_and_compute([metric for metric in metrics if metric not in diverse], case, fake, see, main)
    if diverse and main:
        shown, captions = range(len(fake))[:SHOWN], fake.captions or []
        several = np.concatenate(
            [np.stack(chunk) for k in range(DIVERSE) for chunk in trial.drawn(shown, ["again", k])]
        )
        for metric in diverse:
            protocol = replace(metric.protocol, captions=f"first {len(shown)}, {DIVERSE} pictures each")
            its = metric._replace(protocol=protocol)
            scores += diversity_scores(its, several, [captions[k] for k in shown] * DIVERSE)
    return scores


def score_pictures(
    place: str,
    against: str | None = None,
    n: int | None = None,
    options: Options = DEFAULTS,
    tick: Tick = silent,
    data: str | None = None,
    split: str = "val",
    ranks: Ranks = ALONE,
    store: FeatureFile | None = None,
    keep: Samples | None = None,
) -> list[Score]:
    """Scores the pictures in a folder, a .tar or an .npz, of any size, with their captions if they have some.

    Args:
        place: the generated pictures.
        against: real pictures, all of which are the reference; statistics of them; or a run, which draws the captions.
        n: pictures of `place` that are scored; None: all.
        data: instead of `against`: address of captioned pictures, of which those of the same captions are real.
        ranks, store, keep: as `score_settings` takes them.

    Raises:
        InputError: no such pictures, metric or weights, a broken picture, or a score that the rules forbid.
    """
    fake = open_pictures(place, n, options.skip_broken)
    real: Real = None
    if data is not None:
        real = _same_captions(fake, data, split, options)
    elif against is not None:
        real = drawn_by(against, fake, options) if is_run(against) else open_real(against, options)
    base, digest = chosen_by(protocol_of(real, fake, options, checkpoint=fake.digest), fake)
    see = partial(look, tick=tick, ranks=ranks, store=store)
    metrics, case = plan(base, fake, real, partners_of(fake, real), {}, digest, options)
    see_real(metrics, case, real, see)
    scores = see_and_compute(metrics, case, fake, see, ranks.is_main)
    if keep is not None:
        keep.take(fake, case.samples)
    return scores


def _same_captions(fake: Pictures, data: str, split: str, options: Options) -> Pictures:
    if fake.captions is None:
        raise InputError(
            f"not all pictures in {fake.name} have captions, by which those of {data} would be found; compare with pictures "
            "by --against"
        )
    resolution = options.resolution or fake.resolution
    if resolution is None:
        raise InputError(
            f"pictures in {fake.name} are not squares of one size; say that of the real ones by --resolution"
        )
    return dataset_partners(data, split, fake.captions, View(resolution))
