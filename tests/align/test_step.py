"""The optimizer step of the dual encoder: micro-batches give the step of the whole batch."""

import math

import pytest
import torch

from t2i.align.config import Config, HardNegatives, SoftNegatives, SwapNegatives
from t2i.align.dual_encoder import Captioner, DualEncoder
from t2i.align.losses import bags, harder, overlap, pair_logits, softened, swap_loss, symmetric
from t2i.align.step import Paired, Pairs, embed_all, micro_loss

SMALL = {
    "text_tower": {"width": 16, "depth": 1, "heads": 2, "max_tokens": 6},
    "image_tower": {"width": 16, "width_limit": 16},
    "embedding": 16,
    "data": {"resolution": 16},
}


CONFIG = Config.model_validate(SMALL)


def paired() -> Paired:
    torch.manual_seed(0)
    return Paired(DualEncoder(CONFIG, 40), Captioner(CONFIG, 40))


def pairs_of(count: int) -> Pairs:
    torch.manual_seed(1)
    ids = torch.randint(1, 40, (count, 6))
    rows = torch.arange(count)
    return Pairs(torch.randn(count, 3, 16, 16), ids, torch.ones_like(ids, dtype=torch.bool), rows, rows % (count - 1))


def gradient(model: Paired, micros: list[Pairs]) -> tuple[torch.Tensor, float]:
    """Returns the gradient of a step, with the loss divided as by Accelerate, and the contrastive loss."""
    model.zero_grad()
    known = embed_all(model, micros) if len(micros) > 1 else []
    seen = []
    for number in range(len(micros)):
        loss, watch = micro_loss(model, micros, number, known, CONFIG)
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
    loss, watch = micro_loss(model, [pairs], 0, [], CONFIG)
    loss.backward()
    assert watch["caption_nll"].item() == pytest.approx(math.log(40), rel=0.1)
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    model.model.log_scale.data.fill_(
        -20
    )  # at an endless temperature all captions are as likely, but copies are left out
    _, watch = micro_loss(model, [pairs], 0, [], CONFIG)
    assert watch["loss"].item() == pytest.approx((10 * math.log(12) + 2 * math.log(11)) / 12, rel=1e-5)


def logits_of(count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    image, text = (torch.nn.functional.normalize(torch.randn(count, 8, generator=generator), dim=1) for _ in range(2))
    same = torch.eye(count, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    return pair_logits(image, text, torch.tensor(5.0), same)


def test_hard_negatives_weigh_by_their_likeness_one_on_average() -> None:
    logits = logits_of()
    weights = (harder(logits, 0.5) - logits).exp()
    own, left = torch.eye(6, dtype=torch.bool), logits.isfinite()
    weights = torch.where(left & ~own, weights, 0.0)
    torch.testing.assert_close(weights.sum(dim=1), (left & ~own).sum(dim=1).float())
    ratios = ((0.5 * logits).exp() / weights.clamp(min=1e-9))[2][[0, 1, 3, 4, 5]]
    torch.testing.assert_close(ratios, ratios[:1].expand(5))  # proportional to exp(hardness * logit)
    assert torch.equal(harder(logits, 1e-9).argmax(dim=1), logits.argmax(dim=1))


def test_soft_targets_of_unlike_captions_are_the_plain_loss() -> None:
    logits = logits_of()
    torch.testing.assert_close(softened(logits, torch.eye(6), 0.2), symmetric(logits))
    alike = torch.full((6, 6), 0.5)
    finite = logits.isfinite()
    target = 0.2 * (finite & ~torch.eye(6, dtype=torch.bool)).float()
    target = target / (target.sum(dim=1, keepdim=True) / 0.2) + 0.8 * torch.eye(6)
    expected = (
        sum(-(target * x.log_softmax(dim=1).nan_to_num(neginf=0.0)).sum(dim=1).mean() for x in (logits, logits.T)) / 2
    )
    torch.testing.assert_close(softened(logits, alike, 0.2), expected)


def test_captions_overlap_by_the_share_of_their_tokens() -> None:
    ids = torch.tensor([[1, 5, 6, 2, 0], [1, 6, 7, 8, 2]])
    found = overlap(bags(ids, ids > 0, 9, 3))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.25], [0.25, 1.0]]))


def test_an_exchanged_caption_that_cannot_be_told_apart_costs_ln_2() -> None:
    image, text = torch.nn.functional.normalize(torch.randn(2, 3, 8), dim=-1)
    has = torch.tensor([True, True, False])
    assert swap_loss(image, text, text, torch.tensor(9.0), has).item() == pytest.approx(math.log(2))
    worse = text.clone()
    worse[2] = 100.0  # counts for nothing
    assert swap_loss(image, text, worse, torch.tensor(9.0), has).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("kind", [HardNegatives(), SoftNegatives(), SwapNegatives()])
def test_every_kind_of_negatives_cut_into_micro_batches_is_the_step_of_the_whole(kind) -> None:
    model, pairs = paired(), pairs_of(12)
    swapped = pairs.ids_BT.flip(1)
    pairs = pairs._replace(
        swapped_ids_BT=swapped, swapped_mask_BT=pairs.mask_BT, has_swap_B=torch.ones(12, dtype=torch.bool)
    )
    found = []
    for cuts in (1, 3):
        micros = [Pairs(*part) for part in zip(*(x.chunk(cuts) for x in pairs), strict=True)]
        model.zero_grad()
        known = embed_all(model, micros) if cuts > 1 else []
        for number in range(cuts):
            loss, _ = micro_loss(model, micros, number, known, CONFIG.model_copy(update={"negatives": kind}))
            (loss / cuts).backward()
        found.append(
            torch.cat(
                [p.grad.flatten() for n, p in model.named_parameters() if p.grad is not None and "scale" not in n]
            )
        )
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4 * found[0].abs().max().item())
