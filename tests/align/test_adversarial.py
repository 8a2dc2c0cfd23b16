"""Adversarial training of a rotation."""

import math

import numpy as np
import pytest
import torch

from t2i.align.adversarial import Game, mutual_neighbours, refined, unpair
from t2i.align.config import AdversarialAligner, Config
from t2i.align.fitting import fitting_of
from t2i.align.linear import Pairing, reciprocal_rank
from t2i.align.mapped import FIELDS
from t2i.errors import InputError


def turned(count: int = 600, dims: int = 6) -> Pairing:
    """Returns skewed features and a rotation of them, which only one rotation reverses."""
    rng = np.random.default_rng(0)
    text = rng.exponential(size=(count, dims)) * np.linspace(3.0, 1.0, dims)
    return Pairing(text, text @ np.linalg.qr(rng.normal(size=(dims, dims)))[0], np.arange(count))


def test_captions_and_images_of_one_pair_are_parted_but_for_anchors():
    pairs = turned(200)
    parted = unpair(pairs, 6, AdversarialAligner(anchors=10))
    assert [len(x) for x in parted[:4]] == [95, 95, 10, 10]
    np.testing.assert_allclose(parted.text_MK, parted.bases.text(pairs.text_NP[10::2]))
    np.testing.assert_allclose(parted.image_MK, parted.bases.image(pairs.image_NQ[11::2]))
    with pytest.raises(InputError, match="aligner.anchors=180 leaves 20 of 200 images, but at least 40 are needed"):
        unpair(pairs, 6, AdversarialAligner(anchors=180))


def test_losses_begin_at_their_theory_values_and_gradients_reach_their_side_alone():
    parted = unpair(turned(), 6, AdversarialAligner(anchors=0))
    game = Game(parted, 32).eval()
    torch.nn.init.zeros_(game.discriminator[-1].weight)  # type: ignore[arg-type]
    torch.nn.init.zeros_(game.discriminator[-1].bias)  # type: ignore[arg-type]
    text, image = torch.from_numpy(parted.text_MK).float(), torch.from_numpy(parted.image_MK).float()
    loss = game.discriminate(text, image)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    loss.backward()
    assert game.turn.weight.grad is None
    torch.nn.init.normal_(game.discriminator[-1].weight)  # type: ignore[arg-type]
    game.rotation_loss(text, (text[:0], image[:0])).backward()
    assert game.turn.weight.grad is not None and game.turn.weight.grad.abs().sum() > 0


def test_a_map_returns_to_the_rotations():
    game = Game(unpair(turned(), 6, AdversarialAligner(anchors=0)), 8)
    game.turn.weight.data += 0.1 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    for _ in range(1000):
        game.orthogonalise()
    torch.testing.assert_close(game.turn.weight @ game.turn.weight.T, torch.eye(6), atol=1e-4, rtol=0)


def test_mutual_neighbours_of_a_shuffled_copy_are_its_rows():
    x = np.random.default_rng(0).normal(size=(80, 6))
    order = np.random.default_rng(1).permutation(80)
    text, image = mutual_neighbours(x, x[order])
    assert len(text) == 80 and (order[image] == text).all()


def test_the_refinement_finds_a_rotation_from_a_rough_start():
    pairs = turned()
    parted = unpair(pairs, 6, AdversarialAligner(anchors=4))
    start = Game(parted, 8).turn.weight.detach().double().numpy().T
    before, after = (refined(parted, start, rounds, 4.0) for rounds in (0, 10))

    def rank(maps: tuple) -> float:
        text, image = (pairs.text_NP, pairs.image_NQ)
        bases = parted.bases
        whole = bases._replace(text_PE=bases.text_PE @ maps[0], image_QE=bases.image_QE @ maps[1])
        return reciprocal_rank(whole, Pairing(text, image, pairs.wording_N))

    assert rank(before) < 0.5 and rank(after) > 0.7


def test_a_game_goes_on_bit_for_bit_and_without_anchors_keeps_the_usual_temperature():
    config = Config.model_validate({"aligner": {"kind": "adversarial", "anchors": 0, "hidden": 16, "refinements": 1}})

    def play(fitting, steps):
        for step in steps:
            torch.manual_seed(step)
            losses = fitting.step(torch.arange(32))
        return losses

    torch.manual_seed(0)
    whole = fitting_of(config, turned, torch.device("cpu"))
    play(whole, range(6))
    torch.manual_seed(0)
    first = fitting_of(config, turned, torch.device("cpu"))
    play(first, range(3))
    torch.manual_seed(9)
    second = fitting_of(config, turned, torch.device("cpu"))
    for name, one in first.parts.items():
        second.parts[name].load_state_dict(one.state_dict())
    play(second, range(3, 6))
    tensors = whole.state_tensors()
    assert tensors.keys() == set(FIELDS) and tensors["log_scale"].exp() == pytest.approx(1 / 0.07)
    for name, tensor in second.state_tensors().items():
        assert torch.equal(tensor, tensors[name]), name
