"""From prompts to pictures, with the interface that users of diffusers know.

    pipe = TextToImagePipeline.from_pretrained("runs/shapes")
    pipe("a small red circle above a large blue square", num_images_per_prompt=4, seed=0).images[0].save("circle.png")

A family of generators is a `t2i.families.Sampler`.
Axes: B pictures, T text tokens, D token width, P pooled text; pictures are uint8 [B, H, W, 3].
"""

import math
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from t2i.errors import InputError
from t2i.extractors import ImageTextExtractor, open_image_text
from t2i.families import NoiseSpace, Sampler, sampler_class
from t2i.files import new_folder
from t2i.images import Fit, ImageArray, grid
from t2i.sampling import saved
from t2i.sampling.inpainting import keep_parts
from t2i.sampling.model_card import card_prompts, model_card
from t2i.sampling.prompts import clean_prompt
from t2i.sampling.reranking import BestOf, candidate_seed
from t2i.sampling.saved import Stored
from t2i.seeding import derive
from t2i.text import TextConfig, TextFeatures, fit_encoder
from t2i.text.aligned import AlignedEncoder

OutputType = Literal["pil", "np", "pt"]


# (pipeline, calls before this one, share of all pictures that is done, {"seeds": of the pictures under way})
Callback = Callable[["TextToImagePipeline", int, float, dict[str, Any]], Any]


CARD_SEED = 0


@dataclass
class ImagePipelineOutput:
    """Pictures and the seed of each: `pipe(prompt, seed=[seed])` draws that picture again."""

    images: Any  # list[PIL.Image.Image], ImageArray or Tensor: the call's `output_type` decides
    seeds: list[int]
    scores: list[list[float]] | None = None  # with `best_of`: of all candidates of each picture, the best was kept


class TextToImagePipeline:
    """A text encoder and a generator that was trained with it.

    Attributes:
        family: a key of `t2i.families.SAMPLERS`.
        manifest: of the checkpoint that the weights come from: step, config, digests, versions.
        guidance_scale, truncation: what a call takes that names none; saved with the pipeline.
        sampler: the generator; `pipe.sampler = pipe.sampler.tuned({...})` sets its family's settings, saved too.
        run: the run directory it was read from; None: a saved pipeline.
    """

    def __init__(self, sampler: Sampler, stored: Stored) -> None:
        self.sampler, self.text_encoder = sampler.tuned(stored.settings), stored.text
        self.family, self.manifest = stored.family, stored.manifest
        self.guidance_scale = sampler.guidance if stored.guidance_scale is None else stored.guidance_scale
        self.truncation = stored.truncation
        self.run = stored.home if stored.is_run else None
        self._stored = stored
        self.device = torch.device("cpu")

    @property
    def chosen(self) -> str | None:
        """By which score on val the weights were chosen among those of the run; None: they are its last."""
        best = self.manifest.get("best")
        return best and f"the best of the run by {best['metric']} on val ({best['value']:.3g}), step {best['step']:,}"

    @classmethod
    def from_pretrained(cls, path_or_run: str | Path, device: str | torch.device = "cpu") -> Self:
        """Reads a run directory (its newest intact checkpoint, averaged weights), a folder that `save_pretrained`
        wrote, `prior` or `cgan`, which come with the package, or `owner/name` from the hub. Safetensors only; no code
        that comes with a model is run.

        Raises:
            InputError: one line that says what is wrong with the folder, the weights or the device.
        """
        stored = saved.read(path_or_run)
        try:
            sampler = sampler_class(stored.family, stored.home).load(stored.components, stored.text)
        except ValidationError as error:
            keys = ", ".join(".".join(map(str, detail["loc"])) for detail in error.errors())
            raise InputError(
                f"{stored.home} has a config that this version of t2i does not read: {keys}; use the t2i that wrote it"
            ) from error
        try:
            pipe = cls(sampler, stored)
        except InputError as error:
            raise InputError(f"{stored.home / saved.DEFAULTS}: {error}; mend or delete it") from error
        return pipe.to(device)

    def to(self, device: str | torch.device) -> Self:
        """Moves the generator; captions are encoded where the encoder is.

        Raises:
            InputError: there is no such device.
        """
        try:
            self.device = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            why = str(error).split("\n")[0][:120]
            raise InputError(
                f"device {str(device)!r} cannot be used ({why}); `t2i doctor` tells what is here"
            ) from error
        self.sampler.to(self.device)
        return self

    # ---- drawing ----------------------------------------------------------------------------------------------------

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
        scorer: ImageTextExtractor | None = None,
        **settings: Any,
    ) -> ImagePipelineOutput:
        """Draws pictures, those of the first prompt first.

        Args:
            prompt: one or several, of at most 4,096 characters; cleaned as training captions are.
            num_images_per_prompt: pictures 0, 1, ... of each prompt.
            guidance_scale: 1 is plain sampling; above 1 keeps closer to the caption. None: `self.guidance_scale`.
            truncation: 1 is plain sampling; less is less varied and more typical. None: `self.truncation`.
            seed: an int: picture k of a prompt is a function of (seed, text of the prompt, k) alone, whatever else is
                drawn and in which batches. So a prompt given twice gives the same picture twice, and two prompts get
                different noise. A list has one seed for each picture, taken as it is: [7, 7] gives two prompts one
                noise. None: a fresh one; the output tells the seed of each picture.
            generator: instead of `seed`; draws one seed for each picture. A list has one generator for each picture.
            batch_size: pictures encoded and drawn at once. On a CPU a picture has the same bits at any batch size and
                number of threads; on a GPU it may differ by rounding.
            output_type: `pil`: a list of PIL images; `np`: uint8 [B, H, W, 3]; `pt`: float32 [B, 3, H, W] in [0, 1].
            return_dict: False returns the tuple (images,).
            callback_on_step_end: called as `Callback` says; what it returns is ignored.
            init_image: a picture of any size, parts of which are kept; of a prior only. It is cut and scaled as training
                pictures are, and what is kept are its tokens: they stay exactly, and their pixels as the tokenizer shows
                them beside the new ones.
            mask_image: of the size of `init_image`; light pixels are drawn anew, with the whole of each token they touch.
            keep_rows: instead of a mask, rows of tokens at the top that stay.
            best_of: candidates drawn for each picture, of which `scorer` keeps the best. The first candidate is what would
                be drawn without. A score by the encoder that chose says nothing.
            scorer: None: the one that ships with the package, which knows drawn shapes.
            settings: of the family. A prior has temperature, top_k, top_p, steps and more (`t2i config schema prior`,
                section sampling), and compile; a GAN has none.

        Raises:
            InputError: an empty or overlong prompt, a number out of range, seeds that are not one a picture, a mask that
                does not fit.
        """
        prompts = [clean_prompt(text) for text in ([prompt] if isinstance(prompt, str) else prompt)]
        _at_least(
            1, prompts=len(prompts), num_images_per_prompt=num_images_per_prompt, batch_size=batch_size, best_of=best_of
        )
        every = [text for text in prompts for _ in range(num_images_per_prompt)]
        seeds = _seeds(prompts, num_images_per_prompt, seed, generator)
        knobs, sampler = self._knobs(truncation, guidance_scale), self.sampler.tuned(settings)
        sampler = keep_parts(sampler, self._view(), init_image, mask_image, keep_rows)
        candidates = [candidate_seed(one, k) for one in seeds for k in range(best_of)]
        texts = [text for text in every for _ in range(best_of)]
        drawn = self._draw(sampler, texts, candidates, knobs, batch_size, callback_on_step_end)
        if best_of == 1:
            output = ImagePipelineOutput(_as(output_type, np.concatenate(list(drawn))), seeds)
        else:
            best = BestOf(scorer or open_image_text(None), every, best_of)
            for images in drawn:
                best.hear(images)
            chosen = [candidates[i * best_of + k] for i, k in enumerate(best.chosen())]
            output = ImagePipelineOutput(_as(output_type, best.images()), chosen, best.scores)
        return output if return_dict else (output.images,)  # pyright: ignore[reportReturnType]

    def _draw(
        self,
        sampler: Sampler,
        prompts: Sequence[str],
        seeds: Sequence[int],
        knobs: tuple[float, float],
        batch_size: int,
        callback: Callback | None,
    ) -> Iterator[ImageArray]:
        """One picture a prompt and seed, a batch at a time."""
        calls = 0
        for start in range(0, len(prompts), batch_size):
            batch = slice(start, start + batch_size)

            def on_step(share: float, batch: slice = batch, start: int = start) -> None:
                nonlocal calls
                if callback is not None:
                    done = (start + share * len(seeds[batch])) / len(seeds)
                    callback(self, calls, done, {"seeds": list(seeds[batch])})
                calls += 1

            yield sampler.draw(self._encode(prompts[batch]), seeds[batch], *knobs, on_step)

    def _view(self) -> tuple[int, Fit]:
        """How training pictures were brought to the size of the run."""
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
        """One caption, `frames` pictures from the noise of one seed to another's, on the great circle between them.

        Args:
            seeds: of two pictures, as `ImagePipelineOutput.seeds` has them; first and last picture are those two.
        """
        sampler = self.sampler
        if not isinstance(sampler, NoiseSpace):
            raise InputError(f"a {self.family} has no path between two noises; interpolate captions instead")
        sampler.tuned(settings)  # which has none: it says so
        _at_least(2, frames=frames)
        text = self._encode([clean_prompt(prompt)] * frames)
        knobs = self._knobs(truncation, guidance_scale)
        images = sampler.draw_between(text, (seeds[0], seeds[1]), _weights(frames), *knobs)
        return ImagePipelineOutput(_as(output_type, images), list(seeds))

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
        """One noise, `frames` pictures from one caption to another, their features mixed as in `mix`.

        Args:
            seed: of a picture, as `ImagePipelineOutput.seeds` has them.
        """
        _at_least(2, frames=frames)
        text = mix(self._encode([clean_prompt(a), clean_prompt(b)]), _weights(frames))
        knobs, sampler = self._knobs(truncation, guidance_scale), self.sampler.tuned(settings)
        return ImagePipelineOutput(_as(output_type, sampler.draw(text, [seed] * frames, *knobs)), [seed] * frames)

    def _encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of each prompt; equal ones are encoded once."""
        row = {text: i for i, text in enumerate(dict.fromkeys(prompts))}
        features = self.text_encoder.encode(list(row))
        return TextFeatures(*(x[[row[text] for text in prompts]] for x in features))

    def _knobs(self, truncation: float | None, guidance_scale: float | None) -> tuple[float, float]:
        """(truncation, guidance), checked."""
        values = (
            self.truncation if truncation is None else truncation,
            self.guidance_scale if guidance_scale is None else guidance_scale,
        )
        for name, value in zip(("truncation", "guidance"), values, strict=True):
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be a number from 0 on, got {value}; 1 is plain sampling")
        return values

    # ---- keeping ----------------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        directory: str | Path,
        prompts: Sequence[str] | None = None,
        license: str = "other",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Writes a folder that `from_pretrained` reads, with a model card; it appears whole or not at all.

        Args:
            directory: new or empty.
            prompts: shown in the card; None: held-out captions if the data is the embedded shapes, else no pictures.
            license: of the weights, as the hub spells it.
            dtype: of the generator's weights on the disk; bfloat16 takes half the space, and they are read as float32.

        Raises:
            InputError: the directory holds files or cannot be written.
        """
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
            return saved.upload(Path(folder) / "pipeline", repo_id, private)

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
                output = self(shown, seed=CARD_SEED, output_type="np")
                grid(list(output.images), shown, columns=4).save(folder / "grid.png")
            scores = sorted(stored.home.glob("scores*.json"))
            for path in scores:
                (folder / path.name).write_bytes(path.read_bytes())
            card = model_card(name, stored, license, shown, scores)
            (folder / "README.md").write_text(card, "utf-8")


def mix(text: TextFeatures, weights: Sequence[float]) -> TextFeatures:
    """Features on the straight line between two captions, one row a weight: 0 is the first, 1 the second.

    Pooled vectors and token states are averaged; where only one caption has a token, with zeros for the other. The
    masks are joined: in between, every token of either caption is read.
    """
    w = torch.tensor(weights, dtype=torch.float32)
    real = text.tokens_BTD * text.mask_BT[:, :, None]
    tokens = torch.lerp(real[:1], real[1:2], w[:, None, None])
    pooled = torch.lerp(text.pooled_BP[:1], text.pooled_BP[1:2], w[:, None])
    first, second = text.mask_BT[:1] & (w < 1)[:, None], text.mask_BT[1:2] & (w > 0)[:, None]
    return TextFeatures(tokens, first | second, pooled)


def _weights(frames: int) -> list[float]:
    return [frame / (frames - 1) for frame in range(frames)]


def _seeds(
    prompts: Sequence[str],
    each: int,
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> list[int]:
    """One seed a picture."""
    count = len(prompts) * each
    if seed is not None and generator is not None:
        raise InputError("give seed or generator, not both: each decides the noise alone")
    given: Any = seed if generator is None else generator
    if isinstance(given, Sequence | np.ndarray) and len(given) != count:
        what = "seeds" if generator is None else "generators"
        raise InputError(f"got {len(given)} {what} for {count} pictures; give one for each picture")
    if generator is not None:
        sources = [generator] * count if isinstance(generator, torch.Generator) else generator
        return [int(torch.randint(2**63 - 1, (), generator=g, device=g.device)) for g in sources]
    if isinstance(given, Sequence | np.ndarray):
        return [int(one) for one in given]
    base = secrets.randbits(63) if seed is None else int(given)
    return [derive(base, text, k) for text in prompts for k in range(each)]


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise InputError(f"{name} must be {least} or more, got {value}")


def _as(output_type: str, images_BHWC: ImageArray) -> list[Image.Image] | ImageArray | Tensor:
    if output_type == "np":
        return images_BHWC
    if output_type == "pt":
        return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).float() / 255
    if output_type == "pil":
        return [Image.fromarray(image) for image in images_BHWC]
    raise InputError(f"output_type {output_type!r} is unknown; valid ones: pil, np, pt")


def trained_with(pipe: TextToImagePipeline, clip: Path | None) -> dict[str, str]:
    """Digests of the encoders that took part in the training, and what they did."""
    encoder, guide = pipe.text_encoder, pipe.manifest.get("guide_digest")
    text = encoder.digest()
    # the digest of `aligned` also tells its length limit, a scorer's is of the dual encoder alone
    found = {encoder.dual.digest() if isinstance(encoder, AlignedEncoder) else text: "text encoder"}
    if clip is not None and encoder.name == "clip":  # whose digest is of the text tower alone
        from t2i.extractors.clip import clip_folder

        same = TextConfig(encoder="clip", path=str(clip), max_tokens=encoder.max_tokens)
        if fit_encoder(same, []).digest() == text:
            found[clip_folder(str(clip)).digest()] = "text encoder"
    return found | ({guide: "guide"} if guide else {})
