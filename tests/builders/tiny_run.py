"""A run directory of `t2i train cgan`, made without training."""

from pathlib import Path
from typing import Any

import torch

from t2i import checkpoint
from t2i.cgan.architectures import build
from t2i.cgan.config import Config
from t2i.config.load import to_yaml
from t2i.text import TextConfig, fit_encoder

CAPTIONS = [
    "a small red circle",
    "a large blue square above a small green star",
    "a yellow ring left of a purple heart on a black background",
    "one tiny orange triangle",
    "a big pink cross below a cyan diamond",
]
STEP = 7


def tiny_config(**changes: Any) -> Config:
    values: dict[str, Any] = {
        "data": {"address": "shapes-1"},
        "text": {"encoder": "bow"},
        "generator": {"z_dim": 8, "w_dim": 32, "width": 8, "width_limit": 32},
        "discriminator": {"width": 8, "width_limit": 16, "feature_dim": 16},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return Config.model_validate(values)


def make_run(directory: Path, step: int = STEP, seed: int = 0, **changes: Any) -> Path:
    """Writes a run whose averaged generator has no weights that are zero, as if it had been trained."""
    config = tiny_config(**changes)
    encoder = fit_encoder(TextConfig(encoder="bow"), CAPTIONS)
    encoder.save(directory / "text")
    (directory / "config.yaml").write_text(to_yaml(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator, _ = build(config, encoder.pooled_dim, encoder.token_dim)
        for tensor in generator.state_dict().values():
            tensor.add_(0.03 * torch.randn_like(tensor))
    manifest = {
        "family": "cgan",
        "images_seen": 8 * step,
        "config": config.model_dump(mode="json"),
        "config_hash": "0" * 64,
        "versions": {"t2i": "0.1.0", "torch": torch.__version__},
        "text_digest": encoder.digest(),
        "guide_digest": None,
    }
    checkpoint.save(directory / "checkpoints", step, {"ema": generator.state_dict()}, manifest)
    return directory
