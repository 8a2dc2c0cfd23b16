"""A run directory of `t2i train cvae`, made without training."""

from pathlib import Path
from typing import Any

import torch

from builders.tiny_prior_run import save_random_tokenizer
from builders.tiny_run import CAPTIONS
from t2i import checkpoint
from t2i.config.load import to_yaml
from t2i.cvae.config import Config
from t2i.cvae.network import ConditionalVAE
from t2i.cvae.sampling import Latents
from t2i.text import TextConfig, fit_encoder

STEP = 7


def make_cvae_run(directory: Path, kind: str = "vector", **changes: Any) -> Path:
    """Writes a run whose generator has no weights that are zero, as if it had been trained."""
    values: dict[str, Any] = {
        "data": {"address": "shapes-1", "resolution": 16},
        "text": {"encoder": "bow"},
        "model": {"width": 16, "depth": 2, "heads": 2, "z_dim": 8, "posterior_width": 8},
    }
    config = Config.model_validate(values | changes)
    encoder = fit_encoder(TextConfig(encoder="bow"), CAPTIONS)
    encoder.save(directory / "text")
    tokenizer = save_random_tokenizer(directory / "tokenizer", kind)
    (directory / "config.yaml").write_text(to_yaml(config))
    shape = Latents(tokenizer).shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ConditionalVAE(config, shape, encoder.token_dim, encoder.pooled_dim, encoder.max_tokens)
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    manifest = {
        "family": "cvae",
        "images_seen": 8 * STEP,
        "config": config.model_dump(mode="json"),
        "config_hash": "2" * 64,
        "versions": {"t2i": "0.1.0", "torch": torch.__version__},
        "text_digest": encoder.digest(),
        "tokenizer_digest": tokenizer.digest(),
        "shape": list(shape),
    }
    state = {"model": model.state_dict(), "ema": model.state_dict()}
    checkpoint.save(directory / "checkpoints", STEP, state, manifest)
    return directory
