"""The image decoder of the dual encoder: loss against algebra, gradients, learning, validation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from t2i.align.config import Config
from t2i.align.dual_encoder import Captioner, DualEncoder
from t2i.align.frozen import FrozenDualEncoder
from t2i.align.image_decoder import ImageDecoder, kl_nats
from t2i.align.step import Paired, Pairs, embed_all, micro_loss
from t2i.align.tokenizer import CaptionTokenizer
from t2i.data import View, open_dataset
from t2i.errors import InputError
from t2i.images import to_model
from t2i.metrics.reconstruction import psnr

SMALL = {
    "text_tower": {"width": 16, "depth": 1, "heads": 2, "max_tokens": 24},
    "image_tower": {"width": 16, "width_limit": 32},
    "embedding": 32,
    "data": {"resolution": 16},
}
DATA = open_dataset("shapes-1", "train", View(resolution=16, limit=8))
CAPTIONS = [options[0] for options in DATA.captions]
TOKENIZER = CaptionTokenizer.fit(CAPTIONS, 300, 24)


def config_of(**changes) -> Config:
    return Config.model_validate(SMALL | {"image_weight": 5.0} | changes)


def paired(config: Config) -> Paired:
    torch.manual_seed(0)
    return Paired(DualEncoder(config, len(TOKENIZER)), Captioner(config, len(TOKENIZER)))


def pairs_of(captions: list[str] = CAPTIONS) -> Pairs:
    ids, mask, _ = TOKENIZER(captions)
    return Pairs(to_model(DATA.images(range(8))), ids, mask, torch.arange(8), torch.arange(8))


def gradient(model: Paired, config: Config, micros: list[Pairs]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    known, watch = embed_all(model, micros) if len(micros) > 1 else [], {}
    for number in range(len(micros)):
        loss, watch = micro_loss(model, micros, number, known, config)
        (loss / len(micros)).backward()
    return torch.cat([p.grad.flatten() for n, p in model.named_parameters() if "scale" not in n]), watch  # type: ignore[union-attr]


def test_losses_are_their_theory_values_and_gradients_reach_every_parameter() -> None:
    config = config_of(kl_weight=0.01)
    model, pairs = paired(config), pairs_of()
    decoder = model.model.image_decoder
    assert decoder is not None and decoder.log_variance is not None
    gradient(model, config, [pairs])
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # grey images cost the mean square of the real ones; a posterior of variance 1 costs half a nat a dimension
    for parameter in (*decoder.blocks[-1].up.parameters(), *decoder.log_variance.parameters()):  # type: ignore[union-attr]
        parameter.data.zero_()
    decoded = model(pairs).decoded
    square = pairs.images_BCHW.square().mean().item()
    assert decoded.image_error.item() == decoded.text_error.item() == pytest.approx(square)
    assert decoded.nats.item() == pytest.approx(config.embedding / 2, rel=1e-5)


def test_the_divergence_is_that_of_torch() -> None:
    mean, log_variance = torch.randn(4, 6), torch.randn(4, 6)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(kl_nats(mean, log_variance), expected)


def test_the_total_is_the_weighted_sum_of_its_terms() -> None:
    config = config_of(kl_weight=0.01)
    model, pairs = paired(config), pairs_of()
    torch.manual_seed(1)
    loss, watch = micro_loss(model, [pairs], 0, [], config)
    errors = (watch["image_error"] + watch["text_error"]) / 2
    total = watch["loss"] + watch["caption_nll"] + 5.0 * errors + 0.01 * watch["nats"]
    assert loss.item() == pytest.approx(total.item())
    plain = config_of(image_weight=0.0)
    assert paired(plain).model.image_decoder is None
    assert set(micro_loss(paired(plain), [pairs], 0, [], plain)[1]) == {"loss", "caption_nll"}


def test_micro_batches_have_the_gradient_of_the_whole_step() -> None:
    config = config_of()
    model, pairs = paired(config), pairs_of()
    pairs = pairs._replace(mask_BT=torch.ones_like(pairs.mask_BT))  # means over tokens of equal counts
    whole, _ = gradient(model, config, [pairs])
    parts, _ = gradient(model, config, [Pairs(*part) for part in zip(*(x.chunk(2) for x in pairs[:5]), strict=True)])
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4 * whole.abs().max().item())


def test_noise_is_a_function_of_the_seed() -> None:
    config = config_of(kl_weight=0.01)
    model, pairs = paired(config), pairs_of()
    errors = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        errors.append(model(pairs).decoded.image_error.item())
    assert errors[0] == errors[1] != errors[2]


@pytest.mark.parametrize("kl_weight", [0.0, 1e-4])
def test_it_learns_eight_images_by_heart_from_both_sides(kl_weight: float) -> None:
    config = config_of(kl_weight=kl_weight)
    model, pairs = paired(config), pairs_of()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(200):
        loss, _ = micro_loss(model, [pairs], 0, [], config)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    frozen = FrozenDualEncoder(config, TOKENIZER, model.model.state_dict())
    images = DATA.images(range(8))
    assert psnr(frozen.decode(frozen.images(images)), images).min() > 22
    assert psnr(frozen.decode(frozen.text(CAPTIONS)), images).min() > 22
    others = [*CAPTIONS[1:], CAPTIONS[0]]
    assert psnr(frozen.decode(frozen.text(others)), images).mean() < 18
    assert np.array_equal(frozen.decode(3 * frozen.images(images)), frozen.decode(frozen.images(images)))


def test_embeddings_of_a_dual_encoder_without_a_decoder_cannot_be_decoded() -> None:
    config = config_of(image_weight=0.0)
    frozen = FrozenDualEncoder(config, TOKENIZER, DualEncoder(config, len(TOKENIZER)).state_dict())
    with pytest.raises(InputError, match="no image decoder; train one with --set image_weight"):
        frozen.decode(torch.randn(2, 32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_weight": 0.0, "kl_weight": 0.1}, "kl_weight=0.1 has no effect without an image decoder"),
        ({"aligner": {"kind": "cca"}}, "image_weight has no effect with aligner=cca"),
        (
            {"aligner": {"kind": "cca"}, "image_weight": 0.0, "kl_weight": 0.1},
            "kl_weight has no effect with aligner=cca",
        ),
        ({"image_weight": -1.0}, "greater than or equal to 0"),
    ],
)
def test_keys_without_effect_are_refused(changes: dict, message: str) -> None:
    small = {"data": SMALL["data"], "image_weight": 5.0}
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(small | changes)


@pytest.mark.parametrize("resolution", [16, 32, 64])
def test_decoded_images_have_the_resolution_of_the_data(resolution: int) -> None:
    decoder = ImageDecoder(config_of(data={"resolution": resolution}))
    assert decoder(F.normalize(torch.randn(2, 32), dim=1)).shape == (2, 3, resolution, resolution)
    assert decoder.radius == math.sqrt(32)
