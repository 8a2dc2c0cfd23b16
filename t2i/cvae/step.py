"""The arithmetic of one optimizer step of the conditional VAE: what is drawn for it, its rate, and the loss of each player.

Axes: B batch, L places, C channels of a latent, Z noise.
"""

import math
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from t2i import seeding
from t2i.cvae.config import Config
from t2i.cvae.critic import Critic, deceive
from t2i.cvae.network import Draws
from t2i.text import TextFeatures

FALL, FLOOR = 0.3, 0.02  # each phase ends with this share of its steps, in which its rate falls to this share
REST = 0.5  # the generator's beta1 once the critic plays: its gradients turn, and old ones mislead

Watched = dict[str, Tensor]  # scalars for the journal


class Micro(NamedTuple):
    """One micro-batch on the device, with every random number that its step needs."""

    latents_BLC: Tensor
    text: TextFeatures
    draws: Draws
    other_B: Tensor  # True where the caption of the next row says something else


def draw_micro(
    config: Config, latents_BLC: Tensor, text: TextFeatures, other_B: Tensor, sample_ids: NDArray[np.int64]
) -> Micro:
    """Draws the noises of a micro-batch of real latents, keyed by sample."""
    device, seed, dims = latents_BLC.device, config.seed, config.model.z_dim
    draws = Draws(
        torch.from_numpy(seeding.normal(seed, "posterior", sample_ids, dims)).to(device),
        torch.from_numpy(seeding.uniform(seed, "without_noise", sample_ids, 1)[:, 0]).to(device),
        torch.from_numpy(seeding.normal(seed, "free", sample_ids, dims)).to(device),
    )
    return Micro(latents_BLC, text, draws, other_B.to(device))


def sharpening(step: int, total: int, config: Config) -> bool:
    """Returns True in the last part of a run, in which the critic plays."""
    return step >= first_of_the_critic(total, config)


def first_of_the_critic(total: int, config: Config) -> int:
    """Returns the step at which the critic joins; `total` where it never does."""
    return min(total, math.ceil(config.critic.start * total))


def rate(step: int, total: int, config: Config) -> float:
    """Returns the learning rate of all players: in each of the two phases a rise, a plateau, and a linear fall."""
    begin = first_of_the_critic(total, config)
    if sharpening(step, total, config):
        peak, done, steps = config.critic.learning_rate, step - begin, total - begin
    else:
        peak, done, steps = config.learning_rate, step, begin
    rise = (done + 1) / max(1, min(config.lr_warmup_steps, steps // 10))
    fall = FLOOR + (1 - FLOOR) * (1 - done / steps) / FALL
    return peak * min(1.0, rise, fall)


def calm(optimizer: torch.optim.Optimizer) -> None:
    """Shortens the memory of an Adam's first moment."""
    for group in optimizer.param_groups:
        group["betas"] = (REST, group["betas"][1])


def generate(
    model: nn.Module, critic: Critic | None, micro: Micro, config: Config, autocast: AbstractContextManager
) -> tuple[Tensor, Watched, Tensor]:
    """Returns the loss of generator and posterior, scalars to watch, and latents_BLC of noise that no posterior saw
    (none without a critic).

    Args:
        critic: what the generator is to deceive, or None while squared error alone leads; run inside `autocast`.
    """
    terms, free = model(micro.latents_BLC, micro.text, micro.draws, critic is not None)
    watch = {name: value.detach() for name, value in terms._asdict().items()}
    if critic is None:
        return terms.loss, watch, micro.latents_BLC[:0]
    with autocast:
        deceived = deceive(critic, micro.latents_BLC, free, micro.text)
    loss = config.critic.lead * terms.loss + config.critic.weight * deceived
    return loss, watch | {"deceived": deceived.detach()}, free.detach()


def criticise(critic: nn.Module, micro: Micro, free_BLC: Tensor) -> tuple[Tensor, Watched]:
    """Returns the critic's loss on real and generated latents of one micro-batch, and scalars to watch."""
    terms = critic(micro.latents_BLC, free_BLC, micro.text, micro.other_B)
    return terms.critic_loss, {name: value.detach() for name, value in terms._asdict().items()}
