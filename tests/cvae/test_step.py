"""One optimizer step: its rate in both phases, random numbers by sample, gradients of each network."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from t2i.cvae.config import CRITIC_COST, Config
from t2i.cvae.critic import Critic
from t2i.cvae.network import ConditionalVAE, Shape, parameter_groups
from t2i.cvae.step import criticise, draw_micro, generate, has_critic, rate, shorten_momentum
from t2i.text import TextFeatures

SHAPE, WORDS, TOKEN, POOLED = Shape(grid=4, channels=5), 6, 7, 3


def tiny(**changes) -> Config:
    return Config.model_validate({"model": {"width": 16, "depth": 1, "heads": 2}} | changes)


def micro_of(config: Config, ids: np.ndarray):
    torch.manual_seed(int(ids[0]))
    mask = torch.ones(len(ids), WORDS, dtype=torch.bool)
    text = TextFeatures(torch.randn(len(ids), WORDS, TOKEN), mask, torch.randn(len(ids), POOLED))
    return draw_micro(config, torch.randn(len(ids), 16, 5), text, torch.ones(len(ids), dtype=torch.bool), ids)


def test_each_phase_rises_stays_and_falls() -> None:
    config = tiny(learning_rate=4e-3, lr_warmup_steps=50, critic={"start": 0.8, "learning_rate": 1e-3})
    rates = [rate(step, 1000, config) for step in range(1000)]
    assert [has_critic(step, 1000, config) for step in (0, 799, 800)] == [False, False, True]
    assert rates[0] == pytest.approx(4e-3 / 50) and rates[49] == rates[400] == 4e-3
    assert rates[799] == pytest.approx(4e-3 * (0.02 + 0.98 / (800 * 0.3)))
    assert rates[800] == pytest.approx(1e-3 / 20) and rates[820] == rates[930] == 1e-3  # a tenth of the phase
    assert rates[999] == pytest.approx(1e-3 * (0.02 + 0.98 / (200 * 0.3)))
    assert all(a >= b for a, b in zip(rates[100:799], rates[101:800], strict=True))


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_run_of_one_phase(start: float) -> None:
    config = tiny(critic={"start": start, "learning_rate": 2e-3}, learning_rate=3e-3)
    rates = [rate(step, 200, config) for step in range(200)]
    assert max(rates) == (2e-3 if start == 0 else 3e-3) and 0 < rates[-1] < 0.1 * max(rates)
    assert has_critic(0, 200, config) == (start == 0) and has_critic(199, 200, config) == (start == 0)


@pytest.mark.parametrize("start", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_runs_of_a_few_steps_have_a_rate_at_each(start: float) -> None:
    config = tiny(critic={"start": start})
    for total in range(1, 12):
        phases = [has_critic(step, total, config) for step in range(total)]
        assert phases == sorted(phases) and sum(phases) == int((1 - start) * total + 1e-9)
        assert all(0 < rate(step, total, config) <= 4e-3 for step in range(total))


def test_a_limit_in_minutes_reckons_with_the_critics_slower_steps() -> None:
    for start, cost in ((1.0, 1.0), (0.9, 0.9 + 0.1 * CRITIC_COST), (0.0, 1.0)):
        assert tiny(critic={"start": start}).mean_cost == pytest.approx(cost)


def test_random_numbers_belong_to_samples() -> None:
    config = tiny()
    both, alone = micro_of(config, np.array([7, 9])), micro_of(config, np.array([9]))
    for together, single in zip(both.draws, alone.draws, strict=True):
        assert torch.equal(together[1:], single)
    assert not torch.equal(both.draws.noise_BZ[0], both.draws.noise_BZ[1])
    assert not torch.equal(both.draws.noise_BZ, both.draws.free_BZ)


def test_the_critic_plays_only_when_asked_and_neither_player_moves_the_other() -> None:
    torch.manual_seed(0)
    config = tiny(critic={"weight": 0.5})
    model, critic = ConditionalVAE(config, SHAPE, TOKEN, POOLED, WORDS), Critic(config, SHAPE, TOKEN, WORDS)
    for parameter in [*model.parameters(), *critic.parameters()]:
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    micro = micro_of(config, np.arange(4))
    alone, watch, free = generate(model, None, micro, config, nullcontext())
    assert len(free) == 0 and "deceived" not in watch and alone.item() == pytest.approx(watch["loss"].item())
    critic.requires_grad_(False)
    loss, watch, free = generate(model, critic, micro, config, nullcontext())
    critic.requires_grad_(True)
    assert loss.item() == pytest.approx(watch["loss"].item() + 0.5 * watch["deceived"].item(), rel=1e-6)
    assert free.shape == micro.latents_BLC.shape and not free.requires_grad
    loss.backward()
    assert all(p.grad is None for p in critic.parameters())
    moved = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    loss, watch = criticise(critic, micro, free)
    loss.backward()
    assert {"critic_loss", "told_apart", "penalty"} == watch.keys()
    assert all(torch.equal(p.grad, moved[name]) for name, p in model.named_parameters() if name in moved)
    assert all(p.grad is not None for p in critic.parameters())


def test_the_lead_may_rest_while_the_critic_plays() -> None:
    """With `lead` 0 the generator's only gradient is that of the critic: it scales with `weight`, and the posterior gets none."""
    gradients = []
    for weight in (1.0, 0.5):
        torch.manual_seed(0)
        config = tiny(critic={"weight": weight, "lead": 0.0})
        model, critic = ConditionalVAE(config, SHAPE, TOKEN, POOLED, WORDS), Critic(config, SHAPE, TOKEN, WORDS)
        for parameter in [*model.parameters(), *critic.parameters()]:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        loss, watch, _ = generate(model, critic, micro_of(config, np.arange(4)), config, nullcontext())
        assert watch["loss"] > 0 and loss.item() == pytest.approx(weight * watch["deceived"].item(), rel=1e-6)
        loss.backward()
        assert all(p.grad is not None and not p.grad.any() for p in model.posterior.parameters())
        gradient = model.generator.head.weight.grad
        assert gradient is not None and gradient.any()
        gradients.append(gradient)
    torch.testing.assert_close(gradients[0], 2 * gradients[1])


def test_a_run_that_nothing_teaches_is_refused() -> None:
    with pytest.raises(ValueError, match="weight and lead are both 0"):
        tiny(critic={"weight": 0.0, "lead": 0.0})


def test_calm_shortens_the_first_moment_alone() -> None:
    optimizer = torch.optim.AdamW(
        parameter_groups(ConditionalVAE(tiny(), SHAPE, 7, 3, 6), 0.1), 1e-3, betas=(0.9, 0.95)
    )
    shorten_momentum(optimizer)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.5, 0.95)}
