"""The conditional VAE over latents: dependencies, loss against algebra, learning."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from builders.tiny_prior_run import save_random_tokenizer
from t2i.cvae.config import Config
from t2i.cvae.network import ConditionalVAE, Draws, Shape, contrast, parameter_groups
from t2i.cvae.sampling import Latents
from t2i.errors import InputError
from t2i.text import TextFeatures

SHAPE = Shape(grid=4, channels=5)
Z, WORDS, TOKEN = 8, 9, 6


def tiny(**changes) -> Config:
    model = {"width": 16, "depth": 2, "heads": 2, "z_dim": Z, "posterior_width": 8}
    return Config.model_validate({"model": model | changes.pop("model", {})} | changes)


def network(config: Config, seed: int = 0) -> ConditionalVAE:
    torch.manual_seed(seed)
    model = ConditionalVAE(config, SHAPE, TOKEN, 12, WORDS)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def text_of(count: int, seed: int = 0) -> TextFeatures:
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(WORDS) < torch.randint(3, WORDS - 2, (count, 1), generator=g)
    tokens = torch.randn(count, WORDS, TOKEN, generator=g) * mask[..., None]
    return TextFeatures(tokens, mask, torch.randn(count, 12, generator=g))


def draws_of(count: int, hidden_B: Tensor | None = None) -> Draws:
    return Draws(torch.randn(count, Z), torch.rand(count) if hidden_B is None else hidden_B, torch.randn(count, Z))


def latents_of(count: int) -> Tensor:
    return torch.randn(count, SHAPE.grid**2, SHAPE.channels)


def test_latents_do_not_depend_on_padding_or_on_the_captions_beside() -> None:
    model, text, z = network(tiny()), text_of(5), torch.randn(5, Z)
    every = model.generator(text, z)
    for i in range(5):
        alone = model.generator(TextFeatures(*(x[[i]] for x in text)), z[[i]])
        assert torch.allclose(alone, every[[i]], atol=1e-5)
    spoilt = text.tokens_BTD + torch.randn_like(text.tokens_BTD) * ~text.mask_BT[..., None]
    assert torch.allclose(model.generator(text._replace(tokens_BTD=spoilt), z), every, atol=1e-5)


@pytest.mark.parametrize(("layers", "reach"), [(0, 0), (1, 2), (2, 4)])
def test_a_word_hears_its_neighbours_before_the_first_block(layers: int, reach: int) -> None:
    words = network(tiny(model={"word_layers": layers})).generator.words
    tokens, mask = torch.randn(1, WORDS, TOKEN), torch.ones(1, WORDS, dtype=torch.bool)
    changed = tokens.clone()
    changed[:, 0] = torch.randn(TOKEN)
    moved = (words(tokens, mask) - words(changed, mask)).abs().amax(dim=2)[0] > 1e-6
    assert moved.tolist() == [i <= reach for i in range(WORDS)]


def test_order_of_words_and_noise_both_matter() -> None:
    model, text, z = network(tiny()), text_of(3), torch.randn(3, Z)
    made = model.generator(text, z)
    swapped = text.tokens_BTD.clone()
    swapped[:, [0, 2]] = swapped[:, [2, 0]]
    assert (model.generator(text._replace(tokens_BTD=swapped), z) - made).abs().amax(dim=(1, 2)).min() > 1e-3
    assert (model.generator(text, z + 1) - made).abs().amax(dim=(1, 2)).min() > 1e-3


def test_hidden_noise_tells_nothing() -> None:
    model, text, z = network(tiny()), text_of(4), torch.randn(4, Z)
    hidden = torch.tensor([True, False, True, False])
    a, b = model.generator(text, z, hidden), model.generator(text, z + 1, hidden)
    same = torch.isclose(a, b, atol=1e-6).flatten(1).all(dim=1)
    assert same.tolist() == hidden.tolist()


def test_the_loss_is_its_terms() -> None:
    config = tiny(loss={"kl": 0.25, "contrast": 0.0, "without_noise": 0.5})
    model, text, latents = network(config), text_of(6), latents_of(6)
    noise, hidden_B = torch.randn(6, Z), torch.tensor([0.1, 0.9, 0.2, 0.8, 0.7, 0.6])
    draws = draws_of(6, hidden_B)._replace(noise_BZ=noise)
    terms, nothing = model(latents, text, draws)
    mean, log_variance = model.posterior(latents, text.pooled_BP)
    nats = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (log_variance / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    ).sum(dim=1)
    made = model.generator(text, mean + noise * (log_variance / 2).exp(), hidden_B < 0.5)
    error = (made - latents).square().mean(dim=(1, 2))
    shown = hidden_B >= 0.5
    assert nothing is None
    assert terms.error.item() == pytest.approx(error[shown].mean().item(), rel=1e-5)
    assert terms.error_of_text.item() == pytest.approx(error[~shown].mean().item(), rel=1e-5)
    assert terms.nats.item() == pytest.approx(nats.mean().item(), rel=1e-5)
    assert terms.loss.item() == pytest.approx((error.mean() + 0.25 * (nats * shown).mean()).item(), rel=1e-5)


def test_free_latents_are_the_generators_own_and_leave_the_loss_alone() -> None:
    model, text, latents, draws = network(tiny()), text_of(5), latents_of(5), draws_of(5)
    terms, free = model(latents, text, draws, True)
    assert free is not None and torch.allclose(free, model.generator(text, draws.free_BZ), atol=1e-5)
    assert terms.loss.item() == pytest.approx(model(latents, text, draws)[0].loss.item(), rel=1e-5)


def test_places_weigh_by_their_contrast() -> None:
    flat = torch.ones(1, 16, 3)
    assert contrast(flat, 4).sum() == 0
    dot = torch.zeros(1, 16, 3)
    dot[0, 5] = 1  # row 1, column 1
    weight = contrast(dot, 4).view(4, 4)
    assert weight.mean().item() == pytest.approx(1) and weight.argmax().item() == 5
    assert weight[3].sum() == 0 and weight[0, 0] > 0
    assert weight[1, 1].item() == pytest.approx(8 * weight[0, 1].item(), rel=1e-5)  # 8/9 against 1/9


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    model = ConditionalVAE(tiny(), SHAPE, TOKEN, 12, WORDS)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), 1e-2)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    for _ in range(3):  # the head and the modulations start at zero: the first steps open them one after the other
        optimizer.zero_grad()
        terms, _ = model(latents_of(4), text_of(4), draws_of(4, torch.tensor([0.0, 1.0, 0.0, 1.0])))
        terms.loss.backward()
        optimizer.step()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


def test_it_learns_captions_by_heart_and_puts_what_they_leave_open_into_the_noise() -> None:
    torch.manual_seed(0)
    model = ConditionalVAE(tiny(model={"width": 32}), SHAPE, TOKEN, 12, WORDS)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), 4e-3)
    text, latents = text_of(4), latents_of(4)
    double = TextFeatures(*(x.repeat(2, *[1] * (x.ndim - 1)) for x in text))  # each caption has two images
    both = torch.cat([latents, -latents])
    for _ in range(450):
        optimizer.zero_grad()
        terms, _ = model(both, double, draws_of(8))
        terms.loss.backward()
        optimizer.step()
    assert terms.error < 0.2 < 0.8 < terms.error_of_text < 1.5  # without noise the mean of two opposite images
    assert terms.nats > math.log(2) * 0.9  # one of two


@pytest.mark.parametrize("kind", ["vector", "scalar", "simvq"])
def test_latents_have_unit_mean_square_and_their_nearest_codes_are_those_of_the_tokenizer(kind: str, tmp_path) -> None:
    tokenizer = save_random_tokenizer(tmp_path / "tokenizer", kind)
    latents = Latents(tokenizer)
    assert latents.vectors_KC.square().mean().item() == pytest.approx(1, rel=1e-5)
    images = np.random.default_rng(0).integers(
        0, 256, (3, tokenizer.resolution, tokenizer.resolution, 3), dtype=np.uint8
    )
    indices = tokenizer.encode(images)[..., 0]
    assert torch.equal(latents.nearest(latents.of(tokenizer.points(images))), indices)
    codes = tokenizer.codebook()[indices]
    assert torch.allclose(latents.of(codes) / latents.scale, codes, atol=1e-6)
    assert torch.equal(latents.nearest(latents.of(codes) + 1e-4), indices)


def test_a_tokenizer_of_several_codes_a_place_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="residual"):
        Latents(save_random_tokenizer(tmp_path / "tokenizer", "residual"))
