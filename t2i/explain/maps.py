"""One map of an image for each word of its prompt.

Of a sampler that knows the likelihood of cells (a prior): the log-likelihood of each cell of the image under the prompt, minus
that with another word in its place, the mean over several. Of another: the mean squared change of pixels at equal noise, over
several words. Both are occlusion (Zeiler & Fergus, 2014) by words.
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
    """An image and the part of each word in it."""

    image_HWC: ImageArray
    words: list[Map]  # [rows, columns] of cells or pixels, in the order of the words
    unit: str
    attention: list[Map] | None  # shares of what a place attends to the prompt; None: nothing does


def maps_of(pipe: TextToImagePipeline, prompt: str, words: Sequence[Word], seed: int) -> Maps:
    """Maps of image 0 of a cleaned prompt, as `t2i sample` makes it."""
    replaced = [without(prompt, word) for word in words]
    own = image_seed(seed, prompt, 0)
    if isinstance(pipe.sampler, Likelihood):
        codes, image = pipe.sampler.sample_with_codes(pipe.text_encoder.encode([prompt]), own, pipe.guidance_scale)
        attention = attention_maps(pipe, prompt, words, own, codes)
        return Maps(image, likelihood_maps(pipe, codes, prompt, replaced), "nats a cell", attention)
    every = [prompt, *(text for texts in replaced for text in texts)]
    made = pipe(every, seed=[own] * len(every), output_type="uint8").images.astype(np.float64)
    maps, at = [], 1
    for texts in replaced:
        change = made[at : at + len(texts)] - made[0]
        maps.append((change**2).mean(axis=(0, 3)))
        at += len(texts)
    attention = attention_maps(pipe, prompt, words, own, None)
    return Maps(made[0].astype(np.uint8), maps, "squared levels a pixel", attention)


def likelihood_maps(
    pipe: TextToImagePipeline, codes: NDArray[np.int64], prompt: str, replaced: Sequence[Sequence[str]]
) -> list[Map]:
    """For each list of other prompts: how much less likely each cell is under them, the mean over the list."""
    sampler = pipe.sampler
    assert isinstance(sampler, Likelihood)
    every = list(dict.fromkeys([prompt, *(text for texts in replaced for text in texts)]))
    likelihood = dict(zip(every, sampler.log_likelihood(pipe.text_encoder.encode(every), codes), strict=True))
    return [np.mean([likelihood[prompt] - likelihood[text] for text in texts], axis=0) for texts in replaced]
