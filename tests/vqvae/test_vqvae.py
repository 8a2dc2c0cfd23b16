"""The image tokenizer: quantisers against algebra, initial losses, learning."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import ValidationError

from builders import forks
from builders.quantizers import settings_of
from t2i.data import View, open_dataset
from t2i.errors import InputError
from t2i.images import to_model
from t2i.vqvae import losses
from t2i.vqvae.autoencoder import Autoencoder, make_quantizer
from t2i.vqvae.codebook_use import PATIENCE, CodeUse
from t2i.vqvae.config import AutoencoderLossConfig, Config, PatchDiscriminatorConfig, VectorConfig
from t2i.vqvae.discriminator import PatchDiscriminator
from t2i.vqvae.quantizers import QUANTIZERS
from t2i.vqvae.quantizers.contract import nearest
from t2i.vqvae.quantizers.vector import Codebook, VectorQuantizer


def tiny(**changes) -> Config:
    wanted = {"kind": "vector", "codebook_size": 32, "dim": 4, "levels": [4, 3, 5], "warmup_steps": 0}
    base = {
        "autoencoder": {"width": 16, "width_limit": 32},
        "quantizer": settings_of(**(wanted | changes.pop("quantizer", {}))),
    }
    for key, value in changes.items():
        base[key] = base.get(key, {}) | value if isinstance(value, dict) else value
    return Config.model_validate(base)


@pytest.fixture(params=list(QUANTIZERS))
def kind(request) -> str:
    return request.param


def quantizer_of(kind: str, **changes):
    torch.manual_seed(0)
    return make_quantizer(tiny(quantizer={"kind": kind} | changes))


# ---- the contract of every quantiser --------------------------------------------------------------------------------


def test_indices_and_codes_are_one_another_bit_for_bit(kind: str) -> None:
    quantizer = quantizer_of(kind)
    latents = torch.randn(3, quantizer.dim, 4, 4)
    for module in (quantizer.train(), quantizer.eval()):
        found = module(latents)
        assert found.indices_BLQ.shape == (3, 16, quantizer.codebooks) and found.indices_BLQ.dtype == torch.int64
        assert 0 <= found.indices_BLQ.min() and found.indices_BLQ.max() < quantizer.codebook_size
        assert torch.equal(quantizer.codes_of(found.indices_BLQ), found.codes_BCHW)
        assert found.codes_BCHW.shape == latents.shape and found.loss.ndim == 0
    some = torch.randint(quantizer.codebook_size, (2, 9, quantizer.codebooks))
    codes = quantizer.codes_of(some)
    if kind in ("scalar", "vector"):  # a code is its own nearest one
        latents = codes if kind == "vector" else _unbound(quantizer, codes)
        assert torch.equal(quantizer(latents).indices_BLQ, some)


def _unbound(quantizer, codes: torch.Tensor) -> torch.Tensor:
    """Returns latents that the bound of FSQ maps to these codes."""
    levels = quantizer.levels_D.view(1, -1, 1, 1)
    half, offset = (levels - 1) * 1.001 / 2, 0.5 * (levels % 2 == 0)
    return torch.atanh((codes * (levels // 2) + offset) / half) - torch.atanh(offset / half)


def test_tokens_stand_row_by_row(kind: str) -> None:
    quantizer = quantizer_of(kind).eval()
    latents = torch.randn(1, quantizer.dim, 4, 4)
    changed = latents.clone()
    changed[0, :, 1, 2] *= -3
    different = (quantizer(latents).indices_BLQ != quantizer(changed).indices_BLQ).any(dim=-1)[0].nonzero()[:, 0]
    assert different.tolist() == [1 * 4 + 2]


def test_the_gradient_of_codes_is_that_of_latents(kind: str) -> None:
    quantizer = quantizer_of(kind)
    latents = torch.randn(2, quantizer.dim, 4, 4, requires_grad=True)
    wanted = torch.randn(2, quantizer.dim, 4, 4)
    (quantizer(latents).codes_BCHW * wanted).sum().backward()
    assert latents.grad is not None
    if kind == "simvq":
        assert torch.equal(latents.grad, wanted)
    else:  # through the bound, or onto the unit sphere
        assert F.cosine_similarity(latents.grad.flatten(), wanted.flatten(), dim=0) > 0.3


def test_a_batch_is_quantised_as_its_parts_are(kind: str) -> None:
    quantizer = quantizer_of(kind).eval()
    latents = torch.randn(5, quantizer.dim, 4, 4)
    alone = torch.cat([quantizer(latents[i : i + 1]).indices_BLQ for i in range(5)])
    assert torch.equal(quantizer(latents).indices_BLQ, alone)


def test_scalar_is_the_papers_equation() -> None:
    quantizer = quantizer_of("scalar")
    x = torch.linspace(-4, 4, 81).view(1, 1, 9, 9).repeat(1, 3, 1, 1)
    found = quantizer(x)
    digits = []
    for d, levels in enumerate((4, 3, 5)):
        half = (levels - 1) * 1.001 / 2
        offset = 0.5 if levels % 2 == 0 else 0.0
        bounded = np.tanh(x[0, d].double().numpy() + math.atanh(offset / half)) * half - offset
        digit = np.round(bounded) + levels // 2
        assert digit.min() == 0 and digit.max() == levels - 1  # every level is reached
        np.testing.assert_allclose(found.codes_BCHW[0, d].numpy(), (digit - levels // 2) / (levels // 2), rtol=1e-6)
        digits.append(digit)
    index = digits[0] + 4 * digits[1] + 12 * digits[2]
    np.testing.assert_array_equal(found.indices_BLQ[0, :, 0].numpy(), index.reshape(-1))
    assert quantizer.codebook_size == 60 and found.loss == 0


def test_the_nearest_code_is_that_of_a_brute_search() -> None:
    torch.manual_seed(0)
    x, codes = torch.randn(200, 8), torch.randn(50, 8)
    brute = (x[:, None].double() - codes.double()).norm(dim=2).argmin(dim=1)
    assert torch.equal(nearest(x, codes), brute)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest(x, codes), brute)
    quantizer = quantizer_of("vector").eval()
    latents = torch.randn(2, 4, 4, 4)
    unit = F.normalize(latents.permute(0, 2, 3, 1).reshape(-1, 4), dim=1)
    cosine = (unit @ quantizer.book.codes_KD.T).argmax(dim=1)
    assert torch.equal(quantizer(latents).indices_BLQ.flatten(), cosine)


def test_each_depth_of_the_residual_comes_closer() -> None:
    quantizer = quantizer_of("residual", depth=4, warmup_steps=5)
    latents = torch.randn(16, 4, 4, 4)
    for _ in range(80):
        quantizer.observe(latents, quantizer(latents).indices_BLQ)
    indices = quantizer.eval()(latents).indices_BLQ
    wanted = F.normalize(latents, dim=1)
    errors, kept = [], quantizer.codebooks
    for quantizer.codebooks in range(1, kept + 1):
        errors.append((quantizer.codes_of(indices) - wanted).square().mean().item())
    assert all(b < 0.8 * a for a, b in zip(errors, errors[1:], strict=False)), errors


# ---- the codebook that follows its latents --------------------------------------------------------------------------


def book(**changes) -> Codebook:
    torch.manual_seed(0)
    config = {"codebook_size": 16, "dim": 4, "warmup_steps": 0, "revive_below": 0.0} | changes
    return Codebook(VectorConfig.model_validate(config), unit=False)


def test_averages_follow_the_closed_form() -> None:
    codebook = book(ema_decay=0.9)
    x, indices = torch.randn(40, 4), torch.randint(15, (40,))  # nothing uses code 15
    counts, sums = codebook.counts_K.clone(), codebook.sums_KD.clone()
    for _ in range(3):
        codebook.observe(x, indices)
        used = F.one_hot(indices, 16).float()
        counts, sums = 0.9 * counts + 0.1 * used.sum(dim=0), 0.9 * sums + 0.1 * used.T @ x
    torch.testing.assert_close(codebook.codes_KD, sums / counts[:, None])
    assert codebook.counts_K[15].item() == pytest.approx(0.9**3)


def test_revival_raises_the_use_and_forgets_the_old_averages() -> None:
    def train(revive_below: float) -> tuple[Codebook, float]:
        codebook = book(codebook_size=64, revive_below=revive_below, ema_decay=0.8, revival_steps=5)
        codebook.codes_KD[8:] += 100  # all but 8 codes lie where no latent is
        codebook.sums_KD.copy_(codebook.codes_KD)
        generator = torch.Generator().manual_seed(1)
        for _ in range(120):
            x = torch.randn(256, 4, generator=generator)
            codebook.observe(x, nearest(x, codebook.codes_KD))
        return codebook, len(nearest(torch.randn(4000, 4), codebook.codes_KD).unique()) / 64

    _, dead = train(0.0)
    revived, use = train(0.3)
    assert dead < 0.2 and use > 0.95
    torch.testing.assert_close(revived.sums_KD / revived.counts_K[:, None], revived.codes_KD)
    assert revived.codes_KD.abs().max() < 10


def test_the_warm_up_leaves_latents_alone_and_makes_the_codebook_of_them() -> None:
    quantizer = quantizer_of("vector", warmup_steps=3)
    assert isinstance(quantizer, VectorQuantizer)
    latents = torch.randn(8, 4, 4, 4)
    unit = F.normalize(latents, dim=1)
    for _ in range(3):
        found = quantizer(latents)
        torch.testing.assert_close(found.codes_BCHW, unit)
        assert found.loss == 0
        quantizer.observe(latents, found.indices_BLQ)
    points = unit.permute(0, 2, 3, 1).reshape(-1, 4)
    assert torch.cdist(quantizer.book.codes_KD, points).min(dim=1).values.max() < 1e-3
    assert not torch.equal(quantizer(latents).codes_BCHW, unit)
    quantizer = quantizer_of("vector", warmup_steps=3).eval()
    assert torch.equal(quantizer.codes_of(quantizer(latents).indices_BLQ), quantizer(latents).codes_BCHW)


def _one_of_two(rank: int, port: int, kind: str) -> dict[str, torch.Tensor]:
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    quantizer = quantizer_of(kind, warmup_steps=2, revive_below=5.0, revival_steps=2)
    generator = torch.Generator().manual_seed(rank)
    use = CodeUse(quantizer.codebooks, quantizer.codebook_size, torch.device("cpu"))
    for _ in range(8):
        latents = torch.randn(4, quantizer.dim, 4, 4, generator=generator)
        indices = quantizer(latents).indices_BLQ
        quantizer.observe(latents, indices)
        use.add(indices)
    read = torch.tensor(use.read())
    dist.destroy_process_group()
    return {name: x.numpy().tobytes() for name, x in {**quantizer.state_dict(), "use": read}.items()}


@pytest.mark.parametrize("kind", ["vector", "residual"])
def test_two_processes_hold_one_codebook(kind: str, tmp_path) -> None:
    import pickle
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]

    def child() -> None:
        (tmp_path / "other").write_bytes(pickle.dumps(_one_of_two(1, port, kind)))

    pid = forks.fork(child)
    mine = forks.in_child(lambda: _one_of_two(0, port, kind))
    assert forks.wait(pid) == 0
    other = pickle.loads((tmp_path / "other").read_bytes())
    assert mine == other
    alone = quantizer_of(kind, warmup_steps=2).state_dict()
    assert all(mine[name] != x.numpy().tobytes() for name, x in alone.items() if name.endswith("codes_KD"))


# ---- the autoencoder ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return to_model(open_dataset("shapes-2", "train", View(32)).images(range(8)))


def test_gradients_reach_every_parameter(kind: str, pictures: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = Autoencoder(tiny(quantizer={"kind": kind}, autoencoder={"attention": True}))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(3):  # residual branches start at zero
        made = model(pictures)
        optimizer.zero_grad()
        (losses.reconstruction(made.images_BCHW, pictures, AutoencoderLossConfig()) + made.loss).backward()
        optimizer.step()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


def test_a_new_network_gives_grey(kind: str, pictures: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = Autoencoder(tiny(quantizer={"kind": kind}))
    made = model(pictures)
    assert made.images_BCHW.shape == pictures.shape and made.images_BCHW.abs().mean() < 0.15
    assert made.indices_BLQ.shape == (8, 64, model.codes.codebooks)
    loss = losses.reconstruction(
        made.images_BCHW, pictures, AutoencoderLossConfig(l1=1, l2=0, multi_scale=0, gradient=0, edge=0)
    )
    assert loss.item() == pytest.approx(pictures.abs().mean().item(), rel=0.15)


def test_eight_pictures_are_learned_by_heart(kind: str, pictures: torch.Tensor) -> None:
    torch.manual_seed(0)
    quantizer = {"kind": kind, "codebook_size": 128, "levels": [8, 8, 8], "warmup_steps": 20, "dim": 8}
    config = tiny(quantizer=quantizer, autoencoder={"patch": 4, "width": 64, "width_limit": 64})
    model = Autoencoder(config)
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    for _ in range(200):
        made = model(pictures)
        optimizer.zero_grad()
        (losses.reconstruction(made.images_BCHW, pictures, config.loss) + made.loss).backward()
        optimizer.step()
        model.codes.observe(made.latents_BCHW.detach(), made.indices_BLQ)
    model.eval()
    with torch.no_grad():
        error = (model.decode(model.encode(pictures)) - pictures).square().mean()
    baseline = (pictures - pictures.mean(dim=(2, 3), keepdim=True)).square().mean()
    assert error < 0.4 * baseline


@pytest.mark.parametrize(
    ("resolution", "grid", "patch"), [(64, 8, 2), (64, 16, 2), (64, 16, 4), (16, 8, 2), (32, 8, 4)]
)
def test_every_size_comes_back(resolution: int, grid: int, patch: int) -> None:
    config = tiny(data={"resolution": resolution}, autoencoder={"grid": grid, "patch": patch})
    made = Autoencoder(config)(torch.zeros(1, 3, resolution, resolution))
    assert made.images_BCHW.shape == (1, 3, resolution, resolution) and made.indices_BLQ.shape == (1, grid**2, 1)


def test_strides_that_do_not_divide_are_refused() -> None:
    for changes in ({"data": {"resolution": 16}, "autoencoder": {"grid": 16}}, {"autoencoder": {"grid": 6}}):
        with pytest.raises(ValidationError, match="data.resolution .* times a power of two; change one of them"):
            tiny(**changes)
    with pytest.raises(ValidationError, match="levels must each be at least 2"):
        tiny(quantizer={"kind": "scalar", "levels": [8, 1]})


# ---- losses ---------------------------------------------------------------------------------------------------------


def test_losses_against_direct_sums() -> None:
    error = torch.randn(2, 3, 16, 16)
    pooled = [error.reshape(2, 3, 16 // k, k, 16 // k, k).mean(dim=(3, 5)).abs().mean() for k in (2, 4)]
    assert losses.multi_scale(error).item() == pytest.approx(sum(x.item() for x in pooled), rel=1e-5)
    x = error.numpy()
    wanted = np.abs(np.diff(x, axis=3)).mean() + np.abs(np.diff(x, axis=2)).mean()
    assert losses.gradient(error).item() == pytest.approx(wanted, rel=1e-5)
    flat = torch.full((1, 3, 8, 8), 0.3)
    flat[0, 1, 4, 4] = -0.5
    found = losses.contrast(flat)[0, 0]
    assert torch.allclose(found[3:6, 3:6], torch.tensor(0.8)) and found.sum().item() == pytest.approx(9 * 0.8, rel=1e-5)


def test_every_weight_of_the_loss_counts() -> None:
    torch.manual_seed(0)
    made, real = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    none = {"l1": 0.0, "l2": 0.0, "multi_scale": 0.0, "gradient": 0.0, "edge": 0.0}
    assert losses.reconstruction(made, real, AutoencoderLossConfig(**none)) == 0
    for name in ("l1", "l2", "multi_scale", "gradient"):
        one = losses.reconstruction(made, real, AutoencoderLossConfig(**(none | {name: 1.0})))
        assert one > 0 and losses.reconstruction(made, real, AutoencoderLossConfig(**(none | {name: 2.0}))) == 2 * one
    plain, weighted = (
        losses.reconstruction(made, real, AutoencoderLossConfig(**(none | {"l1": 1.0, "edge": e}))) for e in (0, 1)
    )
    assert weighted > plain


def test_the_adversarial_term_comes_late_and_balanced() -> None:
    assert [losses.ramp(step, 10, 4) for step in (0, 9, 10, 11, 13, 50)] == [0, 0, 0.25, 0.5, 1, 1]
    weight = torch.randn(5, requires_grad=True)
    a, b = (weight * 3).sum(), (weight * 0.5).sum()
    assert losses.adaptive_weight(a, b, weight, 100.0).item() == pytest.approx(6, rel=1e-3)
    assert losses.adaptive_weight(a, b, weight, 2.0).item() == 2
    assert losses.hinge_discriminator(torch.zeros(4), torch.zeros(4)) == 2
    assert losses.hinge_discriminator(torch.full((4,), 2.0), torch.full((4,), -2.0)) == 0
    for halvings, patches in ((2, 6), (3, 2)):
        critic = PatchDiscriminator(PatchDiscriminatorConfig(width=8, halvings=halvings))
        assert critic(torch.randn(2, 3, 32, 32)).shape == (2, patches, patches)


# ---- health ---------------------------------------------------------------------------------------------------------


def test_use_and_perplexity_are_counted() -> None:
    use = CodeUse(2, 8, torch.device("cpu"))
    use.add(torch.tensor([[[0, 0], [1, 0]], [[2, 0], [3, 0]]]))
    used, perplexity = use.read()
    assert used == pytest.approx((4 / 8 + 1 / 8) / 2) and perplexity == pytest.approx((4 + 1) / 2)
    use.add(torch.zeros(1, 4, 2, dtype=torch.int64))  # a reading starts a new count
    assert use.read() == (pytest.approx(1 / 8), pytest.approx(1.0))


def test_low_use_warns_once_and_collapse_stops_with_advice() -> None:
    use = CodeUse(1, 100, torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use.judge(0.9, 60.0, step=100)
    with pytest.warns(UserWarning, match="only 40% of the codes are in use at step 200"):
        use.judge(0.4, 20.0, step=200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use.judge(0.4, 20.0, step=300)
        for step in range(PATIENCE - 1):
            use.judge(0.01, 1.0, step)
        use.judge(0.4, 20.0, step=400)  # it recovered: the count starts anew
        for step in range(PATIENCE - 1):
            use.judge(0.5, 1.2, step)
        with pytest.raises(InputError, match="collapsed: at step 900 .* set quantizer.kind=scalar"):
            use.judge(0.01, 1.0, step=900)
