"""Maps of an image for each word of its prompt, by occlusion (Zeiler & Fergus, 2014) with other words.

A prior has likelihoods of cells: the map is the log-likelihood of each cell under the prompt minus that with another word,
averaged over several words. For other samplers the map is the mean squared change of pixels at equal noise.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.explain.attention import attention_maps
from t2i.explain.words import Word, without
from t2i.families import Likelihood
from t2i.images import ImageArray
from t2i.pipeline import TextToImagePipeline
from t2i.sampling.prompts import image_seed

Map = NDArray[np.float64]


class Maps(NamedTuple):
    """An image and a map for each word."""

    image_HWC: ImageArray
    words: list[Map]  # [rows, columns] of cells or pixels, in the order of the words
    unit: str
    attention: list[Map] | None  # shares of what a place attends to the prompt; None: nothing does


def maps_of(pipe: TextToImagePipeline, prompt: str, words: Sequence[Word], seed: int) -> Maps:
    """Returns maps of image 0 of a cleaned prompt, which `t2i sample` would make."""
    replaced = [without(prompt, word) for word in words]
    noise_seed = image_seed(seed, prompt, 0)
    if isinstance(pipe.sampler, Likelihood):
        text = pipe.text_encoder.encode([prompt])
        codes, image = pipe.sampler.sample_with_codes(text, noise_seed, pipe.guidance_scale)
        attention = attention_maps(pipe, prompt, words, noise_seed, codes)
        return Maps(image, likelihood_maps(pipe, codes, prompt, replaced), "nats a cell", attention)
    every = [prompt, *(text for texts in replaced for text in texts)]
    images = pipe(every, seed=[noise_seed] * len(every), output_type="uint8").images.astype(np.float64)
    maps, start = [], 1
    for texts in replaced:
        change = images[start : start + len(texts)] - images[0]
        maps.append((change**2).mean(axis=(0, 3)))
        start += len(texts)
    attention = attention_maps(pipe, prompt, words, noise_seed, None)
    return Maps(images[0].astype(np.uint8), maps, "squared levels a pixel", attention)


def likelihood_maps(
    pipe: TextToImagePipeline, codes: NDArray[np.int64], prompt: str, replaced: Sequence[Sequence[str]]
) -> list[Map]:
    """Returns for each list of other prompts the decrease of each cell's log-likelihood, averaged over the list."""
    sampler = pipe.sampler
    assert isinstance(sampler, Likelihood)
    every = list(dict.fromkeys([prompt, *(text for texts in replaced for text in texts)]))
    likelihood = dict(zip(every, sampler.log_likelihood(pipe.text_encoder.encode(every), codes), strict=True))
    return [np.mean([likelihood[prompt] - likelihood[text] for text in texts], axis=0) for texts in replaced]
