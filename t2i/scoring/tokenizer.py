"""Scores the reconstructions of a tokenizer, image by image and as a distribution."""

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
    """Computes PSNR, SSIM, LPIPS if its weights are named, and the usual metrics with reconstructions as generated images.

    The Frechet distance of reconstructions is called `rfid`. Data and fit default to those of the training.

    Raises:
        InputError: there is no such run, data or weights, or the run was trained on the images.
    """
    run, comparisons = options.run, _comparisons(options)
    tokenizer = load_tokenizer(run)
    tokenizer.to(torch.device(device()))
    own = next(iter(tokenizer.components().values()))[0]["data"]
    view = View(tokenizer.resolution, own["fit"], None, own["split_seed"])
    real = dataset_images(options.data or own["address"], options.split, options.n, view)
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
    """Returns the metrics that compare each reconstruction with its image, by name."""
    comparisons: dict[str, Compare] = {"psnr": psnr, "ssim": ssim}
    if options.lpips is not None:
        from t2i.vqvae.perceptual import load_lpips

        comparisons["lpips-vgg"] = partial(perceptual, load_lpips(str(options.lpips), "--lpips", "drop the option"))
    return comparisons


def _through(
    tokenizer: ImageTokenizer, real: Images, comparisons: dict[str, Compare], compared: dict[str, list[Values]]
) -> Callable[[Sequence[int]], Iterator[list[ImageArray]]]:
    """Returns a function that yields chunks of reconstructions and appends their comparisons to `compared`."""

    def chunks(rows: Sequence[int]) -> Iterator[list[ImageArray]]:
        for chunk in real.chunks(rows):
            true = np.stack(chunk)
            reconstructed = tokenizer.decode(tokenizer.encode(true))
            for name, compare in comparisons.items():
                compared[name].append(compare(reconstructed, true))
            yield list(reconstructed)

    return chunks


def _renamed(score: Score) -> Score:
    if score.protocol.metric != "fid":
        return score
    return replace(score, protocol=replace(score.protocol, metric="rfid"))


def _pixel_score(base: ScoreProtocol, name: str, values: Values) -> Score:
    mean = mean_estimate(values)
    protocol = replace(base, metric=name, metric_version=VERSION)
    return Score(mean.value, protocol, **mean.described_interval("normal"))
