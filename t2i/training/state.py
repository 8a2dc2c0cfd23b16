"""What a run's checkpoints hold: the registered parts and their tensors, and whether a checkpoint fits a run.

The manifest of each holds digests of the data and of the frozen networks. Contents decide: a folder may be moved.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from t2i import checkpoint
from t2i.config.load import CHANGEABLE_ON_RESUME, VERIFIED_ON_RESUME, differences
from t2i.config.training import TrainConfig
from t2i.config.upgrade import trained_otherwise
from t2i.data import Dataset
from t2i.errors import InputError
from t2i.names import counted

# what resuming reads of a manifest, and of which type
_NEEDED: dict[str, type | tuple[type, ...]] = {
    "config": dict,
    "images_seen": int,
    "train_seconds": (int, float),
    "total_steps": (int, type(None)),
    "data": dict,
    "arithmetic": dict,
}
_OPTIONAL = ("data", "arithmetic")  # runs made before these were kept


@runtime_checkable
class Stateful(Protocol):
    """What `Run.register` takes beside modules and optimizers."""

    def state_tensors(self) -> dict[str, Tensor]: ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...


Part = nn.Module | Optimizer | Stateful


class Parts:
    """Named modules, optimizers and others whose tensors are saved and put back.

    Args:
        plain: takes the wrappers of DDP and torch.compile off a module, which prefix the names of tensors.
    """

    def __init__(self, plain: Callable[[nn.Module], nn.Module]):
        self._plain = plain
        self._parts: dict[str, Part] = {}

    @property
    def names(self) -> Collection[str]:
        return self._parts.keys()

    def add(self, name: str, part: Part) -> None:
        if name in self._parts:
            raise ValueError(f"part {name!r} is registered twice")
        if not isinstance(part, nn.Module | Optimizer | Stateful):
            raise TypeError(f"part {name!r} is a {type(part).__name__}: no module, no optimizer and not Stateful")
        self._parts[name] = part

    def state(self) -> dict[str, dict[str, Tensor]]:
        return {name: self._state_of(part) for name, part in self._parts.items()}

    def _state_of(self, part: Part) -> dict[str, Tensor]:
        if isinstance(part, nn.Module):
            return self._plain(part).state_dict()
        return checkpoint.optimizer_state(part) if isinstance(part, Optimizer) else part.state_tensors()

    def sizes(self) -> str:
        """Returns the number of parameters of each module, in words."""
        modules = {name: part for name, part in self._parts.items() if isinstance(part, nn.Module)}
        return ", ".join(f"{name} {sum(p.numel() for p in part.parameters()):,}" for name, part in modules.items())

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, tensors in state.items():
            part = self._parts[name]
            if isinstance(part, nn.Module):
                checkpoint.load_module(self._plain(part), tensors, name)
            elif isinstance(part, Optimizer):
                checkpoint.load_optimizer_state(part, tensors)
            else:
                part.load_tensors(tensors)


def not_finite(state: Mapping[str, Mapping[str, Tensor]], step: int, folder: Path) -> str | None:
    """Returns a sentence about a tensor that must not be saved in `folder`, None when all are finite."""
    for name, tensors in state.items():
        for key, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                return (
                    f"step {step}: {key} of {name} is not finite, so it is not saved; lower the learning "
                    f"rate, the last checkpoint in {folder} is intact"
                )
    return None


def refuse_other_parts(path: Path, held: Collection[str], parts: Parts) -> None:
    """Raises InputError when the checkpoint at `path` holds other parts than the run has registered."""
    if odd := ", ".join(sorted(set(held) ^ set(parts.names))):
        raise InputError(f"checkpoint {path} is of another model: {odd} on one side only; name another directory")


def refuse_another(path: Path, manifest: Mapping[str, Any], config: TrainConfig, family: str) -> None:
    """Raises InputError when the checkpoint at `path` is of another family or config, or its manifest lacks something."""
    if manifest.get("family") != family:
        raise InputError(f"checkpoint {path} is of {manifest.get('family')}, not of {family}; name another directory")
    if odd := [key for key, kind in _NEEDED.items() if key in manifest and not isinstance(manifest[key], kind)]:
        raise InputError(f"checkpoint {path}: its manifest has an odd {', '.join(odd)}; use an older checkpoint")
    if lacking := [key for key in _NEEDED if key not in manifest and key not in _OPTIONAL]:
        raise InputError(f"checkpoint {path}: its manifest has no {', '.join(lacking)}; use an older checkpoint")
    if fixed := trained_otherwise(family, manifest["config"]):
        what = ", ".join(f"{key} {then}, which is always {now} now" for key, (then, now) in list(fixed.items())[:3])
        raise InputError(
            f"checkpoint {path} was trained with {what}; resume it with t2i 0.1, or sample from it as it is"
        )
    try:
        before = type(config).model_validate(manifest["config"])
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, detail["loc"])) for detail in error.errors())
        raise InputError(
            f"checkpoint {path} has a config that this version does not read: {keys}; use the t2i that wrote it"
        ) from error
    verified = {key for key, digest in VERIFIED_ON_RESUME.items() if digest in manifest}
    changed = [d for d in differences(before, config) if d[0] not in CHANGEABLE_ON_RESUME and d[0] not in verified]
    if changed:
        what = ", ".join(f"{key} {old} (now {new})" for key, old, new in changed[:3])
        run = path.parents[1]
        raise InputError(f"{run} was started with {what}; resume with that config or name another run directory")


def is_sound(manifest: Mapping[str, Any]) -> bool:
    """Whether the step that a checkpoint was saved after had finite losses and gradients."""
    return manifest.get("sound", True)


def warn_of_rounding(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warns when a run goes on with another arithmetic than it had, as manifests keep it."""
    changed = [f"{key} {now[key]} (was {before[key]})" for key in before if key in now and before[key] != now[key]]
    if changed:
        warnings.warn(
            f"resumed with {', '.join(changed)}: sums round otherwise, so the weights will not be bit for bit those of "
            "a run that was never stopped",
            stacklevel=3,
        )


def warn_of_batch(before: int | None, now: int, config: TrainConfig) -> None:
    """Warns when a step sees more or fewer images than before, since another number of processes trains."""
    if before not in (None, now):
        images = config.train_batch_size * config.gradient_accumulation_steps
        warnings.warn(
            f"resumed on {now} process(es), was {before}: a step now sees {images * now} images, not {images * before}; "
            f"start {before} to go on as before",
            stacklevel=3,
        )


# ---- the data and the frozen networks that a run was started with -----------------------------------------------------


def data_digest(dataset: Dataset) -> dict[str, Any]:
    """Returns what tells one split of a data set from another, as JSON values: counts, and digests over all rows."""
    ids, captions = hashlib.sha256(dataset.split.encode()), hashlib.sha256()
    number = 0
    for name, options in zip(dataset.ids, dataset.captions, strict=True):
        ids.update(json.dumps(name).encode())
        captions.update(json.dumps(list(options)).encode())
        number += len(options)
    counts = {"images": len(dataset), "number_of_captions": number}
    return counts | {"ids": ids.hexdigest(), "captions": captions.hexdigest(), "contents": dataset.digest()}


def refuse_other_data(directory: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises InputError when the run in `directory` was started with other data than it finds now."""
    changed = [
        f"{before.get(key):,} {what}, now {now[key]:,}"
        for key, what in (("images", "images"), ("number_of_captions", "captions"))
        if before.get(key) != now[key]
    ]
    changed += [
        f"other {what}"
        for key, what in (("ids", "names of images"), ("captions", "captions"))
        if before.get(key) != now[key]
    ]
    if not changed and before.get("contents") != now["contents"]:
        changed.append("other contents of image files")
    if changed:
        raise InputError(
            f"the data is not what run {directory} was started with ({'; '.join(changed)}); bring it back to resume, or "
            "name another run directory to train on the new data"
        )


def refuse_other_digest(directory: Path, what: str, before: str | None, now: str | None) -> None:
    """Raises InputError when a frozen part of the run in `directory` is not the one it was started with."""
    if before != now:
        raise InputError(
            f"the {what} is not what run {directory} was started with (digest {_short(before)}, now {_short(now)}); bring "
            "the old one back to resume, or name another run directory"
        )


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]


def describe_data(found: Mapping[str, Any]) -> str:
    """Returns a data set in a few words, for processes that were given different ones."""
    return f"{describe_counts(found)}, {str(found['ids'])[:8]}"


def describe_counts(found: Mapping[str, Any]) -> str:
    """Returns how much a data set holds."""
    return f"{counted(found['images'], 'image')}, {counted(found['number_of_captions'], 'caption')}"
