"""The critic of latents: losses against theory, learning."""

import math

import pytest
import torch
from torch import Tensor, nn

from t2i.cvae.config import Config
from t2i.cvae.critic import CENTERING, MISMATCHED, Critic, adversarial_loss
from t2i.cvae.network import Shape
from t2i.text import TextFeatures

SHAPE = Shape(grid=4, channels=5)
WORDS, TOKEN = 6, 7
LN2 = math.log(2)


def critic_of(gamma: float = 0.1) -> Critic:
    torch.manual_seed(0)
    values = {"model": {"width": 16, "depth": 1, "heads": 2}, "critic": {"depth": 2, "gamma": gamma}}
    return Critic(Config.model_validate(values), SHAPE, TOKEN, WORDS)


def text_of(count: int) -> TextFeatures:
    mask = torch.arange(WORDS) < torch.randint(2, WORDS + 1, (count, 1))
    return TextFeatures(torch.randn(count, WORDS, TOKEN), mask, torch.randn(count, 3))


def latents_of(count: int) -> Tensor:
    return torch.randn(count, SHAPE.grid**2, SHAPE.channels)


def test_the_first_losses_are_their_theory_values() -> None:
    critic, real, fake, text = critic_of(), latents_of(4), latents_of(4), text_of(4)
    terms = critic(real, fake, text, torch.tensor([True, True, True, False]))
    assert terms.critic_loss.item() == pytest.approx(LN2 * (1 + MISMATCHED * 3 / 4), abs=1e-6)
    assert terms.penalty.item() == 0
    assert adversarial_loss(critic, real, fake, text).item() == pytest.approx(LN2, abs=1e-6)


class Linear(Critic):
    """Both kinds of logit are <a, x>, so the gradient's norm is known."""

    def logits(self, latents_BLC: Tensor, text: TextFeatures) -> Tensor:
        return (latents_BLC.flatten(1) @ self.a)[:, None].expand(-1, 2)


def test_the_penalty_is_the_squared_gradient_norm_on_real_and_generated_latents() -> None:
    critic = critic_of()
    critic.__class__ = Linear
    critic.a = nn.Parameter(torch.randn(SHAPE.grid**2 * SHAPE.channels) * 0.1)
    terms = critic(latents_of(8000), latents_of(8000), text_of(8000), torch.ones(8000, dtype=torch.bool))
    # R1 and R2 of each of the two kinds
    assert terms.penalty.item() == pytest.approx(4 * critic.a.square().sum().item(), rel=0.1)


def test_gradients_reach_every_parameter_and_no_generator() -> None:
    critic = critic_of()
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2)
    fake = latents_of(6).requires_grad_(True)
    for _ in range(3):
        optimizer.zero_grad()
        critic(latents_of(6), fake, text_of(6), torch.ones(6, dtype=torch.bool)).critic_loss.backward()
        optimizer.step()
    assert fake.grad is None
    assert not [name for name, p in critic.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    adversarial_loss(critic, latents_of(6), fake, text_of(6)).backward()
    assert fake.grad is not None and fake.grad.abs().sum() > 0


def test_it_tells_blurred_latents_and_other_captions_apart() -> None:
    critic = critic_of(gamma=0.01)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
    text, real = text_of(8), latents_of(8)
    blurred, others = real.mean(dim=1, keepdim=True).expand_as(real), torch.ones(8, dtype=torch.bool)
    for _ in range(150):
        optimizer.zero_grad()
        terms = critic(real, blurred, text, others)
        terms.critic_loss.backward()
        optimizer.step()
    assert terms.told_apart == 1
    whole = critic.logits(real, text)[:, -1]
    assert (whole > critic.logits(real, TextFeatures(*(x.roll(-1, dims=0) for x in text)))[:, -1]).all()
    assert CENTERING * whole.square().mean() < 1
