"""The prior in training: loss at step 0, learning, dependence on the caption, causality."""

import math

import numpy as np
import pytest
import torch

from builders.tiny_prior import GRIDS, LONGEST, POOLED, TOKENS, codes_of, make, order_of, text_of
from t2i.config.load import load
from t2i.errors import InputError
from t2i.families import config_class
from t2i.prior.orders import Order, group_sizes, raster_mask, training_order, two_stream_mask
from t2i.prior.step import blurred
from t2i.prior.transformer import Grid, Linear, Prior, PriorDraws, SwiGLU, rotate, rotation
from t2i.text import TextFeatures


@pytest.fixture(params=["raster", "random"])
def kind(request) -> str:
    return request.param


@pytest.fixture(params=list(GRIDS))
def grid(request) -> Grid:
    return GRIDS[request.param]


def test_the_first_loss_is_ln_k(kind: str, grid: Grid) -> None:
    prior = make(kind, grid, settled=False, label_smoothing=0.1, token_dropout=0.5, caption_dropout=0.5)
    draws = PriorDraws(torch.rand(4), torch.rand(4, grid.slots))
    loss, nll_B = prior(codes_of(prior, 4), text_of(4), order_of(prior, 4), draws)
    assert loss.item() == pytest.approx(math.log(grid.codes), abs=1e-5)
    torch.testing.assert_close(nll_B, torch.full((4,), math.log(grid.codes)))


def test_gradients_reach_every_parameter_the_null_caption_too(kind: str, grid: Grid) -> None:
    prior = make(kind, grid, caption_dropout=0.5, token_dropout=0.3)
    draws = PriorDraws(torch.tensor([0.1, 0.9, 0.4, 0.6]), torch.rand(4, grid.slots))
    text = text_of(4)
    text.mask_BT[1] = True  # the last text position too
    prior(codes_of(prior, 4), text, order_of(prior, 4), draws).loss.backward()
    silent = [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    unseen = prior.grid.depth * prior.grid.codes - len(torch.unique(prior.code.grad.nonzero()[:, 0]))  # type: ignore
    assert unseen < prior.grid.codes


def test_blurred_text_is_keyed_by_sample_and_as_strong_as_asked() -> None:
    text, ids = text_of(64), np.arange(64)
    assert blurred(text, 0.0, 0, ids) is text
    noisy = blurred(text, 0.5, 0, ids)
    for x, y in ((text.pooled_BP, noisy.pooled_BP), (text.tokens_BTD, noisy.tokens_BTD)):
        share = (y - x).square().mean().sqrt() / x.square().mean().sqrt()
        assert share.item() == pytest.approx(0.5, rel=0.15)
    assert (noisy.mask_BT == text.mask_BT).all()
    half = blurred(TextFeatures(*(x[32:] for x in text)), 0.5, 0, ids[32:])
    torch.testing.assert_close(half.pooled_BP, noisy.pooled_BP[32:])
    assert (blurred(text, 0.5, 1, ids).pooled_BP != noisy.pooled_BP).all()


def test_only_dropped_captions_train_the_null_caption(kind: str) -> None:
    prior = make(kind, caption_dropout=0.5)
    draws = PriorDraws(torch.full((3,), 0.5), torch.rand(3, prior.grid.slots))
    prior(codes_of(prior, 3), text_of(3), order_of(prior, 3), draws).loss.backward()
    assert not prior.null_token.grad.any() and not prior.null_pooled.grad.any()  # type: ignore[union-attr]


def test_a_dropped_caption_leaves_no_trace(kind: str) -> None:
    prior, order = make(kind).eval(), order_of(make(kind), 3)
    codes, null = codes_of(prior, 3), torch.ones(3, dtype=torch.bool)
    first, second = (prior.logits(codes, text_of(3, seed), order, null) for seed in (1, 2))
    torch.testing.assert_close(first, second)
    assert not torch.allclose(prior.logits(codes, text_of(3, 1), order), first, atol=1e-3)


def test_padding_of_the_text_never_changes_anything(kind: str) -> None:
    prior = make(kind).eval()
    text, codes, order = text_of(4), codes_of(prior, 4), order_of(prior, 4)
    plain = prior.logits(codes, text, order)
    loud = TextFeatures(torch.where(text.mask_BT[..., None], text.tokens_BTD, 99.0), text.mask_BT, text.pooled_BP)
    torch.testing.assert_close(prior.logits(codes, loud, order), plain)
    for i in range(4):  # and a caption is the same without the longer ones beside it
        length = int(text.mask_BT[i].sum())
        alone = TextFeatures(text.tokens_BTD[[i], :length], text.mask_BT[[i], :length], text.pooled_BP[[i]])
        own = None if order is None else Order(order.permutation_BS[[i]], order.sizes)
        torch.testing.assert_close(prior.logits(codes[[i]], alone, own), plain[[i]], rtol=1e-4, atol=1e-5)


def test_a_caption_without_a_known_word_is_no_nan(kind: str) -> None:
    prior, text = make(kind).eval(), text_of(2)
    empty = TextFeatures(text.tokens_BTD * 0, text.mask_BT & False, text.pooled_BP * 0)
    assert prior(codes_of(prior, 2), empty, order_of(prior, 2)).loss.isfinite()


def test_word_order_matters_to_one_hot_words(kind: str) -> None:
    prior = make(kind).eval()
    words = torch.eye(TOKENS)[None, :LONGEST]
    mask, pooled = torch.ones(1, LONGEST, dtype=torch.bool), torch.zeros(1, POOLED)
    codes, order = codes_of(prior, 1), order_of(prior, 1)
    ahead, back = (prior.logits(codes, TextFeatures(w, mask, pooled), order) for w in (words, words.flip(1)))
    assert (ahead - back).abs().max() > 1e-2


def test_a_slot_sees_what_was_drawn_before_it_and_nothing_else(kind: str, grid: Grid) -> None:
    prior = make(kind, grid).eval()
    codes, text, order = codes_of(prior, 1), text_of(1), order_of(prior, 1)
    base = prior.logits(codes, text, order)
    if order is None:
        group = {slot: slot for slot in range(grid.slots)}
    else:
        of_rank = torch.repeat_interleave(torch.arange(len(order.sizes)), torch.tensor(order.sizes)).tolist()
        group = {slot: of_rank[rank] for rank, slot in enumerate(order.permutation_BS[0].tolist())}
    for changed in range(grid.slots):
        other = codes.clone()
        other[0, changed] = (other[0, changed] + 1) % grid.codes
        moved = (prior.logits(other, text, order) - base).abs().amax(dim=-1)[0] > 1e-6
        assert moved.tolist() == [group[slot] > group[changed] for slot in range(grid.slots)]


def test_the_masks_against_their_definition() -> None:
    sizes, prefix = (2, 1, 3), 2
    mask = two_stream_mask(prefix, sizes, torch.device("cpu"))
    content = [0, 0, 1]  # the last group has none
    kinds = [("p", -1)] * prefix + [("c", g) for g in content] + [("q", g) for g in (0, 0, 1, 2, 2, 2)]
    for i, (a, g) in enumerate(kinds):
        for j, (b, other) in enumerate(kinds):
            expected = {
                "p": b == "p",
                "c": b == "p" or (b == "c" and other <= g),
                "q": b == "p" or (b == "c" and other < g) or (b == "q" and other == g),
            }[a]
            assert bool(mask[i, j]) == expected, (i, j)
    causal = raster_mask(2, 3, torch.device("cpu")).int().tolist()
    assert causal == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize("schedule", ["arccos", "linear"])
def test_group_sizes(schedule) -> None:
    for slots in (1, 7, 64, 256):
        for steps in (1, 2, 5, 8, 20, 64, 300):
            sizes = group_sizes(steps, slots, schedule)
            assert len(sizes) == min(steps, slots) and sum(sizes) == slots and min(sizes) > 0
    assert group_sizes(4, 64, "linear") == (16, 16, 16, 16)
    arccos = np_cumulative(group_sizes(8, 256, "arccos"))
    assert arccos == pytest.approx([256 * 2 / math.pi * math.asin((i + 1) / 8) for i in range(8)], abs=1)


def np_cumulative(sizes: tuple[int, ...]) -> list[int]:
    return [sum(sizes[: i + 1]) for i in range(len(sizes))]


def test_a_training_order_is_a_function_of_its_uniforms() -> None:
    uniforms = torch.rand(3, 16, dtype=torch.float64)
    order = training_order(uniforms, (0.5, 0.2))
    assert order.sizes == group_sizes(4, 16, "arccos")
    assert training_order(uniforms, (0.5, 0.7)).sizes == group_sizes(4, 16, "linear")
    assert (
        len(training_order(uniforms, (0.0, 0.2)).sizes) == 1 and len(training_order(uniforms, (0.999, 0)).sizes) == 16
    )
    assert order.permutation_BS.sort(dim=1).values.tolist() == [list(range(16))] * 3
    alone = training_order(uniforms[1:2], (0.5, 0.2)).permutation_BS
    assert torch.equal(alone, order.permutation_BS[1:2])


def test_token_dropout_hides_inputs_and_never_targets(kind: str) -> None:
    prior = make(kind, token_dropout=0.5)
    slots = prior.grid.slots
    order = order_of(prior, 1, steps=slots)
    first = 0 if order is None else int(order.permutation_BS[0, 0])
    codes, other = codes_of(prior, 1), codes_of(prior, 1)
    other[0, first] = (other[0, first] + 1) % prior.grid.codes
    shown, hidden = torch.ones(1, slots), torch.zeros(1, slots)

    def rest(codes: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        hide = uniforms < 0.5
        return prior._logits(codes, prior.prefix(text_of(1)), order, hide)[:, 1:]

    assert not torch.allclose(rest(codes, shown), rest(other, shown), atol=1e-4)
    torch.testing.assert_close(rest(codes, hidden), rest(other, hidden))
    one, two = (prior(c, text_of(1), order, PriorDraws(torch.ones(1), hidden)).nll_B for c in (codes, other))
    assert not torch.equal(one, two)  # the hidden code is still a target


def test_label_smoothing_against_torch(kind: str) -> None:
    prior = make(kind, label_smoothing=0.1)
    codes, text, order = codes_of(prior, 3), text_of(3), order_of(prior, 3)
    loss, nll_B = prior(codes, text, order)
    logits = prior.logits(codes, text, order)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten(), label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)
    plain = torch.nn.functional.cross_entropy(logits.transpose(1, 2), codes, reduction="none").mean(dim=1)
    torch.testing.assert_close(nll_B, plain.detach())


def test_overfits_eight_sequences_and_then_wrong_captions_cost(kind: str) -> None:
    prior = make(kind, settled=False)
    codes, text = codes_of(prior, 8), text_of(8)
    optimizer = torch.optim.AdamW(prior.parameters(), 3e-3, weight_decay=0.0)
    g = torch.Generator().manual_seed(3)
    for _ in range(250 if kind == "random" else 120):
        order = None
        if kind == "random":
            order = training_order(torch.rand(8, prior.grid.slots, generator=g), torch.rand(2, generator=g).tolist())
        optimizer.zero_grad()
        prior(codes, text, order).loss.backward()
        torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
    prior.eval()
    order = order_of(prior, 8, steps=6)
    right = prior(codes, text, order).nll_B
    wrong = prior(codes, TextFeatures(*(x.roll(1, 0) for x in text)), order).nll_B
    assert right.mean() < 0.1 < 1.0 < wrong.mean()


def test_swiglu_is_its_formula() -> None:
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    gate, up = x.chunk(2, dim=-1)
    torch.testing.assert_close(SwiGLU.apply(x), gate * torch.sigmoid(gate) * up)
    assert torch.autograd.gradcheck(SwiGLU.apply, x)


def test_the_product_of_onednn_and_its_gradients_are_those_of_torch() -> None:
    layer, x = Linear(24, 40), torch.randn(3, 7, 24, requires_grad=True)
    grad = torch.randn(3, 7, 40)
    torch.testing.assert_close(layer(x), x @ layer.weight.T)
    expected = torch.autograd.grad(torch.nn.functional.linear(x, layer.weight), [x, layer.weight], grad)
    torch.testing.assert_close(torch.autograd.grad(layer(x), [x, layer.weight], grad), expected)
    frozen = torch.autograd.grad(layer(x.detach()), [layer.weight], grad)
    torch.testing.assert_close(frozen[0], expected[1])
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_rotary_scores_depend_on_the_distance_of_the_cells() -> None:
    grid = Grid(4, 5, 2, 3)
    turns = rotation(grid, 16, torch.device("cpu"))
    q, k = torch.randn(16), torch.randn(16)

    def score(a: int, b: int) -> float:
        return float(rotate(q, turns[a]) @ rotate(k, turns[b]))

    slot = {(r, c): (r * grid.width + c) * grid.depth for r in range(4) for c in range(5)}
    assert score(slot[0, 0], slot[1, 2]) == pytest.approx(score(slot[2, 1], slot[3, 3]), abs=1e-4)
    assert score(slot[0, 0], slot[1, 2]) != pytest.approx(score(slot[0, 0], slot[2, 1]), abs=1e-3)
    assert torch.equal(turns[::2], turns[1::2])  # all depths of a cell stand in one place


@pytest.mark.parametrize(
    ("name", "grid", "millions"),
    [
        ("prior-tiny", Grid(8, 8, 1, 512), 1.0),
        ("prior-small", Grid(8, 8, 1, 1024), 25.0),
        ("prior-base", Grid(16, 16, 1, 16384), 111.0),
        ("prior-large", Grid(16, 16, 1, 16384), 343.0),
    ],
)
def test_the_presets_have_the_size_they_are_named_for(name: str, grid: Grid, millions: float) -> None:
    config = load(config_class("prior"), name, [])
    text = (768, 768, 77) if millions > 2 else (128, 128, 32)
    with torch.device("meta"):
        count = sum(p.numel() for p in Prior(config, grid, *text).parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.05)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(InputError, match="multiple of 4 x heads = 12"):
        load(config_class("prior"), None, ["model.heads=3"])
