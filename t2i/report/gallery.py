"""Makes the images of a report: samples of all runs for the same held-out captions, the best, the worst, the nearest.

Captions and noise are those of `t2i eval score` with the same seed, so the page shows images that were scored. A tokenizer
reconstructs the real images instead.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.data import open_dataset
from t2i.data.record import read_record
from t2i.data.shapes.captions import parse
from t2i.errors import InputError
from t2i.extractors import ImageTextExtractor, open_image_text
from t2i.hardware import device
from t2i.images import ImageArray
from t2i.metrics.reconstruction import psnr
from t2i.report.extremes import Extremes, extremes
from t2i.report.judged import Judged, Pool, clip_scores, judged
from t2i.report.neighbours import Neighbours, find_neighbours
from t2i.report.options import ReportOptions
from t2i.report.runs import ShownRun
from t2i.sampling.trained_with import trained_with
from t2i.scoring.images.collection import Images, Tick, dataset_images
from t2i.scoring.leaks import refuse_leaks
from t2i.scoring.options import ScoreOptions
from t2i.scoring.trial import Trial
from t2i.trained import RECORD

SHOWN = 12  # captions of each split, with the images of every run
AT_ONCE = 32  # images between two updates of the progress


class SplitImages(NamedTuple):
    """Images of the first captions of a split: the real ones and those of each run."""

    split: str
    data: str
    real: list[Judged]
    generated: dict[str, list[Judged]]  # name of the run -> an image for each caption


@dataclass
class Gallery:
    """All images of a page.

    Attributes:
        score: name of the score below each image, e.g. `clip-aligned`; a tokenizer's images have their PSNR in dB.
        notes: warnings for the reader, one sentence each.
    """

    score: str
    splits: list[SplitImages] = field(default_factory=list)
    extremes: dict[str, Extremes] = field(default_factory=dict)
    neighbours: dict[str, Neighbours] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Adds a warning to the page and prints it on the console."""
        self.notes.append(text)
        warnings.warn(text, stacklevel=3)


def make_gallery(runs: Sequence[ShownRun], options: ReportOptions, tick: Tick) -> Gallery | None:
    """Samples with every run and selects the images to show; returns None if no run makes images.

    Raises:
        InputError: there are no held-out captions, or the scorer cannot be opened.
    """
    makers = [run for run in runs if run.makes_images]
    if not makers:
        return None
    scorer = open_image_text(options.scorer, device())
    gallery = Gallery(f"clip-{scorer.clip_name.removeprefix('clip-')}")
    address = options.data or str(makers[0].data["address"])
    splits = _splits(address, makers[0], options)
    _note_data(gallery, makers, address)
    known: dict[str, NDArray] = {}
    for k, split in enumerate(splits):
        pools = {
            run.name: _pool(run, address, split, options, SHOWN if k else options.n, scorer, tick) for run in makers
        }
        gallery.splits.append(_split_images(address, split, pools, scorer))
        for run in makers:
            pool = pools[run.name]
            _note_leaks(gallery, run, pool.captioned)
            if k == 0:
                gallery.extremes[run.name] = extremes(run, pool, gallery.score, options.usual and run.pipe is not None)
                if run.pipe is not None and options.neighbours:
                    try:
                        gallery.neighbours[run.name] = find_neighbours(
                            run, pool, options.neighbours, scorer, tick, known
                        )
                    except InputError as error:
                        gallery.note(f"{run.name} has no neighbours here: its training images cannot be read: {error}")
    _note_scorer(gallery, makers, scorer)
    return gallery


def _splits(address: str, run: ShownRun, options: ReportOptions) -> list[str]:
    """Returns the splits to show; raises InputError if one does not exist."""
    if options.split is not None:
        for split in options.split:
            open_dataset(address, split, run.view)
        return list(options.split)
    splits, problem = [], None
    for split in ("val", "heldout", "test"):
        try:
            # `heldout` of a folder is another name of `test` or `val`
            if not (split == "test" and splits) and open_dataset(address, split, run.view).split == split:
                splits.append(split)
        except InputError as error:
            problem = problem or error
    if not splits:
        raise InputError(f"{problem or f'{address} holds no held-out split'}; or name other captions with --data")
    return splits


# ---- warnings ------------------------------------------------------------------------------------------------------


def _note_data(gallery: Gallery, runs: Sequence[ShownRun], address: str) -> None:
    for run in runs:
        if run.data["address"] != address:
            gallery.note(
                f"{run.name} was trained on {run.data['address']}, but the captions here are from {address}: "
                "its images are not comparable"
            )
    for run in runs:
        if read_record(run.folder / RECORD) is None:
            gallery.note(
                f"{run.name} has no record of its training data ({RECORD} is missing), so it is unknown if these captions "
                "are new to it"
            )


def _note_leaks(gallery: Gallery, run: ShownRun, captioned: Images) -> None:
    with warnings.catch_warnings(action="ignore"):
        leak = refuse_leaks(run.folder, captioned, None, allow=True)
    if leak is not None:
        gallery.note(f"{run.name} was {leak} shown here, split {captioned.split}: these are not held out for it")


def _note_scorer(gallery: Gallery, runs: Sequence[ShownRun], scorer: ImageTextExtractor) -> None:
    """Warns if the scorer knows other data, or took part in the training of a run."""
    shapes = all(parse(one.caption) for group in gallery.splits for one in group.real)
    if scorer.name == "shapes" and not shapes:
        gallery.note(
            f"the scores of images are by {gallery.score}, which knows rendered shapes and says little about other images; "
            "name a CLIP folder with --scorer clip:DIR"
        )
    for run in runs:
        role = run.pipe and trained_with(run.pipe.text_encoder, run.pipe.manifest, None).get(scorer.digest())
        if role:
            gallery.note(f"{gallery.score} was the {role} of {run.name} in training, so it overrates its images")


# ---- images --------------------------------------------------------------------------------------------------------


def _pool(
    run: ShownRun, address: str, split: str, options: ReportOptions, n: int, scorer: ImageTextExtractor, tick: Tick
) -> Pool:
    """Returns the real images of the first captions, and the run's image for each."""
    captioned = dataset_images(address, split, min(n, len(open_dataset(address, split, run.view))), run.view)
    real = [image for chunk in captioned.chunks(range(len(captioned))) for image in chunk]
    trial = None
    if run.pipe is not None:
        settings = ScoreOptions(target=str(run.folder), seed=options.seed)
        trial = Trial(run.folder, run.pipe, captioned, settings, None)
    generated: list[ImageArray] = []
    what = f"{run.name} on {split}"
    for start in range(0, len(captioned), AT_ONCE):
        tick(what, start, len(captioned))
        rows = range(start, min(start + AT_ONCE, len(captioned)))
        if trial is not None:
            generated += trial.images_at(rows)
        elif run.tokenizer is not None:
            generated += list(run.tokenizer.decode(run.tokenizer.encode(np.stack([real[k] for k in rows]))))
    tick(what, len(captioned), len(captioned))
    if trial is None:
        return Pool(captioned, real, generated, psnr(np.stack(generated), np.stack(real)))
    return Pool(captioned, real, generated, clip_scores(scorer, generated, captioned.captions or []))


def _split_images(address: str, split: str, pools: Mapping[str, Pool], scorer: ImageTextExtractor) -> SplitImages:
    first = next(iter(pools.values()))
    captions = (first.captioned.captions or [])[:SHOWN]
    scores = clip_scores(scorer, first.real[:SHOWN], captions)
    return SplitImages(
        split,
        address,
        judged(first.real[:SHOWN], captions, scores.tolist()),
        {name: judged(pool.generated[:SHOWN], captions, pool.scores[:SHOWN].tolist()) for name, pool in pools.items()},
    )
