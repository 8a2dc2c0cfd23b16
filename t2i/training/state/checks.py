"""Refuses checkpoints that do not fit a run, and warns about changes that resuming allows."""

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from t2i.config.load import VERIFIED_ON_RESUME, changed_on_resume
from t2i.config.training import TrainConfig
from t2i.config.upgrade import trained_otherwise
from t2i.errors import InputError
from t2i.names import counted
from t2i.training.state.parts import Parts

# keys that resuming reads from a manifest, and their types
_NEEDED: dict[str, type | tuple[type, ...]] = {
    "config": dict,
    "images_seen": int,
    "train_seconds": (int, float),
    "total_steps": (int, type(None)),
    "data": dict,
    "arithmetic": dict,
}
_OPTIONAL = ("data", "arithmetic")  # missing in runs of early versions


def refuse_other_parts(path: Path, held: Collection[str], parts: Parts) -> None:
    """Raises InputError if the checkpoint at `path` holds other parts than the run has registered."""
    if odd := ", ".join(sorted(set(held) ^ set(parts.names))):
        raise InputError(
            f"checkpoint {path} belongs to another model: only one of the two has {odd}; name another directory"
        )


def refuse_another(path: Path, manifest: Mapping[str, Any], config: TrainConfig, family: str) -> None:
    """Raises InputError if the checkpoint at `path` has another family or config, or if its manifest is incomplete."""
    if manifest.get("family") != family:
        raise InputError(f"checkpoint {path} is of {manifest.get('family')}, not of {family}; name another directory")
    if odd := [key for key, kind in _NEEDED.items() if key in manifest and not isinstance(manifest[key], kind)]:
        raise InputError(f"checkpoint {path}: its manifest has an invalid {', '.join(odd)}; use an older checkpoint")
    if missing := [key for key in _NEEDED if key not in manifest and key not in _OPTIONAL]:
        raise InputError(f"checkpoint {path}: its manifest has no {', '.join(missing)}; use an older checkpoint")
    if fixed := trained_otherwise(family, manifest["config"]):
        what = ", ".join(f"{key} {then}, which is now always {now}" for key, (then, now) in list(fixed.items())[:3])
        raise InputError(
            f"checkpoint {path} was trained with {what}; resume it with t2i 0.1 (sampling from it still works)"
        )
    try:
        before = type(config).model_validate(manifest["config"])
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, detail["loc"])) for detail in error.errors())
        raise InputError(
            f"checkpoint {path} has a config that this version cannot read: {keys}; use the version of t2i that wrote it"
        ) from error
    verified = {key for key, digest in VERIFIED_ON_RESUME.items() if digest in manifest}
    changed = changed_on_resume(before, config, verified)
    if changed:
        what = ", ".join(f"{key} {old} (now {new})" for key, old, new in changed[:3])
        run = path.parents[1]
        raise InputError(f"{run} was started with {what}; resume with that config or name another run directory")


def warn_of_rounding(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warns if a run continues with other settings that change how sums are rounded (`Session.arithmetic`)."""
    changed = [f"{key} {now[key]} (was {before[key]})" for key in before if key in now and before[key] != now[key]]
    if changed:
        warnings.warn(
            f"resumed with {', '.join(changed)}: sums are rounded differently, so the weights will not be bit for bit those "
            "of a run that was never stopped",
            stacklevel=3,
        )


def warn_of_batch(before: int | None, now: int, config: TrainConfig) -> None:
    """Warns if a step sees more or fewer images than before because the number of processes has changed."""
    if before not in (None, now):
        images = config.train_batch_size * config.gradient_accumulation_steps
        warnings.warn(
            f"resumed on {counted(now, 'process')}, was {before}: a step now sees {counted(images * now, 'image')}, "
            f"not {images * before}; start {before} to continue as before",
            stacklevel=3,
        )
