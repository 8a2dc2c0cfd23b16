"""Untrained runs of generators and dual encoders, for scoring."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from t2i import checkpoint
from t2i.align.config import Config as AlignConfig
from t2i.align.dual_encoder import DualEncoder
from t2i.align.frozen import FrozenDualEncoder
from t2i.align.tokenizer import CaptionTokenizer
from t2i.cgan.architectures import build
from t2i.cgan.config import Config
from t2i.config.load import to_yaml
from t2i.data import View, open_dataset
from t2i.extractors import aligned as scorer_module
from t2i.metrics.score import Score
from t2i.text import fit_encoder

SIDE = 16


TINY_ALIGN = {
    "embedding": 8,
    "text_tower": {"vocabulary": 300, "width": 16, "depth": 1, "heads": 2},
    "image_tower": {"width": 8, "width_limit": 16},
    "data": {"resolution": SIDE},
}


TINY_CGAN = {
    "data": {"address": "shapes-2", "resolution": SIDE},
    "text": {"encoder": "bow"},
    "generator": {"z_dim": 4, "w_dim": 8, "width": 8, "width_limit": 8},
    "discriminator": {"width": 8, "width_limit": 8, "feature_dim": 8},
}


def save_dual(folder: Path, seed: int) -> str:
    """Saves a random dual encoder; returns its digest."""
    config = AlignConfig.model_validate(TINY_ALIGN)
    captions = [options[0] for options in open_dataset("shapes-2", "val", View(SIDE, limit=50)).captions]
    tokenizer = CaptionTokenizer.fit(captions, config.text_tower.vocabulary, config.text_tower.max_tokens)
    torch.manual_seed(seed)
    dual = FrozenDualEncoder(config, tokenizer, DualEncoder(config, len(tokenizer)).state_dict())
    dual.save(folder)
    return dual.digest()


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Replaces the shipped encoder by a tiny random one; returns its digest."""
    folder = tmp_path_factory.mktemp("scorer")
    digest = save_dual(folder, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer_module, "scorer_dir", lambda: folder)
        yield digest


def save_run(folder: Path, changes: dict[str, Any] | None = None, guide_digest: str | None = None) -> Path:
    """Writes a run of `t2i train cgan` with an untrained generator."""
    config = Config.model_validate({**TINY_CGAN, **(changes or {})})
    captions = [options[0] for options in open_dataset("shapes-2", "train", View(SIDE, limit=200)).captions]
    encoder = fit_encoder(config.text, captions)
    encoder.save(folder / "text")
    torch.manual_seed(0)
    generator, discriminator = build(config, encoder.pooled_dim, encoder.token_dim)
    state = {name: model.state_dict() for name, model in (("generator", generator), ("discriminator", discriminator))}
    manifest = {
        "family": "cgan",
        "images_seen": 64,
        "total_steps": 1,
        "train_seconds": 1.0,
        "num_processes": 1,
        "config_hash": "ab" * 32,
        "versions": {"t2i": "0", "torch": "0"},
        "config": config.model_dump(mode="json"),
        "text_digest": encoder.digest(),
        "guide_digest": guide_digest,
    }
    checkpoint.save(folder / "checkpoints", 1, {**state, "ema": generator.state_dict()}, manifest)
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "command.json").write_text(json.dumps({"family": "cgan"}))
    return folder


def values(scores: list[Score]) -> dict[str, Score]:
    return {score.name.partition("@")[0]: score for score in scores}
