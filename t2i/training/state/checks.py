"""Refusals of checkpoints that do not fit a run, and warnings of what resuming changes."""

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from t2i.config.load import CHANGEABLE_ON_RESUME, VERIFIED_ON_RESUME, differences
from t2i.config.training import TrainConfig
from t2i.config.upgrade import trained_otherwise
from t2i.errors import InputError
from t2i.training.state.parts import Parts

# keys of a manifest that resuming reads, and their types
_NEEDED: dict[str, type | tuple[type, ...]] = {
    "config": dict,
    "images_seen": int,
    "train_seconds": (int, float),
    "total_steps": (int, type(None)),
    "data": dict,
    "arithmetic": dict,
}
_OPTIONAL = ("data", "arithmetic")  # runs made before these were kept


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
