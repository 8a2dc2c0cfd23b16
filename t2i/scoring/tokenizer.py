"""Scores a tokenizer: how near pictures come through its tokens and back to themselves, one by one and as a set."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from t2i.data import View
from t2i.families import load_tokenizer
from t2i.hardware import device
from t2i.images import ImageArray
from t2i.metrics.intervals import estimated, mean_estimate
from t2i.metrics.reconstruction import perceptual, psnr, ssim
from t2i.metrics.score import Protocol, Score
from t2i.scoring.images.collection import Tick, dataset_pictures
from t2i.scoring.images.extraction import look
from t2i.scoring.leaks import refuse_leaks
from t2i.scoring.options import TokenizerOptions
from t2i.scoring.plan import plan, protocol_of, see_and_compute, see_real

VERSION = 1
Compare = Callable[[ImageArray, ImageArray], NDArray[np.float64]]


def score_tokenizer(options: TokenizerOptions, tick: Tick) -> list[Score]:
    """PSNR and SSIM, LPIPS with its weights, and all usual metrics of reconstructions as if they were generated.

    Their Frechet distance is called `rfid`. The data and how pictures become square are those of the training.

    Raises:
        InputError: no such run, data or weights, or held-out pictures that it was trained on.
    """
    run = options.run
    tokenizer = load_tokenizer(run)
    tokenizer.to(torch.device(device()))
    own = next(iter(tokenizer.components().values()))[0]["data"]
    view = View(tokenizer.resolution, own["fit"], None, own["split_seed"])
    real = dataset_pictures(options.data or own["address"], options.split, options.n, view)
    comparisons: dict[str, Compare] = {"psnr": psnr, "ssim": ssim}
    if options.lpips is not None:
        from t2i.vqvae.perceptual import load_lpips

        comparisons["lpips-vgg"] = partial(perceptual, load_lpips(str(options.lpips)))
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in comparisons}

    def chunks(rows: Sequence[int]) -> Iterator[list[ImageArray]]:
        for chunk in real.chunks(rows):
            true = np.stack(chunk)
            made = tokenizer.decode(tokenizer.encode(true))
            for name, compare in comparisons.items():
                found[name].append(compare(made, true))
            yield list(made)

    fake = replace(real, name=str(run), chunks=chunks)
    leak = refuse_leaks(run, real, real, options.allow_leak)
    base = protocol_of(real, fake, options, sampling="reconstruction", checkpoint=tokenizer.digest(), leak=leak)
    partners = list(range(len(real)))
    metrics, case = plan(base, fake, real, partners, {}, None, options)
    see = partial(look, tick=tick)
    see_real(metrics, case, real, see)
    scores = [_renamed(score) for score in see_and_compute(metrics, case, fake, see, True)]
    return [*(_pixels(base, name, np.concatenate(parts)) for name, parts in found.items()), *scores]


def _renamed(score: Score) -> Score:
    if score.protocol.metric != "fid":
        return score
    return replace(score, protocol=replace(score.protocol, metric="rfid"))


def _pixels(base: Protocol, name: str, values: NDArray[np.float64]) -> Score:
    value, interval, method, _, _, _ = estimated(mean_estimate(values), {})
    return Score(value, replace(base, metric=name, metric_version=VERSION), interval, method and "normal")
