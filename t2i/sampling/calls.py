"""Checks the arguments of a pipeline's calls before any work, those that users of diffusers pass by habit included."""

import math
import operator
import secrets
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2i.errors import InputError
from t2i.images import ImageArray
from t2i.sampling.prompts import clean_prompt, image_seed

OutputType = Literal["pil", "np", "pt", "uint8"]
OUTPUT_TYPES: tuple[str, ...] = get_args(OutputType)
# argument of diffusers -> the values that change nothing here, and why others are refused
IDLE_LOADING: dict[str, tuple[tuple[Any, ...], str]] = {
    "torch_dtype": ((None, "auto", "float32", torch.float32), "models compute in float32"),
    "dtype": ((None, "auto", "float32", torch.float32), "models compute in float32"),
    "variant": ((None,), "a pipeline has one set of weights"),
    "use_safetensors": ((None, True), "nothing is unpickled here"),
    "trust_remote_code": ((None, False), "no code that comes with a model is run"),
    "custom_pipeline": ((None,), "no code that comes with a model is run"),
    "device_map": ((None,), "name a device instead"),
    "low_cpu_mem_usage": ((None, True, False), ""),
    "safety_checker": ((None,), "there is none"),
    "requires_safety_checker": ((None, True, False), ""),
    "feature_extractor": ((None,), "there is none"),
    "resume_download": ((None, True, False), ""),
}
HUB = ("cache_dir", "revision", "token", "local_files_only", "force_download")
IDLE_SAVING: dict[str, tuple[tuple[Any, ...], str]] = {
    "safe_serialization": ((None, True), "nothing is pickled here"),
    "variant": ((None,), "a pipeline has one set of weights"),
    "push_to_hub": ((None, False), "call pipe.push_to_hub(repo_id) instead"),
    "max_shard_size": ((None,), "each component is one file"),
}
# of a call: those with another name here, and those that only do nothing when they are left out
IDLE_CALL: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_inference_steps": ((None,), "a GAN has no steps, a prior takes steps=N"),
    "negative_prompt": ((None,), "guidance leads away from the empty caption"),
    "eta": ((None, 0, 0.0), "there is no diffusion process"),
    "latents": ((None,), "give seed or generator"),
    "prompt_embeds": ((None,), "give the prompt as text"),
    "negative_prompt_embeds": ((None,), "give the prompt as text"),
    "cross_attention_kwargs": ((None, {}), "there is none of its processors"),
    "guidance_rescale": ((None, 0, 0.0), "set guidance_scale"),
    "clip_skip": ((None,), "the text encoder is read as it was trained with"),
    "callback_on_step_end_tensor_inputs": ((None, [], ["latents"]), "the callback is given the seeds"),
    "image": ((None,), "the argument is init_image"),
    "strength": ((None,), "a mask_image says what is sampled anew"),
}


def split_idle(given: Mapping[str, Any], idle: Mapping[str, tuple[tuple[Any, ...], str]], what: str) -> dict[str, Any]:
    """The arguments that are not in `idle`; those that are must have a value that changes nothing.

    Raises:
        InputError: one has another value.
    """
    for name in given.keys() & idle.keys():
        values, why = idle[name]
        if not any(
            given[name] is value or (type(given[name]) is type(value) and given[name] == value) for value in values
        ):
            raise InputError(f"{what} does not take {name}={_short(given[name])}: {why}; leave it out")
    return {name: value for name, value in given.items() if name not in idle}


def refuse_unknown(given: Mapping[str, Any], what: str, known: Sequence[str]) -> None:
    """Raises InputError when an argument is left over; the message lists the known ones."""
    if given:
        raise InputError(f"{what} has no argument {min(given)!r}; it takes {', '.join(known)}")


def settings_of_call(given: Mapping[str, Any], resolution: int) -> dict[str, Any]:
    """The settings of the family among the further arguments of a call.

    Args:
        resolution: pixels a side of the model's images, the only height and width there are.
    """
    settings = split_idle(given, IDLE_CALL, "a call")
    for side in ("height", "width"):
        value = settings.pop(side, None)
        if value is not None and value != resolution:
            raise InputError(
                f"{side} {_short(value)}: this model makes images of {resolution} x {resolution} pixels only"
            )
    return settings


def prompts_of(prompt: Any) -> list[str]:
    """One prompt or several, each cleaned as training captions are.

    Raises:
        InputError: it is no text, no list of texts, or one of them is empty or too long.
    """
    if isinstance(prompt, str):
        return [clean_prompt(prompt)]
    if not _is_list(prompt):
        raise InputError(f"a prompt must be text or a list of texts, got {_short(prompt)}")
    return [clean_prompt(text) for text in prompt]


def count(name: str, value: Any, least: int = 1) -> int:
    """A whole number from `least` on; InputError otherwise."""
    found = whole(value)
    if found is None:
        raise InputError(f"{name} must be a whole number, got {_short(value)}")
    if found < least:
        raise InputError(f"{name} must be {least} or more, got {found}")
    return found


def number(name: str, value: Any) -> float:
    """A finite number from 0 on; InputError otherwise."""
    try:
        good = not isinstance(value, bool | str) and math.isfinite(value) and value >= 0
    except (TypeError, ValueError, OverflowError):
        good = False
    if not good:
        raise InputError(f"{name} must be a number from 0 on, got {_short(value)}; 1 is plain sampling")
    return float(value)


def output_type_of(value: Any) -> OutputType:
    """The kind of output, checked before any work."""
    if not isinstance(value, str) or value not in OUTPUT_TYPES:
        raise InputError(f"output_type {_short(value)} is unknown; valid ones: {', '.join(OUTPUT_TYPES)}")
    return cast(OutputType, value)


def as_output(output_type: str, images_BHWC: ImageArray) -> list[Image.Image] | np.ndarray | Tensor:
    """The images as a call's `output_type` asks for them."""
    if output_type == "uint8":
        return images_BHWC
    if output_type == "np":
        return images_BHWC.astype(np.float32) / 255
    if output_type == "pt":
        return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).float() / 255
    return [Image.fromarray(image) for image in images_BHWC]


def seeds_of(prompts: Sequence[str], each: int, seed: Any, generator: Any) -> list[int]:
    """One seed an image, `each` for every prompt.

    Raises:
        InputError: both are given, one is of another type, or a list has not one for each image.
    """
    if seed is not None and generator is not None:
        raise InputError("give seed or generator, not both: each decides the noise alone")
    total = len(prompts) * each
    if generator is not None:
        one = isinstance(generator, torch.Generator)
        sources = [generator] * total if one else _one_each(generator, total, "generator", "torch.Generator")
        if odd := next((source for source in sources if not isinstance(source, torch.Generator)), None):
            raise InputError(
                f"generator must be a torch.Generator or a list of them, got {_short(odd)}; a number is a seed"
            )
        return [int(torch.randint(2**63 - 1, (), generator=source, device=source.device)) for source in sources]
    base = secrets.randbits(63) if seed is None else whole(seed)
    if base is not None:
        return [image_seed(base, text, k) for text in prompts for k in range(each)]
    seeds = [(one, whole(one)) for one in _one_each(seed, total, "seed", "whole number")]
    if odd := next((repr(one) for one, value in seeds if value is None), None):
        raise InputError(f"a seed must be a whole number, got {odd[:40]}")
    return [value for _, value in seeds if value is not None]


def _one_each(given: Any, total: int, name: str, kind: str) -> list[Any]:
    if not _is_list(given):
        hint = "; a number is a seed" if name == "generator" else ""
        raise InputError(f"{name} must be a {kind} or a list of them, got {_short(given)}{hint}")
    if len(given) != total:
        raise InputError(f"got {len(given)} {name}s for {total} images; give one for each image")
    return list(given)


def _is_list(given: Any) -> bool:
    """True for lists, tuples, arrays and series; False for what only looks like one."""
    odd = isinstance(given, str | bytes | Mapping | AbstractSet)
    return not odd and hasattr(given, "__len__") and getattr(given, "ndim", 1) == 1


def whole(value: Any) -> int | None:
    """The value as an int; None where it is no whole number."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _short(value: Any) -> str:
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 40 else f"{shown[:37]}..."


@dataclass
class ImagePipelineOutput:
    """Images and the seed of each: `pipe(prompt, seed=that_seed)`, or `--seed` of it, makes that image again.

    `output[0]` and `output["images"]` are the images, as in diffusers.
    """

    images: Any  # list[PIL.Image.Image], ImageArray or Tensor: the call's `output_type` decides
    seeds: list[int]
    scores: list[list[float]] | None = None  # with `best_of`: of all candidates of each image, the best was kept

    def to_tuple(self) -> tuple[Any, ...]:
        return (self.images, self.seeds) if self.scores is None else (self.images, self.seeds, self.scores)

    def __getitem__(self, key: int | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]
