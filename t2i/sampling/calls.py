"""Checks the arguments of a pipeline's calls, including those that users of diffusers pass by habit."""

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

from t2i.config.options import SEEDS
from t2i.errors import InputError
from t2i.images import ImageArray
from t2i.names import brief, counted
from t2i.sampling.prompts import clean_prompt, image_seed

OutputType = Literal["pil", "np", "pt", "uint8"]
OUTPUT_TYPES: tuple[str, ...] = get_args(OutputType)
# argument of diffusers -> the values that have no effect here, and the reason for refusing others
IDLE_LOADING: dict[str, tuple[tuple[Any, ...], str]] = {
    "torch_dtype": ((None, "auto", "float32", torch.float32), "models compute in float32"),
    "dtype": ((None, "auto", "float32", torch.float32), "models compute in float32"),
    "variant": ((None,), "a pipeline has one set of weights"),
    "use_safetensors": ((None, True), "only safetensors files are read"),
    "trust_remote_code": ((None, False), "code that comes with a model never runs"),
    "custom_pipeline": ((None,), "code that comes with a model never runs"),
    "device_map": ((None,), "pass device instead"),
    "low_cpu_mem_usage": ((None, True, False), ""),
    "safety_checker": ((None,), "there is none"),
    "requires_safety_checker": ((None, True, False), ""),
    "feature_extractor": ((None,), "there is none"),
    "resume_download": ((None, True, False), ""),
    "output_loading_info": ((None, False), "there is none"),
    "load_connected_pipeline": ((None, False), "a pipeline is one folder"),
    "quantization_config": ((None,), "models compute in float32; t2i export writes int8"),
    **dict.fromkeys(
        ("proxies", "mirror", "custom_revision", "max_memory", "offload_folder", "offload_state_dict", "use_onnx",
         "provider", "sess_options", "provider_options", "use_flashpack", "disable_mmap", "image_encoder", "scheduler"),
        ((None, False), "nothing here reads it"),
    ),
}  # fmt: skip
HUB = ("cache_dir", "revision", "token", "local_files_only", "force_download")
IDLE_SAVING: dict[str, tuple[tuple[Any, ...], str]] = {
    "safe_serialization": ((None, True), "only safetensors files are written"),
    "variant": ((None,), "a pipeline has one set of weights"),
    "push_to_hub": ((None, False), "call pipe.push_to_hub(repo_id) instead"),
    "max_shard_size": ((None,), "each component is one file"),
}
IDLE_CALL: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_inference_steps": ((None,), "a GAN has no steps, a prior takes steps=N"),
    "negative_prompt": ((None, ""), "guidance is relative to the empty caption"),
    "eta": ((None, 0, 0.0), "there is no diffusion process"),
    "latents": ((None,), "pass seed or generator"),
    "cross_attention_kwargs": ((None, {}), "there are no attention processors"),
    "guidance_rescale": ((None, 0, 0.0), "set guidance_scale"),
    "clip_skip": ((None,), "the model was trained with one layer of its text encoder"),
    "callback_on_step_end_tensor_inputs": ((None, [], ["latents"]), "the callback receives the seeds"),
    "image": ((None,), "the argument is init_image"),
    "strength": ((None,), "mask_image marks the part to resample"),
    "callback": ((None,), "the argument is callback_on_step_end"),
    "callback_steps": ((None, 1), "the argument is callback_on_step_end"),
    "true_cfg_scale": ((None, 1, 1.0), "set guidance_scale"),
    "max_sequence_length": ((None,), "the text encoder of the model decides it"),
    **dict.fromkeys(("timesteps", "sigmas", "denoising_end"), ((None,), "there is no diffusion process")),
    **dict.fromkeys(
        ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds", "prompt_2",
         "negative_prompt_2", "ip_adapter_image", "ip_adapter_image_embeds"),
        ((None,), "pass the prompt as text"),
    ),
    **dict.fromkeys(
        ("original_size", "target_size", "crops_coords_top_left", "joint_attention_kwargs", "masked_image_latents",
         "padding_mask_crop"),
        ((None,), "nothing here reads it"),
    ),
}  # fmt: skip


def split_idle(
    arguments: Mapping[str, Any], idle: Mapping[str, tuple[tuple[Any, ...], str]], callee: str
) -> dict[str, Any]:
    """Returns the arguments that are not in `idle`, after a check that those in `idle` have no effect.

    Raises:
        InputError: an argument in `idle` has a value that would have an effect.
    """
    for name in arguments.keys() & idle.keys():
        values, why = idle[name]
        value = arguments[name]
        if not any(value is other or (type(value) is type(other) and value == other) for other in values):
            raise InputError(f"{callee} does not take {name}={_short(value)}: {why}; drop it")
    return {name: value for name, value in arguments.items() if name not in idle}


def refuse_unknown(arguments: Mapping[str, Any], callee: str, known: Sequence[str]) -> None:
    """Raises InputError if any argument is left; the message lists the known ones."""
    if arguments:
        raise InputError(f"{callee} has no argument {min(arguments)!r}; it takes {', '.join(known)}")


def usable_device(device: Any) -> torch.device:
    """Returns the device with its index, after allocating on it; raises InputError if that fails."""
    try:
        usable = torch.empty(0, device=device).device
        if usable.type == "meta":  # its tensors have shapes but no values
            raise RuntimeError("it holds no values")
        return usable
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(
            f"device {str(device)!r} cannot be used ({brief(error)}); `t2i doctor` lists the devices"
        ) from error


def settings_of_call(arguments: Mapping[str, Any], resolution: int) -> dict[str, Any]:
    """Returns the settings of the family from the keyword arguments of a call.

    Args:
        resolution: pixels per side of the model's images, the only valid height and width.
    """
    settings = split_idle(arguments, IDLE_CALL, "a call")
    for side in ("height", "width"):
        value = settings.pop(side, None)
        if value is not None and value != resolution:
            raise InputError(
                f"{side} {_short(value)}: this model makes images of {resolution} x {resolution} pixels only"
            )
    return settings


def prompts_of(prompt: Any) -> list[str]:
    """Returns the prompts as a list, cleaned like training captions.

    Raises:
        InputError: `prompt` is neither a text nor a list of texts, the list is empty, or a text is empty or too long.
    """
    if isinstance(prompt, str):
        return [clean_prompt(prompt)]
    if not _is_list(prompt):
        raise InputError(f"a prompt must be text or a list of texts, got {_short(prompt)}")
    count("prompts", len(prompt))
    return [clean_prompt(text) for text in prompt]


def count(name: str, value: Any, least: int = 1) -> int:
    """Returns `value` as an int of at least `least`; raises InputError otherwise."""
    integer = whole(value)
    if integer is None:
        raise InputError(f"{name} must be a whole number, got {_short(value)}")
    if integer < least:
        raise InputError(f"{name} must be {least} or more, got {integer}")
    return integer


def number(name: str, value: Any) -> float:
    """Returns `value` as a finite float >= 0; raises InputError otherwise."""
    try:
        valid = not isinstance(value, bool | str) and math.isfinite(value) and value >= 0
    except (TypeError, ValueError, OverflowError):
        valid = False
    if not valid:
        raise InputError(f"{name} must be a number from 0 on, got {_short(value)}; 1 is plain sampling")
    return float(value)


def output_type_of(value: Any) -> OutputType:
    """Returns `value`; raises InputError if it is not a valid output type."""
    if not isinstance(value, str) or value not in OUTPUT_TYPES:
        raise InputError(f"output_type {_short(value)} is unknown; valid ones: {', '.join(OUTPUT_TYPES)}")
    return cast(OutputType, value)


def as_output(output_type: str, images_BHWC: ImageArray) -> list[Image.Image] | np.ndarray | Tensor:
    """Converts uint8 images to the output type."""
    if output_type == "uint8":
        return images_BHWC
    if output_type == "np":
        return images_BHWC.astype(np.float32) / 255
    if output_type == "pt":
        return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).float() / 255
    return [Image.fromarray(image) for image in images_BHWC]


def seeds_of(prompts: Sequence[str], each: int, seed: Any, generator: Any) -> list[int]:
    """Returns one seed for each image, `each` images for every prompt.

    Raises:
        InputError: both `seed` and `generator` are set, one has the wrong type, or a list has the wrong length.
    """
    if seed is not None and generator is not None:
        raise InputError("pass seed or generator, not both: each of them decides the noise")
    total = len(prompts) * each
    if generator is not None:
        one = isinstance(generator, torch.Generator)
        sources = [generator] * total if one else _one_each(generator, total, "generator", "torch.Generator")
        if odd := next((source for source in sources if not isinstance(source, torch.Generator)), None):
            raise InputError(
                f"generator must be a torch.Generator or a list of them, got {_short(odd)}; a number is a seed"
            )
        return [int(torch.randint(2**63 - 1, (), generator=source, device=source.device)) for source in sources]
    if seed is None:
        seed = secrets.randbits(63)
    if whole(seed) is not None:
        base = _seed_of(seed)
        return [image_seed(base, text, k) for text in prompts for k in range(each)]
    return [_seed_of(one) for one in _one_each(seed, total, "seed", "whole number")]


def _seed_of(value: Any) -> int:
    seed = whole(value)
    if seed is None or not 0 <= seed < SEEDS:
        raise InputError(f"a seed must be a whole number from 0 to 2**63 - 1, got {_short(value)}")
    return seed


def _one_each(values: Any, total: int, name: str, kind: str) -> list[Any]:
    if not _is_list(values):
        hint = "; a number is a seed" if name == "generator" else ""
        raise InputError(f"{name} must be a {kind} or a list of them, got {_short(values)}{hint}")
    if len(values) != total:
        raise InputError(f"got {counted(len(values), name)} for {counted(total, 'image')}; pass one for each image")
    return list(values)


def _is_list(value: Any) -> bool:
    """Returns True for lists, tuples, 1-d arrays and series; False for strings, mappings and sets."""
    unordered = isinstance(value, str | bytes | Mapping | AbstractSet)
    return not unordered and hasattr(value, "__len__") and getattr(value, "ndim", 1) == 1


def whole(value: Any) -> int | None:
    """Returns the value as an int, or None if it is not a whole number."""
    if isinstance(value, bool) or getattr(value, "ndim", 0):  # a tensor with one entry is a list
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
    """Images and their seeds: `pipe(prompt, seed=output.seeds[i])`, or `--seed`, makes image i again.

    `output[0]` and `output["images"]` are the images, as in diffusers.
    """

    images: Any  # list[PIL.Image.Image], ImageArray or Tensor: the call's `output_type` decides
    seeds: list[int]
    scores: list[list[float]] | None = None  # with `best_of`: scores of all candidates of each image

    def to_tuple(self) -> tuple[Any, ...]:
        return (self.images, self.seeds) if self.scores is None else (self.images, self.seeds, self.scores)

    def __getitem__(self, key: int | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]
