"""Samples images from prompts, with an interface like that of diffusers.

    pipe = TextToImagePipeline.from_pretrained("runs/shapes")
    pipe("a small red circle above a large blue square", num_images_per_prompt=4, seed=0).images[0].save("circle.png")

docs/python.md compares the two, argument by argument. Axes: B images, H, W pixels.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from t2i.errors import InputError
from t2i.families import FAMILIES, NoiseSpace, Sampler
from t2i.files import new_folder
from t2i.images import Fit, ImageArray
from t2i.reader.reading import Reader
from t2i.sampling import calls, hub, saved
from t2i.sampling.calls import ImagePipelineOutput, OutputType, as_output, count, number, output_type_of
from t2i.sampling.inpainting import keep_parts
from t2i.sampling.listening import Stopped, run_with_progress
from t2i.sampling.mixing import frame_weights, mix
from t2i.sampling.model_card import write_card
from t2i.sampling.prompts import clean_prompt, warn_of_unknown_words
from t2i.sampling.reranking import Chooser, candidate_seed, keep_best
from t2i.sampling.saved import Stored
from t2i.text import TextFeatures

# (pipeline, number of earlier calls, fraction of all images that is done, {"seeds": seeds of the current batch})
Callback = Callable[["TextToImagePipeline", int, float, dict[str, Any]], Any]
CARD_SEED = 0
CHECKED_PROMPTS = 16  # a call with more prompts samples the captions of a data set, whose words are not checked


class TextToImagePipeline:
    """A text encoder and a generator that was trained with it.

    Attributes:
        family: a key of `t2i.families.FAMILIES`.
        manifest: manifest of the checkpoint that holds the weights: step, config, digests, versions.
        guidance_scale, truncation: defaults for calls; saved with the pipeline.
        sampler: the generator; `pipe.sampler = pipe.sampler.tuned({...})` changes the settings of its family, which are
            saved too.
        home: the folder that was loaded: a run directory or a saved pipeline.
        run: `home` if that is a run directory, else None.
    """

    def __init__(self, sampler: Sampler, stored: Stored) -> None:
        self.sampler, self.text_encoder = sampler.tuned(stored.settings), stored.text
        self.family, self.manifest = stored.family, stored.manifest
        self.guidance_scale = sampler.guidance if stored.guidance_scale is None else stored.guidance_scale
        self.truncation = stored.truncation
        self.home, self.run = stored.home, stored.home if stored.is_run else None
        self._stored = stored
        self._warned_words: set[str] = set()  # unknown words, each of which is warned of once
        self._interrupt = False  # set to True in a callback: the call then returns the finished batches
        self._is_calling = False  # within a callback: a call in it neither sees nor clears the outer interrupt
        self.device = torch.device("cpu")

    def __repr__(self) -> str:
        side = self._view()[0]
        size = sum(tensor.numel() for _, tensors in self.sampler.components().values() for tensor in tensors.values())
        words = FAMILIES[self.family].words
        return (
            f"{type(self).__name__}({words}, {side} x {side} pixels, {size:,} parameters, text encoder "
            f"{self.text_encoder.name}, step {self.manifest['step']:,} of {self.home}, on {self.device})"
        )

    @property
    def chosen(self) -> str | None:
        """Describes the validation score by which these weights were selected; None if they are the last of the run."""
        best = self.manifest.get("best")
        return best and f"the best of the run by {best['metric']} on val ({best['value']:.3g}), step {best['step']:,}"

    @property
    def components(self) -> dict[str, Any]:
        """Returns the parts by name, including the text encoder."""
        return {"text_encoder": self.text_encoder} | {name: getattr(self.sampler, name) for name in self.sampler.parts}

    @property
    def dtype(self) -> torch.dtype:
        """Returns the type that the models compute in."""
        return torch.float32

    @classmethod
    def from_pretrained(
        cls,
        path_or_run: str | Path,
        device: str | torch.device = "cpu",
        subfolder: str | None = None,
        **options: Any,
    ) -> Self:
        """Loads a pipeline and moves it to `device`.

        Only safetensors files are read, and code that comes with a model never runs.

        Args:
            path_or_run: a run directory (its newest intact checkpoint; the best weights if there are any, else the averaged
                ones), a folder that `save_pretrained` wrote, `prior` or `cgan`, which ship with the package, or
                `owner/name` on the hub.
            subfolder: the folder of the pipeline inside `path_or_run`.
            options: `cache_dir`, `revision`, `token`, `local_files_only` and `force_download` for the hub; other options
                of diffusers if they have no effect here, e.g. `torch_dtype=torch.float32`.

        Raises:
            InputError: the folder, the weights, the device or an option cannot be used.
        """
        options = calls.split_idle(options, calls.IDLE_LOADING, "from_pretrained")
        hub_options = {name: options.pop(name) for name in calls.HUB if name in options}
        known = ["device", "subfolder", *calls.HUB, *calls.IDLE_LOADING]
        calls.refuse_unknown(options, "from_pretrained", known)
        stored = saved.read(path_or_run, subfolder, hub_options)
        sampler = saved.build(stored)
        try:
            pipe = cls(sampler, stored)
        except InputError as error:
            raise InputError(f"{stored.home / saved.DEFAULTS}: {error}; correct or delete the file") from error
        return pipe.to(device)

    def to(self, *places: Any, device: Any = None, dtype: Any = None, silence_dtype_warnings: bool = False) -> Self:
        """Moves the generator to a device. The text encoder stays on its device.

        Args:
            places: a device, a dtype, or both, as for `torch.nn.Module.to`; the dtype must be float32.

        Raises:
            InputError: the device cannot be used, or the dtype is not float32.
        """
        for place in places:
            device, dtype = (device, place) if isinstance(place, torch.dtype) else (place, dtype)
        calls.split_idle({"dtype": dtype}, calls.IDLE_LOADING, "to()")
        if device is not None:
            self.device = calls.usable_device(device)
            self.sampler.to(self.device)
        return self

    def set_progress_bar_config(self, **_: Any) -> None:
        """Has no effect: calls print no progress, they report it to `callback_on_step_end`."""

    # ---- sampling ---------------------------------------------------------------------------------------------------

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
            seed: an int: image k of a prompt depends only on (seed, text of the prompt, k), not on the other prompts or
                on the batches. The same prompt twice gives the same image twice, and different prompts get different noise.
                An int of 2**32 or more is the seed of a single image, as the output holds it, and image 0 is that image.
                A list holds one seed for each image, used without change: [7, 7] gives two prompts the same noise.
                None: a random seed.
            generator: replaces `seed`: a seed for each image is drawn from it. A list holds one generator for each image.
            batch_size: number of images that are encoded and sampled at once. On a CPU the images are bit-equal for every
                batch size and number of threads; on a GPU they may differ by rounding.
            output_type: `pil`: a list of PIL images; `np`: float32 [B, H, W, 3] in [0, 1]; `uint8`: the same in
                0 ... 255; `pt`: float32 [B, 3, H, W] in [0, 1].
            return_dict: False returns the tuple (images,).
            callback_on_step_end: called in the caller's thread with the arguments of `Callback`; its result is ignored.
                It may call the pipeline. Setting `pipe._interrupt` ends the call, which returns the finished batches.
            init_image: for a prior: an image of any size, parts of which are kept. It is cropped and resized like the
                training images. Its tokens are kept exactly; the pixels are decoded from them and the new tokens.
            mask_image: of the size of `init_image`. White pixels are resampled, together with the whole of each token that
                they touch.
            keep_rows: replaces the mask: the number of rows of tokens to keep at the top.
            best_of: number of candidates for each image; `scorer` selects the best. The first candidate is the image of
                `best_of=1`. Scores from the scorer that selected the images say nothing about their quality.
            scorer: None: the scorer that ships with the package, which knows rendered shapes.
            settings: settings of the family. A prior takes temperature, top_k, top_p, steps and more (`t2i config schema
                prior`, section sampling), and compile; a GAN takes none. Also arguments of diffusers that have no effect
                here.

        Raises:
            InputError: a prompt is empty or too long, an argument has the wrong type or is out of range, or the mask does
                not fit the image.
        """
        output_type = output_type_of(output_type)
        prompts = calls.prompts_of(prompt)
        each = count("num_images_per_prompt", num_images_per_prompt)
        batch_size, best_of = count("batch_size", batch_size), count("best_of", best_of)
        count("prompts", len(prompts))
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
        seeds = [candidate_seed(one, k) for one in seeds for k in range(best_of)]
        texts = [text for text in captions for _ in range(best_of)]
        batches = self._sample(sampler, texts, seeds, knobs, batch_size, callback_on_step_end)
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
        """Starts without an interrupt; within a callback of another call, that call's interrupt returns at the end."""
        outer = self._is_calling, self._interrupt
        self._is_calling, self._interrupt = True, False
        try:
            yield
        finally:
            self._is_calling = outer[0]
            if self._is_calling:
                self._interrupt = outer[1]

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

    def _view(self) -> tuple[int, Fit]:
        """Returns the resolution of the run, and the way that training images were fitted to it."""
        data = self.manifest["config"]["data"]
        return data["resolution"], data["fit"]

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
        images = sampler.sample_between(text, (first, last), frame_weights(frames), *knobs)
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

    # ---- saving -----------------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        directory: str | Path,
        prompts: Sequence[str] | None = None,
        license: str = "other",
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        """Writes a folder that `from_pretrained` reads, with a model card. The folder appears whole or not at all.

        Args:
            directory: a new or an empty folder.
            prompts: prompts of the card's sample images. None: held-out captions of the embedded shapes; for other data
                the card has no images.
            license: license of the weights, as the hub spells it.
            dtype: type of the generator's weights in the file; bfloat16 halves its size. Weights are loaded as float32.
            options: options of diffusers that have no effect here, e.g. `safe_serialization=True`.

        Raises:
            InputError: the directory holds files or cannot be written, or an option is not supported.
        """
        options = calls.split_idle(options, calls.IDLE_SAVING, "save_pretrained")
        calls.refuse_unknown(options, "save_pretrained", ["prompts", "license", "dtype", *calls.IDLE_SAVING])
        if not isinstance(directory, str | Path) or not str(directory):
            raise InputError(f"save_pretrained needs the name of a new or an empty folder, got {directory!r:.40}")
        if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
            raise InputError(f"dtype must be torch.float32, torch.bfloat16 or torch.float16, got {dtype!r:.40}")
        self._save(Path(directory), Path(directory).name, prompts, license, dtype)

    def push_to_hub(
        self, repo_id: str, prompts: Sequence[str] | None = None, license: str = "other", private: bool = False
    ) -> str:
        """Uploads the folder that `save_pretrained` writes, with the token of `hf auth login`; returns its URL.

        Raises:
            InputError: there is no network, no login or no write access.
        """
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder) / "pipeline", repo_id, prompts, license)
            return hub.upload(Path(folder) / "pipeline", repo_id, private)

    def _save(
        self,
        directory: Path,
        name: str,
        prompts: Sequence[str] | None,
        license: str,
        dtype: torch.dtype | None = None,
    ) -> None:
        stored = self._stored._replace(
            components=self.sampler.components(),
            guidance_scale=self.guidance_scale,
            truncation=self.truncation,
            settings=self.sampler.settings(),
        )
        with new_folder(directory) as folder:
            saved.write(folder, stored, dtype)
            sample = partial(self, seed=CARD_SEED, output_type="uint8")
            write_card(folder, stored, name, license, prompts, lambda shown: sample(shown).images)
