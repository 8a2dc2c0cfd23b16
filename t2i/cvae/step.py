"""One optimizer step of the conditional VAE: random numbers, learning rate, and the losses of generator and critic.

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
from t2i.cvae.critic import Critic, adversarial_loss
from t2i.cvae.network import Draws
from t2i.text import TextFeatures

FALL, FLOOR = 0.3, 0.02  # share of a phase in which its rate falls linearly, and the share of the peak that it falls to
ADVERSARIAL_BETA1 = 0.5  # the generator's beta1 once the critic has joined, as adversarial gradients change direction

Watched = dict[str, Tensor]  # scalars for the journal


class Micro(NamedTuple):
    """One micro-batch on the device, with all random numbers of its step."""

    latents_BLC: Tensor
    text: TextFeatures
    draws: Draws
    other_B: Tensor  # True for rows whose caption differs from that of the next row


def draw_micro(
    config: Config, latents_BLC: Tensor, text: TextFeatures, other_B: Tensor, sample_ids: NDArray[np.int64]
) -> Micro:
    """Draws the random numbers of a micro-batch; those of a sample depend only on its id and the seed."""
    device, seed, dims = latents_BLC.device, config.seed, config.model.z_dim
    draws = Draws(
        torch.from_numpy(seeding.normal(seed, "posterior", sample_ids, dims)).to(device),
        torch.from_numpy(seeding.uniform(seed, "without_noise", sample_ids, 1)[:, 0]).to(device),
        torch.from_numpy(seeding.normal(seed, "free", sample_ids, dims)).to(device),
    )
    return Micro(latents_BLC, text, draws, other_B.to(device))


def has_critic(step: int, total: int, config: Config) -> bool:
    """Returns True in the last part of a run, which trains the critic too."""
    return step >= critic_start(total, config)


def critic_start(total: int, config: Config) -> int:
    """Returns the step at which the critic joins, `total` if it never does."""
    return min(total, math.ceil(config.critic.start * total))


def rate(step: int, total: int, config: Config) -> float:
    """Returns the learning rate of generator and critic: warm-up, plateau and linear fall in each of the two phases."""
    begin = critic_start(total, config)
    if has_critic(step, total, config):
        peak, done, steps = config.critic.learning_rate, step - begin, total - begin
    else:
        peak, done, steps = config.learning_rate, step, begin
    rise = (done + 1) / max(1, min(config.lr_warmup_steps, steps // 10))
    fall = FLOOR + (1 - FLOOR) * (1 - done / steps) / FALL
    return peak * min(1.0, rise, fall)


def shorten_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Sets the beta1 of an Adam to that of adversarial training."""
    for group in optimizer.param_groups:
        group["betas"] = (ADVERSARIAL_BETA1, group["betas"][1])


def generate(
    model: nn.Module, critic: Critic | None, micro: Micro, config: Config, autocast: AbstractContextManager
) -> tuple[Tensor, Watched, Tensor]:
    """Returns the loss of generator and posterior, scalars to log, and latents_BLC sampled for the critic (0 rows without it).

    Args:
        critic: adds its adversarial loss, computed inside `autocast`; None before it has joined.
    """
    terms, free = model(micro.latents_BLC, micro.text, micro.draws, critic is not None)
    watch = {name: value.detach() for name, value in terms._asdict().items()}
    if critic is None:
        return terms.loss, watch, micro.latents_BLC[:0]
    with autocast:
        adversarial = adversarial_loss(critic, micro.latents_BLC, free, micro.text)
    loss = config.critic.lead * terms.loss + config.critic.weight * adversarial
    return loss, watch | {"deceived": adversarial.detach()}, free.detach()


def criticise(critic: nn.Module, micro: Micro, free_BLC: Tensor) -> tuple[Tensor, Watched]:
    """Returns the critic's loss on real and generated latents of one micro-batch, and scalars to log."""
    terms = critic(micro.latents_BLC, free_BLC, micro.text, micro.other_B)
    return terms.critic_loss, {name: value.detach() for name, value in terms._asdict().items()}
