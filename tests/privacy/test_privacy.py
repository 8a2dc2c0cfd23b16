"""Attacks on privacy: values by hand, a model that has memorised its images, and one that has not."""

from pathlib import Path

import numpy as np
import pytest

from builders.tiny_cvae_run import make_cvae_run
from builders.tiny_prior_run import make_prior_run
from builders.tiny_run import make_run
from t2i.cli import app
from t2i.metrics.score import read_scores
from t2i.privacy.attacks import by_distance, flat, matched
from t2i.privacy.membership import auc, found_at, membership

DATA = {"address": "shapes-1", "resolution": 16, "limit": 200}


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a run in raster order, whose likelihood takes one pass instead of eight."""
    return make_prior_run(tmp_path_factory.mktemp("privacy") / "run", order="raster", data=DATA)


def test_area_and_true_finds_by_hand() -> None:
    members, others = np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.0])
    assert auc(members, others) == pytest.approx((2 + 1.5 + 1) / 6)
    assert auc(-members, -others) == pytest.approx(1 - 4.5 / 6)
    assert found_at(members, others) == pytest.approx(1 / 3)  # 1 % of two is none: above all others
    ladder = np.arange(1000.0)
    assert found_at(ladder, ladder) == 0.01 and found_at(ladder + 1000, ladder) == 1


def test_the_area_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    members, others = rng.normal(0.5, 1, 300).round(1), rng.normal(0, 1, 200).round(1)
    labels = np.r_[np.ones(300), np.zeros(200)]
    assert auc(members, others) == pytest.approx(roc_auc_score(labels, np.r_[members, others]))
    found = membership(members, others)
    assert found.auc_interval.low < found.auc < found.auc_interval.high
    again = membership(members, others)
    assert again == found and membership(members, others, seed=1).auc_interval != found.auc_interval


def test_intervals_cover_chance_on_equal_sides_and_not_on_others() -> None:
    rng = np.random.default_rng(1)
    same, other, far = (rng.normal(shift, 1, 400) for shift in (0.0, 0.0, 1.0))
    blind = membership(same, other)
    assert blind.auc_interval.low < 0.5 < blind.auc_interval.high and blind.found_interval.low < 0.02
    assert membership(far, other).auc_interval.low > 0.6
    with pytest.raises(ValueError, match="finite"):
        membership(np.array([np.nan]), other)


def test_distance_is_the_root_mean_square_of_pixels() -> None:
    black, grey = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 51, np.uint8)
    assert by_distance(grey, np.concatenate([black, grey]))[0] == pytest.approx(0, abs=1e-6)
    assert by_distance(grey, black)[0] == pytest.approx(-0.2)
    assert flat(grey).shape == (1, 48)


def test_both_sides_have_captions_of_the_same_lengths() -> None:
    pairs = matched(["a b", "a", "a b c", "a b"], ["x", "x y", "x", "x y z v"], 9)
    assert pairs == [(0, 1), (1, 0)]
    many = matched(["a b"] * 50, ["x y"] * 60, 20)
    assert len(many) == 20 == len({a for a, _ in many}) == len({b for _, b in many})


@pytest.mark.parametrize(
    ("family", "attacks"), [("prior", {"likelihood", "distance"}), ("cgan", {"distance"}), ("cvae", {"distance"})]
)
def test_every_family_is_attacked(
    family: str,
    attacks: set[str],
    prior: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make = {"prior": lambda *_, **__: prior, "cgan": make_run, "cvae": make_cvae_run}[family]
    run = make(tmp_path / "run", data=DATA)
    more = ["--html", "page.html", "--out", "scores.json"]
    assert app.main(["eval", "privacy", str(run), "-n", "12", *more]) == 0
    scores = read_scores(Path("scores.json"))
    told = {score.protocol.metric for score in scores}
    assert told >= {f"membership-{attack}-{what}" for attack in attacks for what in ("auc", "found")}
    assert all(0 <= score.value <= 1 and score.interval is not None for score in scores)
    assert {score.protocol.n_fake for score in scores} == {score.protocol.n_real for score in scores} == {12}
    out, err = capsys.readouterr()
    assert (
        "membership-distance-auc@12" in out
        and "only 12 images of each side: at a false positive rate of 1 % none may be wrong" in err
    )
    assert Path("page.html").read_text().count("<article") == 6


def test_a_critic_tells_members_of_a_run_that_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logit is that of training: unconditional plus the product with the caption."""
    import torch

    from t2i.cgan.architectures import build
    from t2i.cgan.config import Config
    from t2i.cgan.critic import critic_logits
    from t2i.images import to_model
    from t2i.text import load_encoder
    from t2i.trained import TrainedRun, open_run

    run = open_run(make_run(tmp_path / "run"))
    text = load_encoder(tmp_path / "run" / "text")
    config = Config.kept(run.manifest["config"])
    torch.manual_seed(0)
    _, critic = build(config, text.pooled_dim, text.token_dim)
    for parameter in critic.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    with_critic = TrainedRun(
        run.folder, run.checkpoint, run.manifest, {**run.state, "discriminator": critic.state_dict()}
    )
    side = config.data.resolution
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)
    captions = ["a red circle", "a blue star", "a red circle"]
    found = critic_logits(with_critic, text, pixels, captions)
    with torch.no_grad():
        plain, features, projected = critic(to_model(pixels), text.encode(captions).pooled_BP)
    np.testing.assert_allclose(found, (plain + (features * projected).sum(1)).numpy(), rtol=1e-5)
    assert len(set(found.round(6).tolist())) == 3


def test_images_known_by_heart_are_found(prior: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that samples its training images is revealed by distance."""
    from t2i.pipeline import TextToImagePipeline
    from t2i.privacy import scores as room
    from t2i.privacy.options import PrivacyOptions
    from t2i.privacy.scores import attack

    pipe = TextToImagePipeline.from_pretrained(prior)
    sides = room.open_sides(pipe, 40)
    monkeypatch.setattr(
        room, "sample_for", lambda pipe, captions, seed, tick: np.concatenate([sides.member_pixels] * 2)
    )
    found = attack(PrivacyOptions(run="run", n=40), pipe, lambda *_: None)
    told = {score.protocol.metric: score for score in found.scores}
    assert told["membership-distance-auc"].value > 0.95 and told["membership-distance-found"].value > 0.9
    assert told["membership-likelihood-auc"].value == pytest.approx(0.5, abs=0.2)  # random weights know nothing


@pytest.mark.parametrize(("arguments", "told"), [(["nowhere"], "does not exist"), (["prior", "-n", "3"], "-n")])
def test_a_mistake_is_one_line(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["eval", "privacy", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_epsilon_of_a_private_run_is_told(
    prior: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from t2i.pipeline import TextToImagePipeline

    pipe = TextToImagePipeline.from_pretrained(prior)
    pipe.manifest["privacy"] = {"epsilon": 3.21, "delta": 1e-5}
    monkeypatch.setattr(TextToImagePipeline, "from_pretrained", lambda *_: pipe)
    monkeypatch.setattr(
        "t2i.privacy.scores.sample_for", lambda pipe, captions, *_: np.zeros((len(captions), 16, 16, 3), np.uint8)
    )
    assert app.main(["eval", "privacy", "run", "-n", "10"]) == 0
    assert "epsilon 3.21 at delta 1e-05" in capsys.readouterr().out
