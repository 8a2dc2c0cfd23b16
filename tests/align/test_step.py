"""The optimizer step of the dual encoder: cut into micro-batches it is the step of the whole batch."""

import math

import pytest
import torch

from t2i.align.config import BatchNegatives, Config
from t2i.align.dual_encoder import Captioner, DualEncoder
from t2i.align.step import Paired, Pairs, embed_all, micro_loss

SMALL = {
    "text_tower": {"width": 16, "depth": 1, "heads": 2, "max_tokens": 6},
    "image_tower": {"width": 16, "width_limit": 16},
    "embedding": 16,
    "data": {"resolution": 16},
}


def paired() -> Paired:
    torch.manual_seed(0)
    config = Config.model_validate(SMALL)
    return Paired(DualEncoder(config, 40), Captioner(config, 40))


def pairs_of(count: int) -> Pairs:
    torch.manual_seed(1)
    ids = torch.randint(1, 40, (count, 6))
    rows = torch.arange(count)
    return Pairs(torch.randn(count, 3, 16, 16), ids, torch.ones_like(ids, dtype=torch.bool), rows, rows % (count - 1))


def gradient(model: Paired, micros: list[Pairs]) -> tuple[torch.Tensor, float]:
    """The gradient of a step, backward divided as Accelerate does it, and the contrastive loss."""
    model.zero_grad()
    known = embed_all(model, micros) if len(micros) > 1 else []
    seen = []
    for number in range(len(micros)):
        loss, watch = micro_loss(model, micros, number, known, BatchNegatives())
        (loss / len(micros)).backward()
        seen.append(watch["loss"].item())
    assert max(seen) - min(seen) < 1e-5
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), seen[0]


@pytest.mark.parametrize("cuts", [2, 3])
def test_micro_batches_contrast_all_pairs_of_the_step(cuts: int) -> None:
    model, pairs = paired(), pairs_of(12)
    whole, loss = gradient(model, [pairs])
    parts = [Pairs(*part) for part in zip(*(x.chunk(cuts) for x in pairs[:5]), strict=True)]
    cut, cut_loss = gradient(model, parts)
    assert cut_loss == pytest.approx(loss, abs=1e-5)
    torch.testing.assert_close(cut, whole, rtol=1e-3, atol=1e-4 * whole.abs().max().item())


def test_losses_are_their_theory_values_and_gradients_reach_every_parameter() -> None:
    model, pairs = paired(), pairs_of(12)
    loss, watch = micro_loss(model, [pairs], 0, [], BatchNegatives())
    loss.backward()
    assert watch["caption_nll"].item() == pytest.approx(math.log(40), rel=0.1)
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    model.model.log_scale.data.fill_(
        -20
    )  # at an endless temperature all captions are as likely, but copies are left out
    _, watch = micro_loss(model, [pairs], 0, [], BatchNegatives())
    assert watch["loss"].item() == pytest.approx((10 * math.log(12) + 2 * math.log(11)) / 12, rel=1e-5)
