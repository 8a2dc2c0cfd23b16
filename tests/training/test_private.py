"""Private training: clipping and noise of the accountant, random numbers that are secret and resume, refused leaks."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from builders.tiny_prior_run import save_random_tokenizer
from builders.tiny_text_models import save_clip
from t2i.cli import app
from t2i.config.load import load
from t2i.config.training import NOT_PRIVATE, PrivacyConfig
from t2i.data import View, open_dataset
from t2i.data.record import note, write_record
from t2i.errors import InputError
from t2i.families import config_class
from t2i.pipeline import TextToImagePipeline
from t2i.prior.config import Config
from t2i.prior.step import draw_micro, one_by_one
from t2i.prior.transformer import Grid, Prior
from t2i.text import TextFeatures
from t2i.trained import RECORD
from t2i.training.private.accountant import Accountant
from t2i.training.private.checks import refuse_seen
from t2i.training.private.drawing import KEY, PoissonRows, noise_of
from t2i.training.private.gradients import put_private_gradients


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 4)


def losses_of(module: nn.Linear, inputs: torch.Tensor) -> list[torch.Tensor]:
    return [(module(one) ** 2).sum() for one in inputs]


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None])


def put(
    module: nn.Linear, inputs: torch.Tensor, norm: float, noise: float, expected: float = 8.0, seed: int = 0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    put_private_gradients(list(module.parameters()), losses_of(module, inputs), norm, noise, expected, generator)
    return flat(module)


def test_without_noise_and_limit_it_is_the_gradient_of_the_mean_loss() -> None:
    module, inputs = layer(), torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    found = put(module, inputs, 1e9, 0.0)
    module.zero_grad()
    torch.stack(losses_of(module, inputs)).mean().backward()
    torch.testing.assert_close(found, flat(module), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("norm", [1e-3, 0.5, 10.0])
def test_an_image_changes_the_sum_by_the_limit_at_most(norm: float) -> None:
    module = layer()
    inputs = torch.randn(9, 6, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 9)[:, None]
    whole = put(module, inputs, norm, 0.0, 1.0)
    for left_out in range(9):
        rest = put(module, torch.cat([inputs[:left_out], inputs[left_out + 1 :]]), norm, 0.0, 1.0)
        assert float((whole - rest).double().norm()) <= norm * (1 + 1e-5) + 1e-6 * float(whole.norm())
    single = put(module, inputs[-1:], norm, 0.0, 1.0)
    assert float(single.norm()) == pytest.approx(norm, rel=1e-4) and float(single.norm()) <= norm


def test_a_gradient_that_is_not_finite_adds_nothing() -> None:
    module, inputs = layer(), torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    broken = torch.cat([inputs, torch.full((1, 6), math.nan), torch.full((1, 6), 1e30)])
    torch.testing.assert_close(put(module, broken, 0.5, 0.0), put(module, inputs, 0.5, 0.0))


def test_noise_has_the_deviation_that_the_account_supposes() -> None:
    module = nn.Linear(200, 200)
    found = put(module, torch.empty(0, 200), 0.5, 3.0, 64.0)  # an empty step is noise alone
    assert float(found.std()) == pytest.approx(3.0 * 0.5 / 64, rel=0.02)
    assert abs(float(found.mean())) < 4 * 3.0 * 0.5 / 64 / math.sqrt(len(found))
    assert not torch.equal(found, put(module, torch.empty(0, 200), 0.5, 3.0, 64.0, seed=1))


@pytest.mark.parametrize("order", ["raster", "random"])
def test_images_one_by_one_have_the_loss_of_the_batch(order: Any) -> None:
    torch.manual_seed(0)
    values = {"order": order, "model": {"width": 32, "depth": 2, "heads": 2, "mlp_width": 48, "dropout": 0.0}}
    config = Config.model_validate(values)
    model = Prior(config, Grid(4, 4, 1, 32), 8, 8, 6)
    nn.init.normal_(model.head.weight, std=0.3)
    mask = torch.arange(6) < torch.tensor([[3], [6], [2], [5]])
    text = TextFeatures(torch.randn(4, 6, 8), mask, torch.randn(4, 8))
    micro = draw_micro(config, torch.randint(0, 32, (4, 16)), text, np.arange(4), 3)
    each = torch.stack([model(*one).loss for one in one_by_one(micro)])
    torch.testing.assert_close(each.mean(), model(*micro).loss)
    put_private_gradients(
        list(model.parameters()), (model(*one).loss for one in one_by_one(micro)), 1e9, 0.0, 4, torch.Generator()
    )
    found = flat(model)
    model.zero_grad()
    model(*micro).loss.backward()
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    torch.testing.assert_close(found, torch.cat([one.flatten() for one in own]), rtol=1e-4, atol=1e-6)


# ---- the account ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta", "expected"),
    [
        (1.0, 64 / 5000, 3000, 1e-5, 4.616937694591368),  # 4.22 by the tighter accountant of privacy random variables
        (0.8, 64 / 5000, 3000, 1e-5, 7.61299327221223),
        (2.0, 0.1, 500, 1e-6, 6.678998968928415),
        (1.1, 256 / 60000, 14062, 1e-5, 2.5965558689607486),
        (1.0, 1.0, 10, 1e-5, 19.05359753163139),
    ],
)
def test_epsilon_is_that_of_opacus(noise: float, rate: float, steps: int, delta: float, expected: float) -> None:
    """Compares with values of `RDPAccountant` of Opacus 1.6.0."""
    pytest.importorskip("opacus", reason="the extra t2i[privacy] is not installed")
    account = Accountant(PrivacyConfig(noise_multiplier=noise, delta=delta), rate)
    assert account.epsilon(steps) == pytest.approx(expected, rel=1e-9)
    assert 0 == account.epsilon(0) < account.epsilon(1) < account.epsilon(steps)


def test_a_whole_batch_is_the_gaussian_mechanism() -> None:
    """One step that sees all images: Renyi divergence alpha / (2 sigma^2), converted to epsilon by Balle et al., 2020."""
    pytest.importorskip("opacus", reason="the extra t2i[privacy] is not installed")
    alpha = np.concatenate([1 + np.arange(1, 100) / 10, np.arange(12, 64)])
    by_hand = alpha / (2 * 4.0**2) - (np.log(1e-5) + np.log(alpha)) / (alpha - 1) + np.log((alpha - 1) / alpha)
    account = Accountant(PrivacyConfig(noise_multiplier=4.0, delta=1e-5), 1.0)
    assert account.epsilon(1) == pytest.approx(by_hand.min(), rel=1e-9)


def test_draws_are_independent_of_each_other_and_of_the_step_before() -> None:
    rows = np.arange(1000)
    loader = PoissonRows(rows, 0.05, 7)
    batches = [next(loader).rows for _ in range(200)]
    sizes = np.array([len(batch) for batch in batches])
    assert sizes.mean() == pytest.approx(50, abs=2) and sizes.std() == pytest.approx(math.sqrt(47.5), rel=0.25)
    seen = np.bincount(np.concatenate(batches), minlength=1000)
    assert seen.mean() == pytest.approx(10, abs=0.5) and seen.std() == pytest.approx(math.sqrt(9.5), rel=0.15)
    later = PoissonRows(rows, 0.05, 7, start=150)
    np.testing.assert_array_equal(next(later).rows, batches[150])
    assert not np.array_equal(next(PoissonRows(rows, 0.05, 8)).rows, batches[0])
    first, other = (torch.randn(4, generator=noise_of(7, step, torch.device("cpu"))) for step in (1, 2))
    assert not torch.equal(first, other)


# ---- a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Writes a folder of images, and a tokenizer and a text encoder that have not seen them."""
    from t2i.data.tools.export import export_splits

    root = tmp_path_factory.mktemp("parts")
    view = View(resolution=16, limit=40)
    export_splits({split: open_dataset("shapes-1", split, view) for split in ("train", "val")}, root / "data")
    save_random_tokenizer(root / "tokenizer")
    other = open_dataset("shapes-2", "train", View(resolution=16, limit=8))
    write_record(root / "tokenizer" / RECORD, note(other, other.fingerprint()))
    save_clip(root / "clip", "projected")
    return {"data": root / "data", "tokenizer": root / "tokenizer", "clip": root / "clip"}


def command(parts: dict[str, Path], run: Path, *more: str) -> list[str]:
    settings = (
        "data.resolution=16", f"tokenizer.path={parts['tokenizer']}", "text.encoder=clip", f"text.path={parts['clip']}",
        "model.width=32", "model.depth=1", "model.heads=2", "model.mlp_width=32", "train_batch_size=8", "max_train_steps=4",
        "validation_steps=2", "validation_n=2", "checkpointing_steps=2", "log_steps=1", "best_metric=null", "device=cpu",
        "privacy.noise_multiplier=1.0", "privacy.delta=0.001", *more,
    )  # fmt: skip
    sets = [word for setting in settings for word in ("--set", setting)]
    return ["train", "prior", "--data", str(parts["data"]), "--run-dir", str(run), *sets]


def weights(run: Path, step: int) -> bytes:
    return (run / "checkpoints" / f"step-{step:08d}" / "model.safetensors").read_bytes()


def test_a_run_tells_its_account_and_resumes_bit_for_bit(
    parts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("opacus", reason="the extra t2i[privacy] is not installed")
    assert app.main(command(parts, tmp_path / "run")) == 0
    manifest = json.loads((tmp_path / "run/checkpoints/step-00000004/manifest.json").read_text())
    spent, account = manifest["privacy"], Accountant(PrivacyConfig(delta=1e-3), 8 / 40)
    assert spent["steps"] == 4 and spent["epsilon"] == pytest.approx(account.epsilon(4), abs=1e-4)
    journal = [json.loads(line) for line in (tmp_path / "run/journal.jsonl").read_text().splitlines()]
    told = [line["epsilon"] for line in journal if "epsilon" in line]
    assert told == pytest.approx([account.epsilon(2), account.epsilon(4)], rel=1e-5)
    assert not any("loss" in line for line in journal)
    assert (tmp_path / "run" / KEY).stat().st_mode & 0o77 == 0

    # The same key from the middle on

    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again/checkpoints/step-00000004")
    assert app.main(command(parts, tmp_path / "again")) == 0
    assert weights(tmp_path / "again", 4) == weights(tmp_path / "run", 4)

    # Nothing by which an image could be tried is in a saved model
    TextToImagePipeline.from_pretrained(tmp_path / "run").save_pretrained(tmp_path / "saved")
    files = {path.name for path in (tmp_path / "saved").rglob("*")}
    assert not files & {RECORD, KEY} and "README.md" in files
    index = json.loads((tmp_path / "saved/model_index.json").read_text())
    assert "data" not in index["checkpoint"] and index["checkpoint"]["privacy"]["steps"] == 4
    assert "-differentially private for adding or removing one image" in (tmp_path / "saved/README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["privacy.delta=0.05"], "is not below 1 / 40 images"),
        (["train_batch_size=41"], "a step of 41 images is larger than the data, 40 images; lower train_batch_size"),
        (["text.encoder=bow", "text.path=null"], "text.encoder bow is not covered by the privacy account"),
        (["data.unlabelled=shapes-1"], "data.unlabelled shapes-1 is not covered by the privacy account"),
        (["flip=true"], "flip True is not covered by the privacy account"),
        (["gradient_accumulation_steps=2"], "gradient_accumulation_steps 2 is not covered by the privacy account"),
        (["privacy.noise_multiplier=0"], "privacy.noise_multiplier"),
    ],
)
def test_what_would_void_the_account_is_one_line(
    changes: list[str], told: str, parts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("opacus", reason="the extra t2i[privacy] is not installed")
    assert app.main(command(parts, tmp_path / "run", *changes)) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("family", NOT_PRIVATE)
def test_other_families_say_why_not(family: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"family: {family}\nprivacy: {{noise_multiplier: 1.0}}\n")
    with pytest.raises(InputError, match=f"privacy is not supported for {family}: "):
        load(config_class(family), tmp_path / "config.yaml")  # type: ignore[type-var]


def test_parts_that_have_seen_the_images_are_refused(parts: dict[str, Path], tmp_path: Path) -> None:
    train = open_dataset(str(parts["data"]), "train", View(resolution=16))
    refuse_seen(train, {"tokenizer.path": str(parts["tokenizer"]), "text.path": None})
    (tmp_path / "seen").mkdir()
    write_record(
        tmp_path / "seen" / RECORD, note(open_dataset(str(parts["data"]), "train", View(resolution=16, limit=5)), "0")
    )
    with pytest.raises(InputError, match="was trained on 5 of the 40 images"):
        refuse_seen(train, {"tokenizer.path": str(tmp_path / "seen")})
    with pytest.raises(InputError, match="has no record of its training data"):
        refuse_seen(train, {"text.path": str(parts["clip"])})
    drawn = open_dataset("shapes-1", "train", View(resolution=16, limit=8))
    with pytest.raises(InputError, match="was trained on rendered shapes"):
        refuse_seen(drawn, {"text.path": None})


def test_the_accountant_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(InputError, match=r"pip install 't2i\[privacy\]'"):
        Accountant(PrivacyConfig(), 0.1)
