"""Decoding: the cache changes nothing, guidance equals its formula, given codes are kept, images depend on their own seeds."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from builders.tiny_prior import GRIDS, codes_of, make, text_of
from t2i import seeding
from t2i.errors import InputError
from t2i.prior import decoding, kv_cache
from t2i.prior.config import SamplingConfig
from t2i.prior.decoding import Known, bounds_of, choose, decode, guidance_at
from t2i.prior.kv_cache import CachedDecoder
from t2i.prior.orders import Order, group_sizes
from t2i.prior.transformer import Prior
from t2i.seeding import gumbel
from t2i.text import TextFeatures

PLAIN = SamplingConfig(guidance=1.0)
GREEDY = SamplingConfig(guidance=1.0, temperature=0.0)


@pytest.fixture(autouse=True)
def threads():
    """Sets one thread, so that the size of chunks is known; returns the function that changes the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=["raster", "random"])
def kind(request) -> str:
    return request.param


@pytest.fixture(params=list(GRIDS))
def prior(request, kind: str) -> Prior:
    return make(kind, GRIDS[request.param]).eval()


def permutations(prior: Prior, count: int) -> torch.Tensor:
    return torch.stack(
        [torch.randperm(prior.grid.slots, generator=torch.Generator().manual_seed(i)) for i in range(count)]
    )


def full_logits(prior: Prior, codes: torch.Tensor, text: TextFeatures, order: Order | None, guidance: float):
    """Computes logits by definition: the whole sequence for each step, each branch separately."""
    caption = prior.logits(codes, text, order)
    null = prior.logits(codes, text, order, torch.ones(len(codes), dtype=torch.bool))
    return null + guidance * (caption - null)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("steps", [3, 12])
@torch.inference_mode()
def test_cached_logits_are_the_uncached_ones(prior: Prior, guidance: float, steps: int, static: bool) -> None:
    text, codes = text_of(3), codes_of(prior, 3)
    slots = prior.grid.slots
    decoder = CachedDecoder(prior, text, guidance != 1, kv_cache.weights_of(prior, packed=not static), static)
    found = torch.zeros(3, slots, prior.grid.codes)
    order = None
    if prior.query is None:
        x = decoder.first_RD[:, None]
        for slot in range(slots):
            found[:, slot] = decoder.guide(x, guidance)[:, 0]
            where = torch.full((3, 1), slot)
            x = decoder.run(decoder.embed(codes[:, [slot]], where), where, 1)
    else:
        order = Order(permutations(prior, 3), group_sizes(steps, slots, "arccos"))
        before, start = order.permutation_BS[:, :0], 0
        for size in order.sizes:
            now = order.permutation_BS[:, start : start + size]
            content = decoder.embed(codes.gather(1, before), before)
            tokens = torch.cat([content, prior.query + decoder.positions[now]], dim=1)
            x = decoder.run(tokens, torch.cat([before, now], dim=1), before.shape[1])
            found.scatter_(1, now[..., None].expand(-1, -1, found.shape[-1]), decoder.guide(x, guidance))
            before, start = now, start + size
    torch.testing.assert_close(found, full_logits(prior, codes, text, order, guidance), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def slowly(
    prior: Prior, text: TextFeatures, seeds: list[int], guidance: float, known: Known | None = None
) -> torch.Tensor:
    """Decodes one token a step in raster order by definition: no cache, no batch, no parallel groups."""
    result = []
    for i, seed in enumerate(seeds):
        own = TextFeatures(*(x[[i]] for x in text))
        codes = torch.zeros(1, prior.grid.slots, dtype=torch.long)
        order, given = list(range(prior.grid.slots)), 0
        if known is not None:
            codes = known.codes_BS[[i]] * known.mask_BS[[i]]
            if prior.query is not None:
                order.sort(key=lambda slot: not known.mask_BS[i, slot])
                given = int(known.mask_BS[i].sum())
        sizes = (*([given] if given else []), *[1] * (prior.grid.slots - given))  # what is given is the first group
        whole = None if prior.query is None else Order(torch.tensor([order]), sizes)
        for slot in order:
            if known is not None and known.mask_BS[i, slot]:
                continue
            logits = full_logits(prior, codes, own, whole, guidance)[0, slot]
            codes[0, slot] = int((logits + torch.from_numpy(gumbel(seed, np.array([slot]), len(logits)))[0]).argmax())
        result.append(codes[0])
    return torch.stack(result)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_one_token_a_step_is_the_sequential_decoder(prior: Prior, guidance: float) -> None:
    sampling = SamplingConfig(guidance=guidance, decoding_order="raster")
    text, seeds = text_of(3), [5, 6, 7]
    assert torch.equal(decode(prior, text, seeds, sampling), slowly(prior, text, seeds, guidance))


@pytest.mark.parametrize("seed", range(3))
def test_guidance_changes_tokens_after_the_first(kind: str, seed: int) -> None:
    prior = make(kind, seed=seed).eval()
    with torch.no_grad():  # one branch and the other say the same of the first token
        prior.head.weight.mul_(3)
    text, seeds = text_of(8), list(range(8))
    order = {"decoding_order": "raster"}
    plain = decode(prior, text, seeds, SamplingConfig(guidance=1.0, **order))
    # once two pictures differ all that follows differs too: so give both the same past, and look at each next token
    changed = []
    for slot in range(1, prior.grid.slots):
        past = Known(torch.arange(prior.grid.slots).expand(8, -1) < slot, plain)
        other = decode(prior, text, seeds, SamplingConfig(guidance=4.0, **order), past)[:, slot]
        changed.append(not torch.equal(other, plain[:, slot]))
    assert sum(changed) > len(changed) / 2


def test_guidance_schedules_against_algebra() -> None:
    constant = SamplingConfig(guidance=4.0, guidance_until=0.5)
    assert [guidance_at(t, constant) for t in (0, 0.25, 0.5, 0.9)] == [4, 4, 1, 1]
    rising = SamplingConfig(guidance=5.0, guidance_schedule="power_cosine", guidance_power=1.0)
    assert [guidance_at(t, rising) for t in (0, 0.5, 1 / 3)] == pytest.approx([1, 3, 2])
    assert guidance_at(0.999, rising) == pytest.approx(5, abs=1e-4)
    late = SamplingConfig(guidance=5.0, guidance_schedule="power_cosine", guidance_power=2.0)
    assert guidance_at(0.5, late) == pytest.approx(1 + 4 * (1 - math.cos(math.pi / 4)) / 2)


@torch.inference_mode()
def test_guidance_of_zero_is_the_null_branch_and_off_needs_none(kind: str) -> None:
    prior = make(kind).eval()
    other = text_of(3, seed=9)
    seeds = [1, 2, 3]
    none = [decode(prior, t, seeds, SamplingConfig(guidance=0.0)) for t in (text_of(3), other)]
    assert torch.equal(*none)  # the caption has no say
    off = SamplingConfig(guidance=7.0, guidance_until=0.0)
    assert torch.equal(decode(prior, other, seeds, off), decode(prior, other, seeds, PLAIN))


def test_the_null_branch_may_leave_half_way(kind: str) -> None:
    prior, text, seeds = make(kind).eval(), text_of(2), [3, 4]
    half = SamplingConfig(guidance=3.0, guidance_until=0.5, decoding_order="raster")
    found = decode(prior, text, seeds, half)
    slots = prior.grid.slots
    whole = decode(prior, text, seeds, half.model_copy(update={"guidance_until": 1.0}))
    assert torch.equal(found[:, : slots // 2], whole[:, : slots // 2])
    if kind == "raster":
        past = Known((torch.arange(slots) < slots // 2).expand(2, -1), whole)
        assert torch.equal(found, decode(prior, text, seeds, PLAIN, past))


@pytest.mark.parametrize("steps", [None, 3])
def test_inpainting_keeps_the_given_codes_and_reads_them(prior: Prior, steps: int | None) -> None:
    if prior.query is None and steps:
        pytest.skip("raster order has one token a step")
    text, seeds, slots = text_of(4), [0, 1, 2, 3], prior.grid.slots
    given = codes_of(prior, 4, seed=5)
    mask = torch.rand(4, slots, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[1], mask[2] = True, False
    sampling = SamplingConfig(guidance=2.0, steps=steps)
    found = decode(prior, text, seeds, sampling, Known(mask, given))
    assert torch.equal(found[mask], given[mask])
    assert torch.equal(found[1], given[1])
    assert torch.equal(found[2], decode(prior, text, seeds, sampling)[2])  # nothing given: as without
    if steps is None:
        raster = SamplingConfig(guidance=2.0, decoding_order="raster")
        known = Known(mask, given)
        assert torch.equal(decode(prior, text, seeds, raster, known), slowly(prior, text, seeds, 2.0, known))


@pytest.mark.parametrize(
    "changes", [{}, {"steps": 4}, {"top_k": 4}, {"top_p": 0.7}, {"guidance": 5.0, "top_k": 5, "top_p": 0.9}]
)
def test_the_codes_of_a_seed_do_not_depend_on_the_batch(kind: str, changes: dict, threads) -> None:
    if kind == "raster":
        changes = {key: value for key, value in changes.items() if key != "steps"}
    prior, count = make(kind).eval(), 40
    text, seeds = text_of(count), [100 + i for i in range(count)]
    sampling = PLAIN.model_copy(update=changes)
    together = decode(prior, text, seeds, sampling)
    threads(3)
    assert torch.equal(decode(prior, text, seeds, sampling), together)
    for i in (0, 7, 17, 39):
        alone = decode(prior, TextFeatures(*(x[[i]] for x in text)), [seeds[i]], sampling)
        assert torch.equal(alone[0], together[i])
    few = decode(prior, TextFeatures(*(x[5:8] for x in text)), seeds[5:8], sampling)
    assert torch.equal(few, together[5:8])
    same = decode(prior, TextFeatures(*(x[[0, 0]] for x in text)), [1, 2], sampling)
    assert not torch.equal(same[0], same[1])  # and another seed is another picture


def test_a_picture_whose_codes_hang_on_rounding_is_decoded_alone(monkeypatch) -> None:
    prior, text, sizes = make("random").eval(), text_of(5), []
    plain = decode(prior, text, list(range(5)), PLAIN)
    original = decoding._decode_job

    def spy(model, job, *rest):
        sizes.append(len(job.seeds))
        return original(model, job, *rest)

    monkeypatch.setattr(decoding, "_decode_job", spy)
    monkeypatch.setattr(decoding, "SLACK", 1e-7)
    decode(prior, text, list(range(5)), PLAIN)
    assert sizes == [5]
    monkeypatch.setattr(decoding, "SLACK", 100.0)  # nothing is sure
    assert torch.equal(decode(prior, text, list(range(5)), PLAIN), plain)
    assert sizes == [5, 5, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "sampling", [PLAIN, SamplingConfig(top_k=3), SamplingConfig(top_k=6, top_p=0.6, temperature=0.7)]
)
def test_a_sure_code_withstands_every_change_below_the_slack(sampling: SamplingConfig) -> None:
    g = torch.Generator().manual_seed(0)
    logits, noise = torch.randn(4000, 9, generator=g), torch.rand(4000, 9, generator=g)
    noise, slack = -torch.log(-torch.log(noise)), 0.05
    codes, unsure = choose(logits, noise, sampling, slack)
    assert unsure is not None and 0.01 < unsure.float().mean() < 0.7
    moved = torch.zeros(len(codes), dtype=torch.bool)
    for _ in range(40):
        shift = (torch.randint(0, 2, logits.shape, generator=g) - 0.5) * slack * 0.99
        moved |= choose(logits + shift, noise, sampling, 0.0)[0] != codes
    assert moved.any() and not (moved & ~unsure).any()


def reference_kept(logits: np.ndarray, k: int | None, p: float, temperature: float) -> set[int]:
    """Applies top-k, then top-p by definition, one code after the other."""
    ranked = sorted(range(len(logits)), key=lambda i: -logits[i])[: k or len(logits)]
    weights = [math.exp((logits[i] - logits[ranked[0]]) / temperature) for i in ranked]
    keep: set[int] = set()
    mass = 0.0
    for code, weight in zip(ranked, weights, strict=True):
        if mass / sum(weights) >= p:
            break
        keep.add(code)
        mass += weight
    return keep


@pytest.mark.parametrize("k", [None, 1, 3, 13])
@pytest.mark.parametrize("p", [0.01, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_top_k_and_top_p_against_brute_force(k: int | None, p: float, temperature: float) -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 13)))
    bounds = bounds_of(logits, SamplingConfig(top_k=k, top_p=p, temperature=temperature))
    keep = torch.ones_like(logits, dtype=torch.bool) if bounds is None else logits >= bounds[0]
    for row, found in zip(logits.numpy(), keep, strict=True):
        assert set(found.nonzero()[:, 0].tolist()) == reference_kept(row, k, p, temperature)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).expand(20_000, -1)
    noise = torch.from_numpy(gumbel(3, np.arange(20_000), 4)).float()
    sampling = SamplingConfig(temperature=0.8, top_k=3)
    counts = torch.bincount(choose(logits, noise, sampling, 0.0)[0], minlength=4) / 20_000
    expected = (logits[0, :3] / 0.8).softmax(dim=0).tolist()
    assert counts[3] == 0 and counts[:3].tolist() == pytest.approx(expected, abs=0.015)


def test_temperature_zero_takes_the_likeliest_and_ignores_the_seed(kind: str) -> None:
    prior, text = make(kind).eval(), text_of(2)
    raster = GREEDY.model_copy(update={"decoding_order": "raster"})
    assert torch.equal(decode(prior, text, [1, 2], raster), decode(prior, text, [3, 4], raster))
    top_1 = SamplingConfig(guidance=1.0, top_k=1, decoding_order="raster")
    assert torch.equal(decode(prior, text, [1, 2], raster), decode(prior, text, [1, 2], top_1))


def test_weights_that_moved_are_packed_again(kind: str) -> None:
    prior, text = make(kind).eval(), text_of(2)
    before = decode(prior, text, [1, 2], PLAIN)
    with torch.no_grad():
        prior.head.weight.data.neg_()  # behind the back of torch's version counters
    after = decode(prior, text, [1, 2], PLAIN)
    assert not torch.equal(before, after)
    fresh = make(kind).eval()
    fresh.load_state_dict(prior.state_dict())
    assert torch.equal(decode(fresh, text, [1, 2], PLAIN), after)


def test_weights_are_checked_once_a_call_and_codes_alone_are_not_computed_to_the_end(kind: str, monkeypatch) -> None:
    prior, checks, rows = make(kind).eval(), [], []
    plain = kv_cache.weights_of(prior)

    def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        rows.append(x.shape[-2])
        return plain.product(x, weight)

    def spy(model: Prior) -> kv_cache.Weights:
        checks.append(model)
        return plain._replace(product=product)

    monkeypatch.setattr(decoding, "weights_of", spy)
    steps = None if kind == "raster" else 3
    decode(prior, text_of(20), list(range(20)), PLAIN.model_copy(update={"steps": steps}))
    assert checks == [prior]
    # the last step: all blocks but the last see codes and queries, whose `out`, `gate_up`, `down` see the queries alone
    assert kind == "raster" or rows[-5] > rows[-4] == rows[-3] == rows[-2] == rows[-1]


def test_noise_is_of_the_seed_and_the_slot() -> None:
    several = gumbel(7, np.array([4, 0, 9]), 5)
    np.testing.assert_array_equal(several[2], gumbel(7, np.array([9]), 5)[0])
    u = seeding.uniform(7, "sample/gumbel", np.array([4]), 5)[0]
    np.testing.assert_allclose(several[0], -np.log(-np.log(u)))
    assert np.isfinite(gumbel(1, np.arange(500), 500)).all()


def test_the_order_of_decoding_is_of_the_seed(monkeypatch) -> None:
    prior, text = make("random").eval(), text_of(2)
    nothing = Known(torch.zeros(2, 12, dtype=torch.bool), torch.zeros(2, 12, dtype=torch.long))
    request = decoding._Request(prior, PLAIN, text, [1, 2], nothing)
    ranked = request.job([0, 1]).ranked_BS
    assert not torch.equal(ranked[0], ranked[1]) and sorted(ranked[0].tolist()) == list(range(12))
    assert torch.equal(ranked[1:], request.job([1]).ranked_BS)
    raster = PLAIN.model_copy(update={"decoding_order": "raster"})
    assert not torch.equal(decode(prior, text, [1, 2], PLAIN), decode(prior, text, [1, 2], raster))


@pytest.mark.parametrize(("count", "chunks"), [(1, 2), (3, 3)])
def test_every_step_is_heard(kind: str, count: int, chunks: int, threads) -> None:
    threads(count)
    prior = make(kind).eval()
    shares: list[float] = []
    steps = None if kind == "raster" else 3
    decode(prior, text_of(20), list(range(20)), PLAIN.model_copy(update={"steps": steps}), on_step=shares.append)
    assert len(shares) == chunks * (steps or prior.grid.slots)
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1) and 0 < shares[0] < 0.5


def test_no_pictures_are_no_error(kind: str) -> None:
    prior = make(kind).eval()
    assert decode(prior, TextFeatures(*(x[:0] for x in text_of(1))), [], PLAIN).shape == (0, 12)


def test_mistakes_are_named() -> None:
    raster, text = make("raster").eval(), text_of(1)
    with pytest.raises(InputError, match="top_k 12 is more than the 11 codes"):
        decode(raster, text, [0], SamplingConfig(top_k=12))
    with pytest.raises(InputError, match="steps 4: this prior was trained with order=raster"):
        decode(raster, text, [0], SamplingConfig(steps=4))
    with pytest.raises(InputError, match="given codes reach 11; the tokenizer has codes 0 to 10"):
        decode(raster, text, [0], PLAIN, Known(torch.ones(1, 12, dtype=torch.bool), torch.full((1, 12), 11)))
    with pytest.raises(ValidationError, match="guidance"):
        SamplingConfig(guidance=-1.0)
