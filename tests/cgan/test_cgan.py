"""The conditional GAN: rules against algebra, initial losses, learning."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from t2i import seeding
from t2i.cgan import losses, rules
from t2i.cgan.architectures import ARCHITECTURES, build
from t2i.cgan.config import Config, HingeLoss, RelativisticLoss
from t2i.cgan.diffaugment import DRAWS, KINDS, augment, flip
from t2i.cgan.sampling import latents, sample
from t2i.data import View, open_dataset
from t2i.images import to_model
from t2i.seeding import noise
from t2i.text import TextConfig, TextFeatures
from t2i.text.classical import BagOfWords

LN2 = math.log(2)


def tiny(**changes) -> Config:
    small = {"width": 8, "width_limit": 32}
    base = {"generator": small | {"z_dim": 8, "w_dim": 32}, "discriminator": small | {"feature_dim": 32}}
    for key, value in changes.items():
        base[key] = base.get(key, {}) | value if isinstance(value, dict) else value
    return Config.model_validate(base)


def text_of(count: int, width: int = 12, tokens: int = 5, seed: int = 0) -> TextFeatures:
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(tokens) < torch.randint(1, tokens + 1, (count, 1), generator=g)
    return TextFeatures(torch.randn(count, tokens, 6, generator=g), mask, torch.randn(count, width, generator=g))


def captions_of(text: TextFeatures, pool: int = 7) -> rules.CaptionPool:
    extra = text_of(pool, text.pooled_BP.shape[1], seed=1).pooled_BP
    extra[0] = text.pooled_BP[0]
    same = torch.zeros(len(text.pooled_BP), pool, dtype=torch.bool)
    same[0, 0] = True
    return rules.CaptionPool(text.pooled_BP, extra, same)


@pytest.fixture(params=list(ARCHITECTURES))
def networks(request):
    torch.manual_seed(0)
    config = tiny(architecture=request.param)
    return config, *build(config, pooled_dim=12, token_dim=6)


def test_the_first_loss_is_its_theory_value(networks) -> None:
    config, generator, discriminator = networks
    text = text_of(6)
    real = torch.randn(6, 3, 32, 32).clamp(-1, 1)
    fake = generator(torch.randn(6, 8), text)
    probes = torch.randn(3, 3, 32, 32), torch.randn(3, 3, 32, 32)
    loss, watch = rules.discriminator_loss(discriminator, real, fake, captions_of(text), probes, config.loss, gamma=1.0)
    pairs = 6 * 7
    assert loss.item() == pytest.approx(LN2 * (1 + 0.5 * (pairs - 1) / pairs), abs=1e-6)
    assert watch["r1"].item() == watch["r2"].item() == 0
    assert rules.generator_loss(discriminator, real, fake, captions_of(text), config.loss).item() == pytest.approx(LN2)
    hinge = HingeLoss()
    loss, _ = rules.discriminator_loss(discriminator, real, fake, captions_of(text), None, hinge, gamma=1.0)
    assert loss.item() == pytest.approx(1 + 0.5 + 0.5 * (pairs - 1) / pairs, abs=1e-6)
    assert fake.shape == (6, 3, 32, 32) and fake.std() > 0.05


@pytest.mark.parametrize("kind", ["relativistic", "hinge"])
def test_gradients_reach_every_parameter(kind: str) -> None:
    torch.manual_seed(0)
    config = tiny(loss={"kind": kind}, generator={"cross_attention": True})
    generator, discriminator = build(config, 12, 6)
    text, captions = text_of(4), captions_of(text_of(4))
    optimizer = torch.optim.Adam([*generator.parameters(), *discriminator.parameters()], 1e-3)
    for _ in range(4):  # residual branches and heads start at zero: the first steps open them one after the other
        fake = generator(torch.randn(4, 8), text)
        probes = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
        real = torch.rand(4, 3, 32, 32)
        loss, _ = rules.discriminator_loss(discriminator, real, fake.detach(), captions, probes, config.loss, 1.0)
        loss = loss + rules.generator_loss(discriminator, real, fake, captions, config.loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for model in (generator, discriminator):
        idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not idle


class LinearCritic(nn.Module):
    """logit(x, t) = <a, x>, whose gradient norm is known."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(3, 8, 8) * 0.1)

    def forward(self, images: torch.Tensor, pooled: torch.Tensor):
        u = (images * self.a).sum(dim=(1, 2, 3))
        return u, torch.zeros(len(images), 2), torch.zeros(len(pooled), 2)


def test_both_penalties_give_the_squared_gradient_norm() -> None:
    torch.manual_seed(0)
    critic, text = LinearCritic(), text_of(4000)
    captions = rules.CaptionPool(text.pooled_BP, text.pooled_BP[:1], torch.zeros(4000, 1, dtype=torch.bool))
    x, y = torch.randn(4000, 3, 8, 8), torch.randn(4000, 3, 8, 8)
    expected = critic.a.square().sum().item()
    exact = RelativisticLoss(penalty="autograd")
    _, watch = rules.discriminator_loss(critic, x, y, captions, None, exact, 1.0)
    assert watch["r1"].item() == pytest.approx(expected, rel=1e-5) and watch["r2"].item() == pytest.approx(
        expected, rel=1e-5
    )
    finite = RelativisticLoss(penalty_fraction=1.0)
    _, watch = rules.discriminator_loss(critic, x, y, captions, (torch.randn_like(x), torch.randn_like(y)), finite, 1.0)
    assert watch["r1"].item() == pytest.approx(expected, rel=0.1)  # a chi-square mean over 4000: 2 % standard error


def test_matching_aware_penalty_is_the_sixth_power_of_the_joint_norm() -> None:
    x, t = torch.randn(3, 1, 2, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    logit = 3 * x.sum(dim=(1, 2, 3)) + 2 * t.sum(dim=1)
    joint = 9 * 4 + 4 * 2
    assert losses.matching_aware_penalty(logit, x, t).item() == pytest.approx(joint**3)


def test_relativistic_losses_against_a_direct_sum() -> None:
    a, b = torch.randn(50), torch.randn(50)
    assert losses.relativistic(a, b).item() == pytest.approx(np.log1p(np.exp(-(a - b).numpy())).mean(), rel=1e-5)
    assert losses.centering(a, -a).item() == 0


@pytest.mark.parametrize("kind", ["relativistic", "hinge"])
def test_micro_batches_add_up_to_the_batch(networks, kind: str) -> None:
    _, generator, discriminator = networks
    nn.init.normal_(discriminator.unconditional.weight)
    nn.init.normal_(discriminator.text_2.weight)
    exact = RelativisticLoss(penalty="autograd", penalty_fraction=1.0)
    config = exact if kind == "relativistic" else HingeLoss()
    text = text_of(8)
    captions = captions_of(text)
    real, fake = torch.rand(8, 3, 32, 32), torch.rand(8, 3, 32, 32)

    def gradient(slices) -> torch.Tensor:
        discriminator.zero_grad()
        for rows in slices:
            part = rules.CaptionPool(captions.pooled_BP[rows], captions.pool_MP, captions.same_BM[rows])
            loss, _ = rules.discriminator_loss(discriminator, real[rows], fake[rows], part, None, config, 0.3)
            (loss / len(slices)).backward()
        return torch.cat([p.grad.flatten() for p in discriminator.parameters() if p.grad is not None])

    whole = gradient([slice(0, 8)])
    torch.testing.assert_close(
        gradient([slice(0, 4), slice(4, 8)]), whole, rtol=1e-3, atol=1e-4 * whole.abs().max().item()
    )


def test_guidance_is_cross_entropy_over_own_and_other_captions() -> None:
    image, text, pool = (F.normalize(torch.randn(n, 5), dim=1) for n in (3, 3, 4))
    same = torch.zeros(3, 4, dtype=torch.bool)
    same[1, 2] = True
    expected = []
    for i in range(3):
        scores = [image[i] @ text[i]] + [image[i] @ pool[j] for j in range(4) if not same[i, j]]
        expected.append(F.cross_entropy(10 * torch.stack(scores)[None], torch.tensor([0])))
    assert rules.guidance_loss(image, text, pool, same, 10.0).item() == pytest.approx(
        torch.stack(expected).mean().item()
    )


def test_condition_zero_ignores_the_caption(networks) -> None:
    config, _, discriminator = networks
    nn.init.normal_(discriminator.text_2.weight)
    real, fake = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)
    values = []
    for seed in (0, 5):
        captions = captions_of(text_of(4, seed=seed))
        values.append(rules.generator_loss(discriminator, real, fake, captions, config.loss, condition=0.0).item())
    assert values[0] == values[1]


@pytest.mark.parametrize("kind", list(KINDS))
def test_augmentations_are_differentiable_and_a_function_of_their_draws(kind: str) -> None:
    x = torch.rand(16, 3, 16, 16, requires_grad=True)
    u = torch.rand(16, DRAWS)
    y = augment(x, (kind,), u)
    torch.testing.assert_close(augment(x, (kind,), u), y)
    torch.testing.assert_close(augment(x[3:5], (kind,), u[3:5]), y[3:5])
    assert (y - x).abs().max() > 0.01
    y.sum().backward()
    assert x.grad.abs().sum() > 0
    assert augment(x, (), u) is x


def test_flip_mirrors_half() -> None:
    x = torch.rand(2, 3, 4, 4)
    u = torch.tensor([[0.0] * 7 + [0.1], [0.0] * 7 + [0.9]])
    torch.testing.assert_close(flip(x, u), torch.stack([x[0].flip(2), x[1]]))


def test_noise_text_truncation_and_guidance_each_change_the_picture(networks) -> None:
    config, generator, _ = networks
    for p in generator.parameters():
        if p.ndim > 1 and not p.any():
            nn.init.normal_(p, std=0.1)
    text = text_of(2)
    z = noise([1, 2], 8)
    base = sample(generator, z, text)
    assert (sample(generator, noise([3, 4], 8), text) - base).abs().max() > 1e-3
    assert (sample(generator, z, text_of(2, seed=9)) - base).abs().max() > 1e-3
    flat = sample(generator, z, text, truncation=0.0)
    torch.testing.assert_close(flat, sample(generator, noise([3, 4], 8), text, truncation=0.0))
    generator.w_average.fill_(0.5)
    torch.testing.assert_close(latents(generator, z, text.pooled_BP, guidance=0.0), generator.w_average.expand(2, -1))
    assert (sample(generator, z, text, guidance=2.0) - base).abs().max() > 1e-3
    torch.testing.assert_close(
        sample(generator, z[1:], TextFeatures(*(x[1:] for x in text))), base[1:], atol=1e-5, rtol=1e-4
    )


def test_word_attention_starts_closed_and_never_sees_padding() -> None:
    torch.manual_seed(0)
    config = tiny(generator={"cross_attention": True})
    generator, _ = build(config, 12, 6)
    z, text = torch.randn(3, 8), text_of(3)
    closed = generator(z, text)
    torch.testing.assert_close(generator(z, text._replace(tokens_BTD=torch.randn_like(text.tokens_BTD))), closed)
    for words in generator.words.values():
        words.gate.data.fill_(1.0)
    opened = generator(z, text)
    assert (opened - closed).abs().max() > 1e-3
    padded = text.tokens_BTD.clone()
    padded[~text.mask_BT] = 100.0
    torch.testing.assert_close(generator(z, text._replace(tokens_BTD=padded)), opened)


def test_eight_pictures_are_learnt_by_their_captions() -> None:
    """Overfits 8 images: each caption gives its own image, and another caption another one."""
    torch.manual_seed(0)
    data = open_dataset("shapes-1", "train", View(resolution=16, limit=8))
    captions = [c[0] for c in data.captions]
    encoder = BagOfWords.fit(TextConfig(encoder="bow"), captions)
    text = encoder.encode(captions)
    config = tiny(data={"resolution": 16}, generator={"width": 16}, discriminator={"width": 16}, loss={"gamma": 0.05})
    generator, discriminator = build(config, encoder.pooled_dim, encoder.token_dim)
    players = [torch.optim.Adam(m.parameters(), 2e-3, betas=(0.0, 0.99)) for m in (discriminator, generator)]
    real = to_model(data.images(range(8)))
    pool = rules.CaptionPool(text.pooled_BP, text.pooled_BP, torch.eye(8, dtype=torch.bool))
    for step in range(250):
        fake = generator(torch.from_numpy(seeding.normal(0, "z", np.arange(8) + 8 * step, 8)), text)
        probes = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)
        loss, _ = rules.discriminator_loss(
            discriminator, real, fake.detach(), pool, probes, config.loss, config.loss.gamma
        )
        players[0].zero_grad()
        loss.backward()
        players[0].step()
        loss = rules.generator_loss(discriminator, real, fake, pool, config.loss)
        players[1].zero_grad()
        loss.backward()
        players[1].step()
    drawn = sample(generator, noise(list(range(8)), 8), text)
    distance = (drawn[:, None] - real[None]).square().mean(dim=(2, 3, 4))
    own = distance.diagonal()
    assert (distance.argmin(dim=1) == torch.arange(8)).sum() >= 7
    assert own.mean() < 0.5 * distance[~torch.eye(8, dtype=torch.bool)].mean()


def test_a_resolution_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match="power of two"):
        tiny(data={"resolution": 48})


def test_an_exported_generator_takes_any_number_of_captions() -> None:
    torch.manual_seed(0)
    generator, _ = build(tiny(), 12, 6)
    z, text = torch.randn(3, 8), text_of(3)
    batch = torch.export.Dim("batch", min=2)
    shapes = ({0: batch}, TextFeatures({0: batch}, {0: batch}, {0: batch}))
    exported = torch.export.export(generator.eval(), (z, text), dynamic_shapes=shapes).module()
    for count in (3, 5):
        z, text = torch.randn(count, 8), text_of(count, seed=count)
        torch.testing.assert_close(exported(z, text), generator(z, text), rtol=1e-4, atol=1e-5)


def test_the_generators_loss_computes_no_gradient_of_real_images(networks) -> None:
    config, _, discriminator = networks
    text, calls = text_of(6), []
    real, fake = torch.randn(2, 6, 3, 32, 32)

    def spy(images: torch.Tensor, pooled: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append((images, torch.is_grad_enabled()))
        return discriminator(images, pooled)

    loss = rules.generator_loss(spy, real, fake.requires_grad_(), captions_of(text), config.loss)  # type: ignore[arg-type]
    loss.backward()
    assert [(images is fake, with_gradient) for images, with_gradient in calls] == [(True, True), (False, False)]
    u, features, projected = discriminator(torch.cat([fake, real]), text.pooled_BP)
    logits = u + (features * projected.repeat(2, 1)).sum(dim=1)
    torch.testing.assert_close(loss, torch.nn.functional.softplus(logits[6:] - logits[:6]).mean())


@pytest.mark.parametrize("loss", [RelativisticLoss(), RelativisticLoss(penalty="autograd"), HingeLoss()])
def test_an_image_without_a_caption_is_judged_without_one(networks, loss) -> None:
    _, generator, discriminator = networks
    for head in (discriminator.unconditional, discriminator.text_2):
        nn.init.normal_(head.weight)
    torch.manual_seed(1)
    text, other = text_of(6), text_of(6, seed=5)
    real, fake = torch.randn(2, 6, 3, 32, 32)
    noise_ = (torch.randn(3, 3, 32, 32), torch.randn(3, 3, 32, 32)) if rules.has_probes(loss) else None
    labelled = torch.tensor([True, False, True, True, False, True])

    def both(captions: rules.CaptionPool) -> torch.Tensor:
        loss_d, _ = rules.discriminator_loss(discriminator, real, fake, captions, noise_, loss, 0.1, 0.7)
        return torch.stack([loss_d, rules.generator_loss(discriminator, real, fake, captions, loss, 0.7)]).detach()

    plain = captions_of(text)
    torch.testing.assert_close(both(plain._replace(labelled_B=torch.ones(6, dtype=torch.bool))), both(plain))
    part = plain._replace(labelled_B=labelled)
    changed = part._replace(pooled_BP=torch.where(labelled[:, None], text.pooled_BP, other.pooled_BP))
    torch.testing.assert_close(both(changed), both(part))  # the captions of the others count for nothing
    assert not torch.allclose(both(plain._replace(pooled_BP=changed.pooled_BP)), both(plain))
    assert not torch.allclose(both(part), both(plain))
