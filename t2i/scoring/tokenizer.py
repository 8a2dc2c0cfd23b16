"""Scores a tokenizer: what images lose through its tokens and back, one by one and as a set."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from t2i.data import View
from t2i.families import ImageTokenizer
from t2i.families.tokenizers import load_tokenizer
from t2i.hardware import device
from t2i.images import ImageArray
from t2i.metrics.intervals import mean_estimate
from t2i.metrics.reconstruction import perceptual, psnr, ssim
from t2i.metrics.score import Score, ScoreProtocol
from t2i.scoring.computation import compute
from t2i.scoring.images.collection import Images, Tick, dataset_images
from t2i.scoring.images.extraction import Pass
from t2i.scoring.leaks import refuse_leaks
from t2i.scoring.options import TokenizerOptions
from t2i.scoring.plan import caption_features, extract_fake, extract_real, plan, protocol_of

VERSION = 1
Values = NDArray[np.float64]
Compare = Callable[[ImageArray, ImageArray], Values]


def score_tokenizer(options: TokenizerOptions, tick: Tick) -> list[Score]:
    """PSNR and SSIM, LPIPS with its weights, and all usual metrics of reconstructions as if they were generated.

    Their Frechet distance is called `rfid`. The data and the way images become square are those of the training.

    Raises:
        InputError: no such run, data or weights, or held-out images that it was trained on.
    """
    run = options.run
    tokenizer = load_tokenizer(run)
    tokenizer.to(torch.device(device()))
    own = next(iter(tokenizer.components().values()))[0]["data"]
    view = View(tokenizer.resolution, own["fit"], None, own["split_seed"])
    real = dataset_images(options.data or own["address"], options.split, options.n, view)
    comparisons = _comparisons(options)
    compared: dict[str, list[Values]] = {name: [] for name in comparisons}
    fake = replace(real, name=str(run), chunks=_through(tokenizer, real, comparisons, compared))

    leak = refuse_leaks(run, real, real, options.allow_leak)
    base = protocol_of(real, fake, options, sampling="reconstruction", checkpoint=tokenizer.digest(), leak=leak)
    metrics = plan(base, fake, real, options)
    text, how = caption_features(metrics, fake.captions), Pass(tick)

    real_evidence = extract_real(metrics, real, fake, how)
    fake_evidence = replace(extract_fake(metrics, fake, how), text=text)
    scores = [_renamed(score) for score in compute(metrics, fake_evidence, real_evidence, options)]
    return [*(_pixel_score(base, name, np.concatenate(parts)) for name, parts in compared.items()), *scores]


def _comparisons(options: TokenizerOptions) -> dict[str, Compare]:
    """Name -> comparison of reconstructions with their images, one by one."""
    found: dict[str, Compare] = {"psnr": psnr, "ssim": ssim}
    if options.lpips is not None:
        from t2i.vqvae.perceptual import load_lpips

        found["lpips-vgg"] = partial(perceptual, load_lpips(str(options.lpips)))
    return found


def _through(
    tokenizer: ImageTokenizer, real: Images, comparisons: dict[str, Compare], compared: dict[str, list[Values]]
) -> Callable[[Sequence[int]], Iterator[list[ImageArray]]]:
    """Chunks of reconstructions; the comparisons of each go into `compared`."""

    def chunks(rows: Sequence[int]) -> Iterator[list[ImageArray]]:
        for chunk in real.chunks(rows):
            true = np.stack(chunk)
            made = tokenizer.decode(tokenizer.encode(true))
            for name, compare in comparisons.items():
                compared[name].append(compare(made, true))
            yield list(made)

    return chunks


def _renamed(score: Score) -> Score:
    if score.protocol.metric != "fid":
        return score
    return replace(score, protocol=replace(score.protocol, metric="rfid"))


def _pixel_score(base: ScoreProtocol, name: str, values: Values) -> Score:
    found = mean_estimate(values)
    protocol = replace(base, metric=name, metric_version=VERSION)
    return Score(found.value, protocol, **found.described_interval("normal"))
