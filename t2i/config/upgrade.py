"""Upgrades configs that t2i 0.1 stored with runs and weights to the present keys."""

from collections.abc import Iterator, Mapping
from typing import Any

MARK = "logging_seconds"  # a key that every config of version 0.1 has, and no later one

# family -> keys that have become constants, and their values
FIXED: dict[str, dict[str, Any]] = {
    "cgan": {
        MARK: 10.0,
        "loss.mismatched_weight": 0.5,
        "loss.penalty_sigma": 0.01,
        "loss.ma_gp_weight": 2.0,
        "loss.candidates": 4,
        "loss.centering": 0.01,
        "discriminator_learning_rate": None,
        "lr_final_factor": 0.05,
        "ema_ramp": 0.05,
    },
    "vqvae": {
        MARK: 10.0,
        "quantizer.commitment": 0.25,
        "quantizer.revival_count": 1.0,
        "loss.adaptive_limit": 10.0,
        "lr_final_factor": 0.05,
        "adam_beta2": 0.99,
        "ema_ramp": 0.05,
    },
    "prior": {MARK: 10.0, "lr_final_factor": 0.05, "adam_beta2": 0.95, "max_grad_norm": 1.0, "ema_ramp": 0.05},
    "align": {MARK: 10.0, "captioning_weight": 1.0, "augment": True},
}

_CODEBOOK = ("quantizer.codebook_size", "quantizer.dim")
_AVERAGES = ("warmup_steps", "ema_decay", "revival_steps", "revive_below")
_FOLLOWING = tuple(f"quantizer.{name}" for name in _AVERAGES)
# (family, key of the kind, kind) -> keys that version 0.1 stored although this kind never read them
UNREAD: dict[tuple[str, str, str], tuple[str, ...]] = {
    ("cgan", "loss.kind", "hinge"): ("loss.gamma", "loss.penalty", "loss.penalty_fraction"),
    ("cgan", "guidance.encoder", "none"): ("guidance.path", "guidance.weight"),
    ("cgan", "guidance.encoder", "text"): ("guidance.path",),
    ("vqvae", "quantizer.kind", "vector"): ("quantizer.levels", "quantizer.depth"),
    ("vqvae", "quantizer.kind", "residual"): ("quantizer.levels",),
    ("vqvae", "quantizer.kind", "simvq"): ("quantizer.levels", "quantizer.depth", *_FOLLOWING),
    ("vqvae", "quantizer.kind", "scalar"): ("quantizer.depth", *_CODEBOOK, *_FOLLOWING),
}


def upgraded(family: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Removes keys that no longer exist from a config of version 0.1; returns any other config unchanged."""
    if MARK not in values:
        return dict(values)
    unread = [
        key for (of, kind, name), keys in UNREAD.items() if (of, _at(values, kind)) == (family, name) for key in keys
    ]
    gone = {*FIXED.get(family, {MARK: None}), *unread}
    return dict(_without(values, gone, ""))


def trained_otherwise(family: str, values: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the keys of a stored config that have become constants of another value: key -> (old value, constant)."""
    fixed = {key: now for key, now in FIXED.get(family, {}).items() if key != MARK}
    before = {key: _at(values, key) for key in fixed if _holds(values, key)}
    return {key: (then, fixed[key]) for key, then in before.items() if then != fixed[key]}


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _holds(values: Any, key: str) -> bool:
    section, _, name = key.rpartition(".")
    place = _at(values, section) if section else values
    return isinstance(place, Mapping) and name in place


def _without(values: Mapping[str, Any], gone: set[str], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield key, dict(_without(value, gone, f"{prefix}{key}."))
        elif prefix + key not in gone:
            yield key, value
