"""Every entry of `METRICS` on one small scoring, the metrics on features against direct computation, and their names."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2i.errors import InputError
from t2i.metrics import METRICS, Inputs, Metric, find_metric
from t2i.metrics.faithfulness import ASPECTS
from t2i.metrics.frechet import Gaussian, distance, fid_infinity
from t2i.metrics.inception_score import inception_score
from t2i.metrics.kernel import cmmd
from t2i.metrics.neighbours import PRDC, memorised, nearest, prdc, radii
from t2i.metrics.retrieval import binding, r_precision, retrieval
from t2i.metrics.score import FID_INCEPTION_DIGEST, ScoreProtocol, score_name
from t2i.scoring.computation import compute
from t2i.scoring.images.extraction import Evidence
from t2i.scoring.options import ScoreOptions
from t2i.scoring.selection import choose_metrics

N, M, D = 220, 140, 12
BASE = ScoreProtocol(
    "", 0, None, None, M, N, "shapes-2", "cd" * 32, "val", None, None, 32, 0, run="11", checkpoint="22"
)


def features(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((n, D)) + shift).astype(np.float32)


@pytest.fixture(scope="module")
def given() -> Inputs:
    """Returns a scoring with everything that any metric needs, in which images resemble their captions."""
    rng = np.random.default_rng(0)
    prompts = [f"a thing of kind {k // 2}" for k in range(N)]
    text = features(N // 2, 1).repeat(2, axis=0)
    fake = text + 0.7 * features(N, 2)
    outcomes = {aspect: rng.random(N) < 0.9 for aspect in ASPECTS}
    outcomes["strict"] = np.logical_and.reduce(list(outcomes.values()))
    return Inputs(
        fake=fake,
        real=features(M, 3),
        captions=prompts,
        meanings=prompts,
        text=text,
        swapped=np.where(np.arange(N)[:, None] % 4 < 2, np.nan, text + features(N, 7)).astype(np.float32),
        partners=text + 0.3 * features(N, 4),
        classes=features(30, 5),
        train=features(200, 6),
        outcomes={"fake": outcomes, "shuffled": outcomes},
        groups={"unseen-pair": np.arange(N) < 9},
        judged={whose: {"": rng.random(N), "count": rng.random(N)} for whose in ("fake", "real", "shuffled")},
    )


# ---------------------------------------------------------------- every metric


@pytest.mark.filterwarnings("ignore:FID of")
@pytest.mark.parametrize("name", METRICS)
def test_every_metric_measures_finitely_under_its_name(name: str, given: Inputs) -> None:
    metric = find_metric(name)
    found = metric.measure(given)
    names = [score.protocol.metric for score in found]
    own = [key for key in names if key == name or key.startswith(f"{name}-")]
    assert own and all(any(key == n or key.startswith(f"{n}-") for n in METRICS) for key in names)
    assert len(set(names)) == len(names)
    for score in found:
        assert np.isfinite(score.value) and all(np.isfinite(list(score.bounds.values())))
        if score.interval is not None:
            assert score.interval[0] <= score.value <= score.interval[1] and score.interval_method
        if score.samples is not None:
            assert np.nanmean(score.samples) == pytest.approx(score.value)
    assert metric.measure(given) == found
    if metric.check is not None:
        metric.check(5000, 5000, D, False)
        with pytest.raises(InputError) as error:
            metric.check(3, 3, D, False)
        assert "\n" not in str(error.value)


def test_what_is_not_asked_for_is_not_needed(given: Inputs) -> None:
    """A metric that declares that it needs features alone must work with them."""
    bare = Inputs(given.fake, given.real, force=True)
    for name in METRICS:
        metric = find_metric(name)
        if metric.reads == "features" and not metric.needs:
            assert metric.measure(bare) == metric.measure(replace(given, force=True))


# ---------------------------------------------------------------- against direct computation


def test_precision_recall_density_coverage_by_hand() -> None:
    fake, real = features(60, 7), features(80, 8, shift=0.8)

    def ball(x: np.ndarray, k: int) -> np.ndarray:
        return np.sort(np.linalg.norm(x[:, None].astype(float) - x[None], axis=2), axis=1)[:, k]

    across = np.linalg.norm(fake[:, None].astype(float) - real[None], axis=2)
    expected = PRDC(
        precision=(across <= ball(real, 3)).any(axis=1).mean(),
        recall=(across <= ball(fake, 3)[:, None]).any(axis=0).mean(),
        density=(across <= ball(real, 5)).sum() / (5 * 60),
        coverage=(across <= ball(real, 5)).any(axis=0).mean(),
    )
    found = prdc(fake, real)
    assert vars(found) == pytest.approx(vars(expected))
    assert 0 < found.precision < 1 and 0 < found.recall < 1 and 0 < found.coverage < 1
    same = prdc(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)


def test_a_collapsed_generator_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    real = features(80, 8)
    collapsed = np.repeat(real[:1], 60, axis=0)
    whole = prdc(collapsed, real)
    assert whole.precision == 1 and whole.recall == 1 / 80 and whole.coverage < 0.2
    monkeypatch.setattr("t2i.metrics.neighbours.BLOCK", 7)
    assert prdc(collapsed, real) == whole
    assert prdc(features(60, 7), real) == prdc(features(60, 7), real)
    # Edges are inside: repeated pictures, where a strict comparison gives 0.
    equal = np.ones((20, D), np.float32) / 3
    assert prdc(equal, equal) == PRDC(1, 1, 4, 1)
    with pytest.raises(InputError, match="5 images cannot have 5 neighbours each; score at least 6"):
        prdc(real, real[:5])


def test_prdc_agrees_with_torch_fidelity() -> None:
    peer = pytest.importorskip("torch_fidelity.metric_prc")
    import torch

    fake, real = features(90, 9), features(70, 10, shift=0.5)
    precision, recall = peer.calculate_precision_recall_full(torch.from_numpy(fake), torch.from_numpy(real))
    found = prdc(fake, real)
    assert (found.precision, found.recall) == pytest.approx((precision, recall), abs=1e-6)


def test_nearest_neighbours_and_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i.metrics.neighbours.BLOCK", 16)
    train, real = features(150, 11), features(100, 12)
    index, far = nearest(real, train)
    every = np.linalg.norm(real[:, None].astype(float) - train[None], axis=2)
    np.testing.assert_array_equal(index, every.argmin(axis=1))
    np.testing.assert_allclose(far, every.min(axis=1), atol=1e-6)
    np.testing.assert_allclose(np.sqrt(radii(train, (1,))[0]), nearest_other(train), atol=1e-6)
    copies = train[:40] + np.float32(1e-4)
    assert np.array_equal(nearest(copies, train)[0], np.arange(40))
    fresh = features(100, 13)
    flags, ratio = memorised(np.concatenate([copies, fresh]), real, train)
    assert flags[:40].all() and flags[40:].mean() < 0.2
    assert memorised(fresh, real, train)[1] == pytest.approx(1, abs=0.2)
    assert memorised(copies, real, train)[1] < 1e-3 < ratio
    with pytest.raises(InputError, match="score held-out ones"):
        memorised(fresh, train[:50], train)


def nearest_other(x: np.ndarray) -> np.ndarray:
    return np.sort(np.linalg.norm(x[:, None].astype(float) - x[None], axis=2), axis=1)[:, 1]


@pytest.mark.parametrize("block", [7, 1024])
def test_cmmd_against_the_full_matrices(block: int) -> None:
    x, y = features(30, 14), features(25, 15, shift=1)
    unit = [z / np.linalg.norm(z.astype(float), axis=1, keepdims=True) for z in (x, y)]

    def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([np.exp(-np.square(p - q).sum() / 200) for p, q in product(a, b)]))

    expected = mean_kernel(unit[0], unit[0]) + mean_kernel(unit[1], unit[1]) - 2 * mean_kernel(*unit)
    assert cmmd(x, y, block=block) == pytest.approx(1000 * expected, rel=1e-9)
    assert cmmd(x, x, block=block) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="row 0 are zero"):
        cmmd(np.zeros((3, 2)), np.ones((3, 2)))


def test_inception_score_knows_its_bounds_and_its_peer() -> None:
    one_class = np.zeros((40, 7)) + np.eye(7)[0] * 50
    all_classes = np.eye(7)[np.arange(70) % 7] * 50
    assert inception_score(one_class)[0] == pytest.approx(1)
    assert inception_score(all_classes) == pytest.approx((7, 0))
    peer = pytest.importorskip("torch_fidelity.metric_isc")
    import torch

    logits = np.random.default_rng(16).standard_normal((64, 20)).astype(np.float32) * 3
    theirs = peer.isc_features_to_metric(torch.from_numpy(logits), splits=10, shuffle=False)
    expected = theirs["inception_score_mean"], theirs["inception_score_std"]
    assert inception_score(logits) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="9 images"):
        inception_score(logits[:9])


def test_fid_infinity_takes_the_bias_away() -> None:
    spread = np.arange(1, 21) ** -0.5
    real = Gaussian(np.zeros(20), np.diag(1.1 * spread), 10**6)
    true = np.square(0.1 * spread).sum()
    rng = np.random.default_rng(17)
    samples = [rng.standard_normal((400, 20)) * spread for _ in range(8)]
    plain = np.mean([distance(Gaussian.of(x), real) for x in samples])
    found = np.mean([fid_infinity(x, real, seed=k) for k, x in enumerate(samples)])
    assert plain > 1.8 * true
    assert abs(found - true) < 0.35 * (plain - true)
    assert fid_infinity(samples[0], real, seed=1) != fid_infinity(samples[0], real, seed=2)
    with pytest.raises(ValueError, match="at least 8 images, got 7"):
        fid_infinity(samples[0][:7], real)


def test_r_precision_is_the_mean_over_all_draws() -> None:
    """Compares with 200 draws of mismatched captions, as others compute it; never one of the same meaning."""
    rng = np.random.default_rng(18)
    meanings = rng.integers(0, 30, 50)
    own = rng.standard_normal((30, 8))[meanings]
    images, captions = own + rng.standard_normal((50, 8)), own
    expected = r_precision(images, captions, list(meanings), mismatched=9)
    unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (images, captions)]
    similarity = unit[0] @ unit[1].T
    _, first = np.unique(meanings, return_index=True)
    wins = []
    for _ in range(200):
        for k in range(50):
            others = [i for i in first if meanings[i] != meanings[k]]
            wins.append(similarity[k, k] > similarity[k, rng.choice(others, 9, replace=False)].max())
    assert expected.value == pytest.approx(np.mean(wins), abs=0.02)
    assert r_precision(own, own, list(meanings), mismatched=9).value == 1
    assert r_precision(np.ones((50, 8)), np.ones((50, 8)), list(meanings), mismatched=9).value == 0
    with pytest.raises(InputError, match=f"captions of other meanings, got {len(first) - 1};"):
        r_precision(images, captions, list(meanings))


def test_retrieval_as_a_metric_is_that_of_distinct_captions(given: Inputs) -> None:
    assert given.text is not None
    found = {score.protocol.metric: score for score in find_metric("retrieval").measure(given)}
    direct = retrieval(given.fake, given.text[::2], np.arange(N) // 2, np.arange(N // 2))
    assert found["retrieval-text-to-image-r5"].value == direct.text_to_image.recall[5]
    assert found["retrieval-image-to-text-median-rank"].value == direct.image_to_text.median_rank
    assert found["retrieval-image-to-text-r1"].bounds["real"] > found["retrieval-image-to-text-r1"].value


def test_binding_counts_captions_with_an_exchange_and_ties_as_wrong(given: Inputs) -> None:
    assert given.text is not None and given.swapped is not None
    (score,) = find_metric("binding").measure(given)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (given.fake, given.text, given.swapped)]
    has = np.arange(N) % 4 >= 2
    expected = ((unit[0] * unit[1]).sum(axis=1) > (unit[0] * unit[2]).sum(axis=1))[has].mean()
    assert score.value == pytest.approx(expected) and score.bounds["chance"] == 0.5
    assert score.bounds["real"] > score.value > 0.8
    assert binding(given.fake, given.text, given.text).value == 0  # a bag of words
    assert binding(given.text, given.text, given.fake).value == 1


# ---------------------------------------------------------------- which, and their names


class Fake:
    """An extractor with names alone."""

    dim, resize = D, "clean"

    def __init__(self, name: str, digest: str, classes: Any = None, clip_name: str | None = None) -> None:
        self.name, self._digest, self.classes, self.clip_name = name, digest, classes, clip_name

    def digest(self) -> str:
        return self._digest

    def features(self, images_BHWC: Any) -> Any:
        raise AssertionError("nothing is seen here")


INCEPTION = Fake("inception", FID_INCEPTION_DIGEST, np.ones((3, D)))
SHAPES = Fake("shapes", "ab" * 32, clip_name="aligned")
DINO = Fake("dinov2-vit-l-14-aa", "aa" * 32)
LARGE = replace(BASE, n_real=5000, n_fake=5000)


def names(metrics: list[Metric]) -> list[str]:
    return [metric.title for metric in metrics]


def test_the_usual_metrics_and_those_by_name() -> None:
    usual = choose_metrics(LARGE, [SHAPES, INCEPTION], {}, ScoreOptions(target=""))
    assert names(usual) == [
        "faithfulness", "fid-shapes", "kid-shapes", "clip-aligned", "binding-aligned", "fid", "kid", "diversity-pixels",
    ]  # fmt: skip
    asked = ("precision", "inception-score", "fid-infinity", "diversity", "fid-shapes", "precision-shapes")
    chosen = choose_metrics(LARGE, [SHAPES, INCEPTION], {}, ScoreOptions(target="", metrics=asked))
    assert names(chosen) == [
        "precision-shapes", "precision-inception", "inception-score", "fid-infinity",
        "diversity-shapes", "diversity-inception", "diversity-pixels", "fid-shapes",
    ]  # fmt: skip
    every = names(choose_metrics(LARGE, [SHAPES, INCEPTION, DINO], {}, ScoreOptions(target="", metrics=("all",))))
    assert {"fd-dinov2-vit-l-14-aa", "fd-infinity-dinov2-vit-l-14-aa", "kid-dinov2-vit-l-14-aa"} <= set(every)
    assert {"r-precision-aligned", "retrieval-aligned", "memorisation-shapes", "cmmd-inception"} <= set(every)
    assert "inception-score-shapes" not in every and "clip-inception" not in every
    assert len(every) == len(set(every))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("fid", "metric 'fid' needs Inception weights; name it with --inception auto, or --inception FILE; choose"),
        ("inception-score", "needs Inception weights"),
        ("memorisation", "metric memorisation is not available here: a folder"),
        ("memorisation-shapes", "is not available here: a folder"),
        ("fd-dinov2", "needs a DINOv2 folder; name it with --dinov2 DIR"),
        ("clip-vit-b-32", "needs a CLIP folder; name it with --clip DIR"),
        ("presision", "did you mean precision?"),
    ],
)
def test_a_refusal_says_why(asked: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        choose_metrics(BASE, [SHAPES], {("train", ""): "a folder"}, ScoreOptions(target="", metrics=(asked,)))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_only_usual_metrics_are_missed() -> None:
    lacking = {("captions", ""): "no captions", ("rendered", ""): "x", ("train", ""): "y"}
    with pytest.warns(UserWarning) as record:
        found = choose_metrics(BASE, [SHAPES], lacking, ScoreOptions(target=""))
    told = [str(warning.message) for warning in record]
    assert "skipped clip-aligned: no captions" in told and not any("memorisation" in line for line in told)
    assert names(found) == ["fid-shapes", "kid-shapes"]


def test_bare_names_are_for_the_published_inception() -> None:
    known = replace(BASE, metric="fid-infinity", extractor="inception", extractor_digest=FID_INCEPTION_DIGEST)
    assert score_name(known) == "fid-infinity@220"
    assert score_name(replace(known, metric="precision")) == "precision-inception@220"
    assert score_name(replace(known, extractor_digest="ab" * 32)) == "fid-infinity-inception@220"
    dino = replace(BASE, metric="fid", extractor="dinov2-vit-l-14-aa", extractor_digest="aa" * 32)
    assert score_name(dino) == "fd-dinov2-vit-l-14-aa@220"
    assert score_name(replace(dino, metric="kid")) == "kid-dinov2-vit-l-14-aa@220"


def test_scores_are_those_of_the_metrics_that_were_asked_for() -> None:
    """Metrics that share their work are measured together, and only the requested ones are reported."""
    chosen = choose_metrics(BASE, [SHAPES], {}, ScoreOptions(target="", metrics=("recall", "coverage")))
    sides = [Evidence(features={"ab" * 32: features(n, seed)}) for n, seed in ((N, 1), (M, 2))]
    scores = compute(chosen, *sides, ScoreOptions(target=""))
    assert [score.name for score in scores] == ["recall-shapes@220", "coverage-shapes@220"]
    assert scores[0].value == prdc(features(N, 1), features(M, 2)).recall
    assert (scores[0].protocol.n_real, scores[0].protocol.metric_version) == (M, 1)


# ---------------------------------------------------------------- DINOv2


def save_dinov2(folder: Path) -> Path:
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    return folder


def test_dinov2_features_are_the_class_token_of_squashed_pictures(tmp_path: Path) -> None:
    import torch
    from transformers import Dinov2Model

    from t2i.extractors import open_extractor

    folder = save_dinov2(tmp_path / "dino")
    images = np.random.default_rng(19).integers(0, 256, (3, 224, 224, 3)).astype(np.uint8)
    extractor = open_extractor(f"dinov2:{folder}")
    found = extractor.features(images)
    assert found.shape == (3, 32) and extractor.dim == 32 and extractor.resize == "clean to 224x224"
    assert extractor.name == f"dinov2-vit-32-14-{extractor.digest()[:8]}"
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normal = (pixels - mean[:, None, None]) / deviation[:, None, None]
    with torch.inference_mode():
        expected = Dinov2Model.from_pretrained(folder).eval()(normal).pooler_output
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(extractor.features(images[1:2]), found[1:2])
    tall = images[:, :100]
    assert np.abs(open_extractor(f"dinov2:{folder}", "torch").features(tall) - extractor.features(tall)).max() > 1e-4


@pytest.mark.parametrize(
    ("address", "message"),
    [("dinov2:{}/none", "none does not exist"), ("dinov2:{}", "has no config.json"), ("clip:{}", "has no config.json")],
)
def test_wrong_folders_are_refused_in_one_line(address: str, message: str, tmp_path: Path) -> None:
    from t2i.extractors import open_extractor

    with pytest.raises(InputError, match=message) as error:
        open_extractor(address.format(tmp_path))
    assert "\n" not in str(error.value)


def test_models_of_the_hub_are_read_from_where_they_were_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    from t2i.extractors import open_extractor

    folder = save_dinov2(tmp_path / "snapshot")
    asked: list[str] = []

    def download(repo_id: str, allow_patterns: list[str]) -> str:
        asked.append(repo_id)
        if repo_id != "facebook/dinov2-tiny":
            raise OSError("no network")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert open_extractor("dinov2:facebook/dinov2-tiny").digest() == open_extractor(f"dinov2:{folder}").digest()
    with pytest.raises(
        InputError, match="facebook/none: no such folder, and no such model could be downloaded from the hub"
    ):
        open_extractor("dinov2:facebook/none")
    assert asked == ["facebook/dinov2-tiny", "facebook/none"]
