"""A run of a tokenizer, made without training."""

from pathlib import Path

import torch

from builders.quantizers import settings_of
from t2i import checkpoint
from t2i.config.load import to_yaml
from t2i.vqvae.autoencoder import Autoencoder
from t2i.vqvae.config import Config


def make_run(directory: Path, kind: str = "vector", seed: int = 0, **changes) -> Path:
    """Writes a run of `t2i train vqvae`, made without training."""
    values = {
        "autoencoder": {"width": 8, "width_limit": 16},
        "quantizer": settings_of(kind, codebook_size=64, dim=4, levels=[4, 4, 4]),
    }
    config = Config.model_validate(values | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Autoencoder(config)
        for parameter in model.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    manifest = {"family": "vqvae", "config": config.model_dump(mode="json")}
    directory.mkdir(exist_ok=True)
    (directory / "config.yaml").write_text(to_yaml(config))
    checkpoint.save(directory / "checkpoints", 5, {"model": model.state_dict()}, manifest)
    return directory
