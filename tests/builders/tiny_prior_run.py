"""A run directory of `t2i train prior`, made without training."""

from pathlib import Path
from typing import Any

import torch

from builders.quantizers import settings_of
from builders.tiny_run import CAPTIONS
from t2i import checkpoint
from t2i.config.load import to_yaml
from t2i.families.tokenizers import save_tokenizer
from t2i.prior.config import Config
from t2i.prior.transformer import Grid, Prior
from t2i.text import TextConfig, fit_encoder
from t2i.vqvae.autoencoder import Autoencoder
from t2i.vqvae.config import Config as TokenizerConfig
from t2i.vqvae.frozen import FrozenTokenizer

STEP = 7
SIDE, CODES = 4, 32  # cells a side of a picture of 16 pixels


def save_random_tokenizer(folder: Path, kind: str = "vector", seed: int = 0) -> FrozenTokenizer:
    """Saves an untrained tokenizer whose images differ."""
    values = {
        "data": {"resolution": 16},
        "autoencoder": {"width": 8, "width_limit": 16, "grid": SIDE},
        "quantizer": settings_of(kind, codebook_size=CODES, dim=4),
    }
    config = TokenizerConfig.model_validate(values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Autoencoder(config)
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    tokenizer = FrozenTokenizer(config, model.state_dict())
    save_tokenizer(tokenizer, folder)
    return tokenizer


def make_prior_run(directory: Path, order: str = "random", kind: str = "vector", seed: int = 0, **changes: Any) -> Path:
    """Writes a run whose prior is sure of some codes and unsure of others."""
    values: dict[str, Any] = {
        "data": {"address": "shapes-1", "resolution": 16},
        "text": {"encoder": "bow"},
        "order": order,
        "model": {"width": 32, "depth": 2, "heads": 2, "mlp_width": 48, "dropout": 0.0},
    }
    config = Config.model_validate(values | changes)
    encoder = fit_encoder(TextConfig(encoder="bow"), CAPTIONS)
    encoder.save(directory / "text")
    tokenizer = save_random_tokenizer(directory / "tokenizer", kind)
    (directory / "config.yaml").write_text(to_yaml(config))
    grid = Grid(tokenizer.grid, tokenizer.grid, tokenizer.codebooks, tokenizer.codebook_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prior = Prior(config, grid, encoder.token_dim, encoder.pooled_dim, encoder.max_tokens)
        torch.nn.init.normal_(prior.head.weight, std=0.3)
        torch.nn.init.normal_(prior.modulation.weight, std=0.1)
    manifest = {
        "family": "prior",
        "images_seen": 8 * STEP,
        "config": config.model_dump(mode="json"),
        "config_hash": "1" * 64,
        "versions": {"t2i": "0.1.0", "torch": torch.__version__},
        "text_digest": encoder.digest(),
        "tokenizer_digest": tokenizer.digest(),
        "grid": list(grid),
    }
    state = {"model": prior.state_dict(), "ema": prior.state_dict()}
    checkpoint.save(directory / "checkpoints", STEP, state, manifest)
    return directory
