"""Samples images from prompts, with an interface like that of diffusers.

    pipe = TextToImagePipeline.from_pretrained("runs/shapes")
    pipe("a small red circle above a large blue square", num_images_per_prompt=4, seed=0).images[0].save("circle.png")

docs/python.md compares the two, argument by argument. Axes: B images, H, W pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from t2i.errors import InputError
from t2i.families import NoiseSpace, Sampler
from t2i.images import ImageArray
from t2i.reader.reading import Reader
from t2i.sampling import calls
from t2i.sampling.base import StoredPipeline
from t2i.sampling.calls import ImagePipelineOutput, OutputType, as_output, count, number, output_type_of
from t2i.sampling.inpainting import keep_parts
from t2i.sampling.listening import Stopped, run_with_progress
from t2i.sampling.mixing import frame_weights, mix
from t2i.sampling.prompts import clean_prompt, warn_of_unknown_words
from t2i.sampling.reranking import Chooser, candidate_seed, keep_best
from t2i.sampling.saved import Stored
from t2i.seeding import noise, slerp
from t2i.text import TextFeatures

# (pipeline, number of earlier calls, fraction of all images that is done, {"seeds": seeds of the current batch})
Callback = Callable[["TextToImagePipeline", int, float, dict[str, Any]], Any]

CHECKED_PROMPTS = 16  # a call with more prompts samples the captions of a data set, whose words are not checked


class TextToImagePipeline(StoredPipeline):
    """Samples images from prompts; see `StoredPipeline` for its attributes, loading and saving."""

    _interrupt = False  # set to True in a callback: the call then returns the finished batches
    _is_calling = False  # True within a call: a call in its callback neither sees nor clears its interrupt

    def __init__(self, sampler: Sampler, stored: Stored) -> None:
        super().__init__(sampler, stored)
        self._warned_words: set[str] = set()  # unknown words, each of which is warned of once

    def __call__(
        self,
        prompt: str | Sequence[str],
        num_images_per_prompt: int = 1,
        guidance_scale: float | None = None,
        truncation: float | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        batch_size: int = 32,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        init_image: Image.Image | None = None,
        mask_image: Image.Image | None = None,
        keep_rows: int | None = None,
        best_of: int = 1,
        scorer: Chooser | Reader | None = None,
        **settings: Any,
    ) -> ImagePipelineOutput:
        """Samples images for each prompt, in the order of the prompts.

        Args:
            prompt: one prompt or several, each of at most 4,096 characters; cleaned like training captions.
            num_images_per_prompt: number of images for each prompt.
            guidance_scale: 1 is plain sampling; larger values follow the caption more closely. None: `self.guidance_scale`.
            truncation: 1 is plain sampling; smaller values give less varied, more typical images. None: `self.truncation`.
            seed: an int: image k of a prompt depends only on (seed, prompt, k), not on other prompts or the batches; an int
                of 2**32 or more, as the output holds it, is the seed of image 0 itself. A list holds one seed for each
                image, which is used unchanged. None: a random seed.
            generator: replaces `seed`: a seed for each image is drawn from it. A list holds one generator for each image.
            batch_size: number of images that are encoded and sampled at once. On a CPU the images are bit-equal for every
                batch size and number of threads; on a GPU they may differ by rounding.
            output_type: `pil`: a list of PIL images; `np`: float32 [B, H, W, 3] in [0, 1]; `uint8`: the same in 0 ... 255;
                `pt`: float32 [B, 3, H, W] in [0, 1].
            return_dict: False returns the tuple (images,).
            callback_on_step_end: a `Callback`, called in the caller's thread. It may call the pipeline; setting
                `pipe._interrupt` ends this call, which then returns the finished batches.
            init_image: for a prior: an image of any size, parts of which are kept. It is cropped and resized like the
                training images. Its tokens are kept exactly; the pixels are decoded from them and the new tokens.
            mask_image: has the size of `init_image`; tokens that a white pixel touches are resampled.
            keep_rows: replaces the mask: the number of rows of tokens to keep at the top.
            best_of: number of candidates for each image, the first of which is the image of `best_of=1`; `scorer` selects
                the best, so its own scores of the selected images say nothing about their quality.
            scorer: None: the scorer that ships with the package, which knows rendered shapes.
            settings: settings of the family (`t2i config schema prior`, section sampling, and compile); a GAN takes none.
                Also arguments of diffusers that have no effect here.

        Raises:
            InputError: a prompt is empty or too long, an argument has the wrong type or is out of range, or the mask does
                not fit the image.
        """
        output_type = output_type_of(output_type)
        prompts, each = calls.prompts_of(prompt), count("num_images_per_prompt", num_images_per_prompt)
        batch_size, best_of = count("batch_size", batch_size), count("best_of", best_of)
        seeds = calls.seeds_of(prompts, each, seed, generator)
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise InputError(f"callback_on_step_end must be a function, got {callback_on_step_end!r:.40}")
        if scorer is not None and best_of == 1:
            raise InputError("scorer chooses among candidates, and there is only one; set best_of to 2 or more")
        if len(prompts) <= CHECKED_PROMPTS:
            self.warn_of_unknown_words(prompts)
        knobs = self._knobs(truncation, guidance_scale)
        resolution, _ = self._view()
        sampler = self.sampler.tuned(calls.settings_of_call(settings, resolution))
        sampler = keep_parts(sampler, self._view(), init_image, mask_image, keep_rows)

        captions = [text for text in prompts for _ in range(each)]
        candidates = [text for text in captions for _ in range(best_of)]
        seeds = [candidate_seed(image_seed, k) for image_seed in seeds for k in range(best_of)]
        batches = self._sample(sampler, candidates, seeds, knobs, batch_size, callback_on_step_end)
        positions, scores = range(len(seeds)), None
        with self._interruptible():
            if best_of > 1:
                batches, positions, scores = keep_best(batches, scorer, captions, best_of)
            # after an interrupt there are fewer images than seeds
            images = np.concatenate([np.empty((0, resolution, resolution, 3), np.uint8), *batches])
        seeds = [seeds[i] for i in positions[: len(images)]]
        output = ImagePipelineOutput(as_output(output_type, images), seeds, scores)
        return output if return_dict else (output.images,)  # pyright: ignore[reportReturnType]

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Starts without an interrupt; if this call is in the callback of another one, restores its interrupt at the end."""
        was_calling, interrupt = self._is_calling, self._interrupt
        self._is_calling, self._interrupt = True, False
        try:
            yield
        finally:
            self._is_calling = was_calling
            if was_calling:
                self._interrupt = interrupt

    def _sample(
        self,
        sampler: Sampler,
        prompts: Sequence[str],
        seeds: Sequence[int],
        knobs: tuple[float, float],
        batch_size: int,
        callback: Callback | None,
    ) -> Iterator[ImageArray]:
        """Yields an image for each prompt and seed, a batch at a time; ends early after an interrupt."""
        steps = 0
        for start in range(0, len(prompts), batch_size):
            batch = slice(start, start + batch_size)
            text, batch_seeds = self._encode(prompts[batch]), seeds[batch]

            def report(share: float, start: int = start, batch_seeds: Sequence[int] = batch_seeds) -> None:
                nonlocal steps
                if callback is not None:
                    done = (start + share * len(batch_seeds)) / len(seeds)
                    callback(self, steps, done, {"seeds": list(batch_seeds)})
                steps += 1
                if self._interrupt and share < 1:
                    raise Stopped

            def work(
                on_step: Callable[[float], None], text: TextFeatures = text, batch_seeds: Sequence[int] = batch_seeds
            ) -> ImageArray:
                return sampler.sample(text, batch_seeds, *knobs, on_step)

            try:
                yield run_with_progress(work, report) if callback is not None else work(report)
            except Stopped:
                return
            if self._interrupt:
                return

    def warn_of_unknown_words(self, prompts: Sequence[str]) -> None:
        """Warns once of each word that is missing from the vocabulary of the text encoder, if it has one."""
        data = str(self.manifest["config"]["data"]["address"])
        self._warned_words |= warn_of_unknown_words(self.text_encoder, prompts, data, self._warned_words)

    def interpolate_noise(
        self,
        prompt: str,
        seeds: tuple[int, int],
        frames: int = 8,
        guidance_scale: float | None = None,
        truncation: float | None = None,
        output_type: OutputType = "pil",
        **settings: Any,
    ) -> ImagePipelineOutput:
        """Interpolates between the noises of two seeds, on the great circle, with one caption.

        Args:
            seeds: entries of `ImagePipelineOutput.seeds`, whose images are the first and the last frame.
            frames: number of images, the first and the last included.
        """
        sampler, output_type, frames = self.sampler, output_type_of(output_type), count("frames", frames, 2)
        if not isinstance(sampler, NoiseSpace):
            raise InputError(f"a {self.family} has no path between two noises; interpolate captions instead")
        sampler.tuned(calls.settings_of_call(settings, self._view()[0]))
        text = self._encode([clean_prompt(prompt)] * frames)
        knobs = self._knobs(truncation, guidance_scale)
        first, last = calls.seeds_of([prompt], 2, seeds, None)
        first_Z, last_Z = noise([first, last], sampler.z_dim)
        images = sampler.sample_noise(text, slerp(first_Z, last_Z, frame_weights(frames)), *knobs)
        return ImagePipelineOutput(as_output(output_type, images), [first, last])

    def interpolate_captions(
        self,
        a: str,
        b: str,
        frames: int = 8,
        seed: int = 0,
        guidance_scale: float | None = None,
        truncation: float | None = None,
        output_type: OutputType = "pil",
        **settings: Any,
    ) -> ImagePipelineOutput:
        """Interpolates between two captions with one noise; `mix` mixes their features.

        Args:
            frames: number of images, those of `a` and `b` included.
            seed: an entry of `ImagePipelineOutput.seeds`, or any other.
        """
        output_type, frames = output_type_of(output_type), count("frames", frames, 2)
        seeds = calls.seeds_of([a], frames, [seed] * frames, None)
        text = mix(self._encode([clean_prompt(a), clean_prompt(b)]), frame_weights(frames))
        knobs = self._knobs(truncation, guidance_scale)
        sampler = self.sampler.tuned(calls.settings_of_call(settings, self._view()[0]))
        return ImagePipelineOutput(as_output(output_type, sampler.sample(text, seeds, *knobs)), seeds)

    def _encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Returns features of each prompt. Encodes equal prompts once."""
        row = {text: i for i, text in enumerate(dict.fromkeys(prompts))}
        features = self.text_encoder.encode(list(row))
        return TextFeatures(*(x[[row[text] for text in prompts]] for x in features))

    def _knobs(self, truncation: float | None, guidance_scale: float | None) -> tuple[float, float]:
        """Returns (truncation, guidance) with defaults filled in, after a check."""
        return (
            number("truncation", self.truncation if truncation is None else truncation),
            number("guidance", self.guidance_scale if guidance_scale is None else guidance_scale),
        )
