"""The critic of a run of `t2i train cgan`, as a judge of images; a saved pipeline has none."""

import numpy as np
import torch
from numpy.typing import NDArray

from t2i import checkpoint
from t2i.cgan.architectures import build
from t2i.cgan.config import Config
from t2i.images import ImageArray, to_model
from t2i.text import TextEncoder
from t2i.trained import TrainedRun

PART = "discriminator"
BATCH = 32


@torch.no_grad()
def critic_logits(
    run: TrainedRun, text: TextEncoder, images_NHWC: ImageArray, captions: list[str]
) -> NDArray[np.float64]:
    """[N] logits of images and their captions: high where the critic takes them for real."""
    config = Config.kept(run.manifest["config"])
    with torch.random.fork_rng(devices=[]):  # initialising weights must not use the caller's generator
        _, critic = build(config, text.pooled_dim, text.token_dim)
    checkpoint.load_module(critic, run.state[PART], PART)
    critic.eval()
    found = []
    for start in range(0, len(captions), BATCH):
        pooled = text.encode(captions[start : start + BATCH]).pooled_BP
        plain_N, features_NF, projected_NF = critic(to_model(images_NHWC[start : start + BATCH]), pooled)
        found.append((plain_N + (features_NF * projected_NF).sum(dim=1)).double().numpy())
    return np.concatenate(found)
