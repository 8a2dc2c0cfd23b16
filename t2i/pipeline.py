"""From prompts to images, with the interface that users of diffusers know.

    pipe = TextToImagePipeline.from_pretrained("runs/shapes")
    pipe("a small red circle above a large blue square", num_images_per_prompt=4, seed=0).images[0].save("circle.png")

docs/python.md compares it with diffusers, argument by argument. Axes: B images, H, W pixels.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from t2i.errors import InputError
from t2i.extractors import open_image_text
from t2i.families import FAMILIES, NoiseSpace, Sampler
from t2i.files import new_folder
from t2i.images import Fit, ImageArray, grid
from t2i.reader.reading import Reader
from t2i.sampling import calls, hub, saved
from t2i.sampling.calls import ImagePipelineOutput, OutputType, as_output, count, number, output_type_of
from t2i.sampling.inpainting import keep_parts
from t2i.sampling.listening import Stopped, listened
from t2i.sampling.mixing import frame_weights, mix
from t2i.sampling.model_card import card_prompts, model_card, score_files
from t2i.sampling.prompts import clean_prompt, warn_of_unknown_words
from t2i.sampling.reranking import BestOf, Chooser, candidate_seed
from t2i.sampling.saved import Stored
from t2i.text import TextFeatures
from t2i.trained import RECORD

# (pipeline, calls before this one, share of all images that is done, {"seeds": of the images under way})
Callback = Callable[["TextToImagePipeline", int, float, dict[str, Any]], Any]
CARD_SEED = 0
FEW = 16  # prompts of a call that are somebody's own, and not the captions of a data set


class TextToImagePipeline:
    """A text encoder and a generator that was trained with it.

    Attributes:
        family: a key of `t2i.families.FAMILIES`.
        manifest: of the checkpoint that the weights come from: step, config, digests, versions.
        guidance_scale, truncation: defaults of a call; saved with the pipeline.
        sampler: the generator; `pipe.sampler = pipe.sampler.tuned({...})` sets its family's settings, saved too.
        home: the folder it was read from: a run directory, or a saved pipeline.
        run: the same if it is a run directory, else None.
    """

    def __init__(self, sampler: Sampler, stored: Stored) -> None:
        self.sampler, self.text_encoder = sampler.tuned(stored.settings), stored.text
        self.family, self.manifest = stored.family, stored.manifest
        self.guidance_scale = sampler.guidance if stored.guidance_scale is None else stored.guidance_scale
        self.truncation = stored.truncation
        self.home, self.run = stored.home, stored.home if stored.is_run else None
        self._stored = stored
        self._named: set[str] = set()  # unknown words that were warned of
        self._interrupt = False  # set it in a callback, and the call returns the batches that are whole
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
        """Names the score on val that chose the weights among those of the run; None: they are its last."""
        best = self.manifest.get("best")
        return best and f"the best of the run by {best['metric']} on val ({best['value']:.3g}), step {best['step']:,}"

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name, the text encoder among them."""
        return {"text_encoder": self.text_encoder} | {name: getattr(self.sampler, name) for name in self.sampler.parts}

    @property
    def dtype(self) -> torch.dtype:
        """The type that the models compute in."""
        return torch.float32

    @classmethod
    def from_pretrained(
        cls,
        path_or_run: str | Path,
        device: str | torch.device = "cpu",
        subfolder: str | None = None,
        **options: Any,
    ) -> Self:
        """Reads a run directory (its newest intact checkpoint, the best weights, else averaged ones), a folder that
        `save_pretrained` wrote, `prior` or `cgan`, which come with the package, or `owner/name` from the hub.
        Safetensors only; no code that comes with a model is run.

        Args:
            subfolder: the folder of the pipeline inside `path_or_run`.
            options: `cache_dir`, `revision`, `token`, `local_files_only` and `force_download` for the hub; others of
                diffusers as long as they change nothing, e.g. `torch_dtype=torch.float32`.

        Raises:
            InputError: one line that says what is wrong with the folder, the weights, the device or an option.
        """
        options = calls.split_idle(options, calls.IDLE_LOADING, "from_pretrained")
        of_hub = {name: options.pop(name) for name in calls.HUB if name in options}
        known = ["device", "subfolder", *calls.HUB, *calls.IDLE_LOADING]
        calls.refuse_unknown(options, "from_pretrained", known)
        stored = saved.read(path_or_run, subfolder, of_hub)
        sampler = saved.build(stored)
        try:
            pipe = cls(sampler, stored)
        except InputError as error:
            raise InputError(f"{stored.home / saved.DEFAULTS}: {error}; mend or delete it") from error
        return pipe.to(device)

    def to(self, *places: Any, device: Any = None, dtype: Any = None, silence_dtype_warnings: bool = False) -> Self:
        """Moves the generator to a device; captions are encoded where the encoder is.

        Args:
            places: a device, and float32 as the only type.

        Raises:
            InputError: there is no such device, or another type is asked for.
        """
        for place in places:
            device, dtype = (device, place) if isinstance(place, torch.dtype) else (place, dtype)
        calls.split_idle({"dtype": dtype}, calls.IDLE_LOADING, "to()")
        if device is None:
            return self
        try:
            self.device = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError, TypeError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise InputError(
                f"device {str(device)!r} cannot be used ({why}); `t2i doctor` tells what is here"
            ) from error
        self.sampler.to(self.device)
        return self

    def set_progress_bar_config(self, **_: Any) -> None:
        """Does nothing: calls print no progress; `callback_on_step_end` receives it."""

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
        """Makes images, those of the first prompt first.

        Args:
            prompt: one or several, of at most 4,096 characters; cleaned as training captions are.
            num_images_per_prompt: images 0, 1, ... of each prompt.
            guidance_scale: 1 is plain sampling; above 1 keeps closer to the caption. None: `self.guidance_scale`.
            truncation: 1 is plain sampling; less is less varied and more typical. None: `self.truncation`.
            seed: an int: image k of a prompt is a function of (seed, text of the prompt, k) alone, whatever else is
                sampled and in which batches. So a prompt given twice gives the same image twice, and two prompts get
                different noise. The seed of one image, as the output tells it (2**32 or more), makes that image as
                image 0. A list has one seed for each image, taken as it is: [7, 7] gives two prompts one noise. None: a
                fresh one.
            generator: instead of `seed`; gives one seed for each image. A list has one generator for each image.
            batch_size: images encoded and sampled at once. On a CPU an image has the same bits at any batch size and
                number of threads; on a GPU it may differ by rounding.
            output_type: `pil`: a list of PIL images; `np`: float32 [B, H, W, 3] in [0, 1]; `uint8`: the same in
                0 ... 255; `pt`: float32 [B, 3, H, W] in [0, 1].
            return_dict: False returns the tuple (images,).
            callback_on_step_end: called in the caller's thread as `Callback` says; what it returns is ignored. It may use
                the pipeline itself. Setting `_interrupt` ends the call: the output holds the batches that were whole.
            init_image: an image of any size, parts of which are kept; of a prior only. It is cut and scaled as training
                images are, and what is kept are its tokens: they stay exactly, and their pixels as the tokenizer shows
                them beside the new ones.
            mask_image: of the size of `init_image`; light pixels are sampled anew, with the whole of each token they touch.
            keep_rows: instead of a mask, rows of tokens at the top that stay.
            best_of: candidates sampled for each image, of which `scorer` keeps the best. The first candidate is what would
                be sampled without. A score by the encoder that chose says nothing.
            scorer: None: the one that ships with the package, which knows rendered shapes.
            settings: of the family. A prior has temperature, top_k, top_p, steps and more (`t2i config schema prior`,
                section sampling), and compile; a GAN has none. Arguments of diffusers as long as they change nothing.

        Raises:
            InputError: an empty or overlong prompt, an argument of another type or out of range, a mask that does not fit.
        """
        output_type, self._interrupt = output_type_of(output_type), False
        prompts = calls.prompts_of(prompt)
        each = count("num_images_per_prompt", num_images_per_prompt)
        batch_size, best_of = count("batch_size", batch_size), count("best_of", best_of)
        count("prompts", len(prompts))
        seeds = calls.seeds_of(prompts, each, seed, generator)
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise InputError(f"callback_on_step_end must be a function, got {callback_on_step_end!r:.40}")
        if len(prompts) <= FEW:
            self.warn_of_unknown_words(prompts)
        knobs = self._knobs(truncation, guidance_scale)
        sampler = self.sampler.tuned(calls.settings_of_call(settings, self._view()[0]))
        sampler = keep_parts(sampler, self._view(), init_image, mask_image, keep_rows)
        every = [text for text in prompts for _ in range(each)]
        candidates = [candidate_seed(one, k) for one in seeds for k in range(best_of)]
        texts = [text for text in every for _ in range(best_of)]
        batches = self._sample(sampler, texts, candidates, knobs, batch_size, callback_on_step_end)
        none = np.empty((0, *[self._view()[0]] * 2, 3), np.uint8)
        if best_of == 1:
            images = np.concatenate([none, *batches])
            output = ImagePipelineOutput(as_output(output_type, images), seeds[: len(images)])
        else:
            best = BestOf(scorer or open_image_text(None), every, best_of)
            for images in batches:
                best.hear(images)
            chosen = [candidates[i * best_of + k] for i, k in enumerate(best.chosen())]
            images = best.images() if chosen else none
            output = ImagePipelineOutput(as_output(output_type, images), chosen, best.scores[: len(chosen)])
        return output if return_dict else (output.images,)  # pyright: ignore[reportReturnType]

    def _sample(
        self,
        sampler: Sampler,
        prompts: Sequence[str],
        seeds: Sequence[int],
        knobs: tuple[float, float],
        batch_size: int,
        callback: Callback | None,
    ) -> Iterator[ImageArray]:
        """One image a prompt and seed, a batch at a time; ends early where it is interrupted."""
        told = 0
        for start in range(0, len(prompts), batch_size):
            batch = slice(start, start + batch_size)
            text, own = self._encode(prompts[batch]), seeds[batch]

            def hear(share: float, start: int = start, own: Sequence[int] = own) -> None:
                nonlocal told
                if callback is not None:
                    callback(self, told, (start + share * len(own)) / len(seeds), {"seeds": list(own)})
                told += 1
                if self._interrupt and share < 1:
                    raise Stopped

            def work(
                on_step: Callable[[float], None], text: TextFeatures = text, own: Sequence[int] = own
            ) -> ImageArray:
                return sampler.sample(text, own, *knobs, on_step)

            try:
                yield listened(work, hear) if callback is not None else work(hear)
            except Stopped:
                return
            if self._interrupt:
                return

    def warn_of_unknown_words(self, prompts: Sequence[str]) -> None:
        """Warns of words that the model has never seen, each once, where the text encoder has a vocabulary."""
        data = str(self.manifest["config"]["data"]["address"])
        self._named |= warn_of_unknown_words(self.text_encoder, prompts, data, self._named)

    def _view(self) -> tuple[int, Fit]:
        """Returns the side of the run's images, and how training images were brought to it."""
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
        """One caption, `frames` images from the noise of one seed to another's, on the great circle between them.

        Args:
            seeds: of two images, as `ImagePipelineOutput.seeds` has them; first and last image are those two.
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
        """One noise, `frames` images from one caption to another, their features mixed as in `mix`.

        Args:
            seed: of an image, as `ImagePipelineOutput.seeds` has them.
        """
        output_type, frames = output_type_of(output_type), count("frames", frames, 2)
        seeds = calls.seeds_of([a], frames, [seed] * frames, None)
        text = mix(self._encode([clean_prompt(a), clean_prompt(b)]), frame_weights(frames))
        knobs = self._knobs(truncation, guidance_scale)
        sampler = self.sampler.tuned(calls.settings_of_call(settings, self._view()[0]))
        return ImagePipelineOutput(as_output(output_type, sampler.sample(text, seeds, *knobs)), seeds)

    def _encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of each prompt; equal ones are encoded once."""
        row = {text: i for i, text in enumerate(dict.fromkeys(prompts))}
        features = self.text_encoder.encode(list(row))
        return TextFeatures(*(x[[row[text] for text in prompts]] for x in features))

    def _knobs(self, truncation: float | None, guidance_scale: float | None) -> tuple[float, float]:
        """(truncation, guidance), checked."""
        return (
            number("truncation", self.truncation if truncation is None else truncation),
            number("guidance", self.guidance_scale if guidance_scale is None else guidance_scale),
        )

    # ---- keeping ----------------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        directory: str | Path,
        prompts: Sequence[str] | None = None,
        license: str = "other",
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        """Writes a folder that `from_pretrained` reads, with a model card; it appears whole or not at all.

        Args:
            directory: new or empty.
            prompts: shown in the card; None: held-out captions if the data is the embedded shapes, else no images.
            license: of the weights, as the hub spells it.
            dtype: of the generator's weights on the disk; bfloat16 takes half the space, and they are read as float32.
            options: those of diffusers as long as they change nothing, e.g. `safe_serialization=True`.

        Raises:
            InputError: the directory holds files or cannot be written, or an option asks for what there is not.
        """
        options = calls.split_idle(options, calls.IDLE_SAVING, "save_pretrained")
        calls.refuse_unknown(options, "save_pretrained", ["prompts", "license", "dtype", *calls.IDLE_SAVING])
        self._save(Path(directory), Path(directory).name, prompts, license, dtype)

    def push_to_hub(
        self, repo_id: str, prompts: Sequence[str] | None = None, license: str = "other", private: bool = False
    ) -> str:
        """Uploads what `save_pretrained` writes, with the token that `hf auth login` keeps; returns the address.

        Raises:
            InputError: no network, no login, or no right to write there.
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
        shown = card_prompts(self.manifest) if prompts is None else list(prompts)
        stored = self._stored._replace(
            components=self.sampler.components(),
            guidance_scale=self.guidance_scale,
            truncation=self.truncation,
            settings=self.sampler.settings(),
        )
        with new_folder(directory) as folder:
            saved.write(folder, stored, dtype)
            if shown:
                output = self(shown, seed=CARD_SEED, output_type="uint8")
                grid(list(output.images), shown, columns=4).save(folder / "grid.png")
            scores = score_files(stored.home)
            for path in [*scores, *filter(Path.is_file, [stored.home / RECORD])]:
                (folder / path.name).write_bytes(path.read_bytes())
            card = model_card(name, stored, license, shown, scores)
            (folder / "README.md").write_text(card, "utf-8")
