"""Metrics against closed forms, direct sums and other packages."""

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from t2i.errors import InputError
from t2i.extractors import EXTRACTORS, open_extractor
from t2i.metrics import frechet
from t2i.metrics.clip_score import clip_bounds, clip_score, derangement, refuse_training_encoder
from t2i.metrics.diversity import within_prompt_diversity
from t2i.metrics.faithfulness import ASPECTS, faithfulness
from t2i.metrics.frechet import Gaussian, check_sample_size, distance, frechet_distance, frechet_intervals
from t2i.metrics.intervals import mean_estimate, wilson
from t2i.metrics.kernel import kernel_distance
from t2i.metrics.retrieval import retrieval
from t2i.metrics.score import (
    FID_INCEPTION_DIGEST,
    Score,
    ScoreProtocol,
    differences,
    read_scores,
    score_name,
    write_scores,
)
from t2i.metrics.statistics import GaussianStats

few_pictures = pytest.mark.filterwarnings("ignore:FID of")


# ---------------------------------------------------------------- statistics


def test_shards_of_any_size_add_up_to_one_pass() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((500, 24)) @ rng.standard_normal((24, 24)) + 1e3).astype(np.float32)
    whole = GaussianStats.of(x, shift=x[:32].mean(axis=0))
    for cuts in ([250], [1, 2, 499], [499], list(range(7, 500, 7))):
        shards = [GaussianStats.of(part, shift=whole.shift) for part in np.split(x, cuts)]
        merged = sum(shards[1:], shards[0])
        assert merged.count == 500
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-9)
        np.testing.assert_allclose(merged.covariance, whole.covariance, rtol=1e-9)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(whole.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(whole.covariance, np.cov(exact.T), rtol=1e-9, atol=1e-9)


def test_batch_size_does_not_matter() -> None:
    x = np.random.default_rng(1).standard_normal((100, 9)).astype(np.float32) + 50
    results = []
    for batch in (1, 7, 64, 100):
        stats = GaussianStats(x[:7].mean(axis=0))
        for start in range(0, 100, batch):
            stats.update(x[start : start + batch])
        results.append(stats.covariance)
    for result in results:
        np.testing.assert_allclose(result, results[0], rtol=1e-12, atol=1e-12)


def test_statistics_refuse_what_they_cannot_add() -> None:
    stats = GaussianStats.of(np.eye(3))
    with pytest.raises(ValueError, match="different shifts"):
        _ = stats + GaussianStats.of(np.eye(3), shift=np.zeros(3))
    with pytest.raises(ValueError, match="batch has 4"):
        stats.update(np.eye(4))
    with pytest.raises(ValueError, match="image 1 are not finite"):
        stats.update(np.array([[0.0, 1, 2], [0, np.nan, 0]]))
    with pytest.raises(ValueError, match="at least 2"):
        _ = GaussianStats.of(np.ones((1, 3))).covariance


# ---------------------------------------------------------------- Frechet distance


def exact_sample(rng: np.random.Generator, n: int, mean: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Returns [n, D] rows whose sample mean and N-1 covariance are exactly `mean` and factor @ factor.T."""
    z = rng.standard_normal((n, factor.shape[1]))
    q, _ = np.linalg.qr(z - z.mean(axis=0))
    return np.sqrt(n - 1) * q @ factor.T + mean


@few_pictures
@pytest.mark.parametrize("case", range(50))
def test_closed_form_gaussians(case: int) -> None:
    """x -> A x, A symmetric positive, maps N(m, S) to N(m', A S A): d^2 = |m - m'|^2 + tr((1 - A) S (1 - A))."""
    rng = np.random.default_rng(case)
    dim = int(rng.integers(2, 49))
    full = case % 2 == 0  # odd: rank deficient, fewer pictures than features
    rank = dim if full else int(rng.integers(1, dim))
    n_fake, n_real = (int(n) for n in (rng.integers(dim + 1, 200, 2) if full else rng.integers(rank + 1, dim + 1, 2)))
    factor = rng.standard_normal((dim, rank)) * np.arange(1, rank + 1) ** -rng.uniform(0, 2)
    basis, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    transport = basis * rng.uniform(0.3, 3.0, dim) @ basis.T
    mean_fake, mean_real = rng.standard_normal((2, dim)) * rng.uniform(0, 2)
    fake = exact_sample(rng, n_fake, mean_fake, factor)
    real = exact_sample(rng, n_real, mean_real, transport @ factor)
    expected = np.square(mean_fake - mean_real).sum() + np.square((np.eye(dim) - transport) @ factor).sum()
    assert frechet_distance(fake, Gaussian.of(real), force=True) == pytest.approx(expected, rel=1e-6)
    # Statistics hold the covariance alone, and must give the same by its eigenvectors.
    by_moments = distance(Gaussian.of(GaussianStats.of(fake)), Gaussian.of(GaussianStats.of(real)))
    assert by_moments == pytest.approx(expected, rel=1e-6)


@few_pictures
@pytest.mark.parametrize(("n", "dim"), [(300, 20), (40, 100), (20, 20)])
def test_distance_to_itself_is_zero(n: int, dim: int) -> None:
    x = np.random.default_rng(n).standard_normal((n, dim)) * np.arange(1, dim + 1) ** -1.5 + 3
    reference = Gaussian.of(x)
    assert abs(frechet_distance(x, reference, force=True)) < 1e-12 * reference.trace
    assert abs(frechet_distance(GaussianStats.of(x), reference, force=True)) < 1e-12 * reference.trace


@few_pictures
def test_agrees_with_torchmetrics_and_sqrtm_where_they_are_accurate() -> None:
    from torchmetrics.image.fid import _compute_fid

    rng = np.random.default_rng(3)
    fake = rng.standard_normal((800, 16)) @ rng.standard_normal((16, 16))
    real = rng.standard_normal((900, 16)) @ rng.standard_normal((16, 16)) + 0.3
    ours = frechet_distance(fake, Gaussian.of(real))
    moments = [torch.from_numpy(m) for x in (fake, real) for m in (x.mean(axis=0), np.cov(x.T))]
    assert ours == pytest.approx(float(_compute_fid(*moments)), rel=1e-8)
    root = np.asarray(scipy.linalg.sqrtm(np.cov(fake.T) @ np.cov(real.T)))
    shift = np.square(fake.mean(axis=0) - real.mean(axis=0)).sum()
    assert ours == pytest.approx(shift + np.trace(np.cov(fake.T) + np.cov(real.T) - 2 * root.real), rel=1e-8)


def test_statistics_of_few_pictures_lose_no_digits() -> None:
    """A covariance of rank N - 1 has D - N + 1 eigenvalues of rounding, and roots of 1e-16 add up."""
    rng = np.random.default_rng(14)
    x = rng.standard_normal((30, 200)) * np.arange(1, 201) ** -0.5
    real = Gaussian.of(rng.standard_normal((500, 200)) * np.arange(1, 201) ** -0.5)
    assert distance(Gaussian.of(GaussianStats.of(x)), real) == pytest.approx(distance(Gaussian.of(x), real), rel=1e-12)


@few_pictures
def test_nearly_equal_sets_keep_their_sign() -> None:
    """Eigenvalues of the product would give a negative distance here."""
    rng = np.random.default_rng(4)
    factor = rng.standard_normal((40, 40)) * np.arange(1, 41) ** -3.0
    transport = np.eye(40) * (1 + 1e-4)
    fake, real = exact_sample(rng, 56, np.zeros(40), factor), exact_sample(rng, 56, np.zeros(40), transport @ factor)
    expected = 1e-8 * np.square(factor).sum()
    assert frechet_distance(fake, Gaussian.of(real), force=True) == pytest.approx(expected, rel=1e-4)


def test_sample_size_rules() -> None:
    x = np.random.default_rng(5).standard_normal((50, 30))
    with pytest.raises(InputError, match="at least 60 on each side"):
        frechet_distance(x, Gaussian.of(x))
    with pytest.warns(UserWarning, match="50 generated and 50 real"):
        frechet_distance(x, Gaussian.of(x), force=True)
    with pytest.raises(InputError, match="at least 4,096"):
        check_sample_size(30_000, 2_933, 2048)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_sample_size(10_000, 10_000, 2048)
    with pytest.raises(ValueError, match="has 30"):
        frechet_distance(x[:, :20], Gaussian.of(x))


def test_an_impossible_distance_raises() -> None:
    """A factor and a mean that contradict each other represent any earlier bug; the value is not clipped to 0."""
    good = Gaussian.of(np.random.default_rng(6).standard_normal((50, 4)))

    class Broken(Gaussian):
        @property
        def trace(self) -> float:
            return super().trace * 0.9

    with pytest.raises(ArithmeticError, match="Frechet distance -"):
        distance(Broken(good.mean, good.factor, 50), good)


def test_the_fast_nuclear_norm_is_taken_only_where_it_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    full = rng.standard_normal((300, 200)) * np.logspace(0, -2, 200)
    other = full + 0.1 * rng.standard_normal((300, 200)) * np.logspace(0, -2, 200)
    few = rng.standard_normal((300, 20)) @ rng.standard_normal((20, 200))  # rank 20: its null space is rounding
    calls = []
    svd = torch.linalg.svdvals
    monkeypatch.setattr(torch.linalg, "svdvals", lambda m: calls.append(m) or svd(m))
    for x, y, exact in ((full, other, 0), (few, few[::-1] + 1e-3, 1)):
        sides = Gaussian.of(GaussianStats.of(x)), Gaussian.of(GaussianStats.of(y))
        monkeypatch.setattr(frechet, "LARGE", 10**6)
        expected = distance(*sides)
        monkeypatch.setattr(frechet, "LARGE", 100)
        calls.clear()
        assert distance(*sides) == pytest.approx(expected, abs=1e-8 * (sides[0].trace + sides[1].trace))
        assert len(calls) == exact


def test_frechet_intervals_cover() -> None:
    """95 % intervals of 100 experiments: a percentile bootstrap would cover E[FID_N] in about 20."""
    rng = np.random.default_rng(7)
    dim, n = 12, 200
    spread = np.arange(1, dim + 1) ** -0.5
    real = Gaussian(np.zeros(dim), np.diag(1.2 * spread), 10**6)
    true = np.square(0.2 * spread).sum()
    samples = [rng.standard_normal((n, dim)) * spread for _ in range(100)]
    expected = np.mean([distance(Gaussian.of(x), real) for x in samples])
    assert expected > 1.5 * true  # the bias is what makes this hard
    intervals = [frechet_intervals(x, real, draws=50, seed=i) for i, x in enumerate(samples)]
    assert np.mean([i.expected.low <= expected <= i.expected.high for i in intervals]) >= 0.88
    assert np.mean([i.distance.low <= true <= i.distance.high for i in intervals]) >= 0.88
    again = frechet_intervals(samples[0], real, draws=50, seed=0)
    assert again == intervals[0]


# ---------------------------------------------------------------- KID


@pytest.mark.parametrize("block", [1, 4, 1024])
def test_kid_against_a_direct_double_sum(block: int) -> None:
    rng = np.random.default_rng(8)
    x, y = rng.standard_normal((15, 5)), rng.standard_normal((11, 5)) + 0.5

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 5 + 1) ** 3)

    pairs_x = [k(x[i], x[j]) for i in range(15) for j in range(15) if i != j]
    pairs_y = [k(y[i], y[j]) for i in range(11) for j in range(11) if i != j]
    across = [k(a, b) for a in x for b in y]
    expected = np.mean(pairs_x) + np.mean(pairs_y) - 2 * np.mean(across)
    assert kernel_distance(x, y, block=block) == pytest.approx(expected, rel=1e-12)


def test_kid_agrees_with_torchmetrics_and_is_unbiased() -> None:
    from torchmetrics.image.kid import poly_mmd

    rng = np.random.default_rng(9)
    x, y = rng.standard_normal((60, 8)), rng.standard_normal((60, 8)) * 1.3
    assert kernel_distance(x, y) == pytest.approx(float(poly_mmd(torch.from_numpy(y), torch.from_numpy(x))), rel=1e-10)
    values = [kernel_distance(*rng.standard_normal((2, 20, 8))) for _ in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(300)
    assert min(values) < 0 < max(values)
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(x[:1], y)


# ---------------------------------------------------------------- intervals


@pytest.mark.parametrize("count", [1, 7, 50, 1000])
def test_wilson_against_scipy(count: int) -> None:
    for successes in {0, 1, count // 3, count - 1, count}:
        for confidence in (0.8, 0.95, 0.99):
            ours = wilson(successes, count, confidence)
            theirs = scipy.stats.binomtest(successes, count).proportion_ci(confidence, method="wilson")
            assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    with pytest.raises(ValueError, match="2 successes of 1"):
        wilson(2, 1)


def test_standard_error_is_clustered_by_prompt() -> None:
    rng = np.random.default_rng(10)
    x = rng.standard_normal(40)
    plain = mean_estimate(x)
    assert plain.value == pytest.approx(x.mean())
    assert plain.standard_error == pytest.approx(scipy.stats.sem(x))
    # Groups of one size: the error of the mean of group means. Copies of a picture add nothing.
    prompts = [f"prompt {i // 4}" for i in range(40)]
    assert mean_estimate(x, prompts).standard_error == pytest.approx(scipy.stats.sem(x.reshape(10, 4).mean(axis=1)))
    copies = mean_estimate(np.repeat(x, 5), np.repeat(np.arange(40), 5))
    assert copies.standard_error == pytest.approx(plain.standard_error)
    low, high = plain.interval()
    assert (high - low) / 2 == pytest.approx(1.959964 * plain.standard_error, rel=1e-6)
    assert np.isnan(mean_estimate(x, [0] * 40).standard_error)


# ---------------------------------------------------------------- CLIP score


def test_clip_score_by_hand() -> None:
    images = np.array([[2.0, 0], [0, 3], [1, 1]])
    captions = np.array([[1.0, 0], [0, -1], [5, 0]])
    score = clip_score(images, captions, ["a", "b", "c"])
    assert score.value == pytest.approx(100 * (1 + 0 + 0.5**0.5) / 3)
    assert score.count == 3
    with pytest.raises(ValueError, match="row 1 are zero"):
        clip_score(np.array([[1.0], [0.0]]), np.ones((2, 1)))
    with pytest.raises(ValueError, match="shapes must be equal"):
        clip_score(images, captions[:2])


def test_bounds_enclose_the_score() -> None:
    rng = np.random.default_rng(11)
    captions = rng.standard_normal((64, 16))
    images = captions + rng.standard_normal((64, 16))
    bounds = clip_bounds(images, captions, captions * 2, prompts=range(64), seed=1)
    assert bounds["real"] == pytest.approx(100)
    assert bounds["shuffled"] < clip_score(images, captions).value - 30 < bounds["real"]
    assert bounds == clip_bounds(images, captions, captions * 2, prompts=range(64), seed=1)
    assert bounds != clip_bounds(images, captions, captions * 2, prompts=range(64), seed=2)


@pytest.mark.parametrize("labels", ["ab", "abcdefgh", "aabbcc", "aaabbbbcd", "abab" * 9])
def test_derangement_gives_no_picture_its_own_caption(labels: str) -> None:
    seen = set()
    for seed in range(20):
        permutation = derangement(labels, seed)
        assert sorted(permutation) == list(range(len(labels)))
        assert all(labels[j] != label for label, j in zip(labels, permutation, strict=True))
        seen.add(tuple(permutation))
    assert len(seen) > 1 or labels == "ab"
    with pytest.raises(ValueError, match="3 of 5 images share a caption"):
        derangement("aaabc", 0)


def test_the_training_encoder_is_refused_as_scorer() -> None:
    refuse_training_encoder("clip-aligned", "aa", {"bb": "guidance"})
    with pytest.raises(InputError, match="clip-aligned cannot score this run: it was its guidance"):
        refuse_training_encoder("clip-aligned", "aa", {"aa": "guidance"})


# ---------------------------------------------------------------- a CLIP folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saves a tiny CLIP of random weights with a byte tokenizer, 12 tokens long, like transformers."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**tower, **ends, "vocab_size": len(words), "max_position_embeddings": 12},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    model = CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    path = tmp_path_factory.mktemp("clip")
    model.save_pretrained(path)
    CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=12).save_pretrained(path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(path)
    return path


CAPTIONS = ["a red", "dot", "blue star", "x", "ab cd ef"]


def clip_images() -> np.ndarray:
    return np.random.default_rng(13).integers(0, 256, (5, 40, 52, 3)).astype(np.uint8)


def test_clip_score_against_torchmetrics(clip_folder: Path) -> None:
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPProcessor

    class Unwrapped(CLIPModel):
        """Unwraps the outputs of transformers 5, which torchmetrics 1.9 takes for tensors."""

        def get_image_features(self, *args: object, **kwargs: object) -> torch.Tensor:  # type: ignore[override]
            return super().get_image_features(*args, **kwargs).pooler_output

        def get_text_features(self, *args: object, **kwargs: object) -> torch.Tensor:  # type: ignore[override]
            return super().get_text_features(*args, **kwargs).pooler_output

    extractor = open_extractor(f"clip:{clip_folder}")
    image_processor = AutoImageProcessor.from_pretrained(clip_folder, backend="pil")
    processor = CLIPProcessor(image_processor, AutoTokenizer.from_pretrained(clip_folder))
    tensors = [torch.from_numpy(image).permute(2, 0, 1) for image in clip_images()]
    with torch.inference_mode():
        theirs, _ = _clip_score_update(tensors, CAPTIONS, Unwrapped.from_pretrained(clip_folder).eval(), processor)
    assert theirs.std() > 0.1
    for image, caption, expected in zip(clip_images(), CAPTIONS, theirs.tolist(), strict=True):
        ours = clip_score(extractor.features(image[None]), extractor.text_features([caption]))
        assert ours.value == pytest.approx(max(expected, 0.0), abs=1e-4)


def test_clip_features_do_not_depend_on_the_batch(clip_folder: Path) -> None:
    extractor = open_extractor(f"clip:{clip_folder}")
    images, captions = clip_images(), CAPTIONS * 3
    assert extractor.features(images).shape == (5, extractor.dim) == (5, 16)
    np.testing.assert_array_equal(extractor.features(images)[2:3], extractor.features(images[2:3]))
    np.testing.assert_array_equal(extractor.text_features(captions)[11:13], extractor.text_features(captions[11:13]))
    assert extractor.text_features([]).shape == extractor.features(images[:0]).shape == (0, 16)


def test_long_captions_keep_their_end_token_and_are_counted(clip_folder: Path) -> None:
    from transformers import CLIPModel

    extractor = open_extractor(f"clip:{clip_folder}")
    long = "abcdefghijklmnopqrstuvwxyz"
    with pytest.warns(UserWarning, match="1 of 2 captions is over the 12 tokens .* and was cut") as record:
        features = extractor.text_features([long, "a"])
    assert len(record) == 1
    ids = torch.tensor([[52, *range(10), 53]])  # start, a to j, end
    with torch.inference_mode():
        expected = CLIPModel.from_pretrained(clip_folder).eval().get_text_features(ids).pooler_output
    np.testing.assert_allclose(features[:1], expected.numpy(), atol=1e-6)


def test_clip_folder_is_named_by_its_contents(clip_folder: Path, tmp_path: Path) -> None:
    import shutil

    extractor = open_extractor(f"clip:{clip_folder}")
    assert extractor.name == f"clip-vit-32-8-{extractor.digest()[:8]}"
    assert extractor.resize == "preprocessor_config.json by CLIPImageProcessorPil"
    copy = Path(shutil.copytree(clip_folder, tmp_path / "copy"))
    assert open_extractor(f"clip:{copy}").digest() == extractor.digest()
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.0, 0.0, 0.0]}))
    other = open_extractor(f"clip:{copy}")
    assert other.digest() != extractor.digest()
    assert np.abs(other.features(clip_images()) - extractor.features(clip_images())).max() > 1e-3


def test_broken_clip_folders_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    def copy(name: str) -> Path:
        return Path(shutil.copytree(clip_folder, tmp_path / name))

    (empty := tmp_path / "empty").mkdir()
    other = copy("other")
    (other / "config.json").write_text('{"model_type": "bert"}')
    partial = copy("partial")
    state = load_file(partial / "model.safetensors")
    state.pop("visual_projection.weight")
    save_file(state, partial / "model.safetensors", metadata={"format": "pt"})
    torn = copy("torn")
    (torn / "model.safetensors").write_bytes((clip_folder / "model.safetensors").read_bytes()[:500])
    bare = copy("bare")
    (bare / "model.safetensors").unlink()
    for path, message in (
        (empty, "no config.json"),
        (other, "holds a 'bert' model, not CLIP"),
        (partial, "lacks 1 of the model's tensors .*visual_projection.weight"),
        (torn, "damaged or incomplete"),
        (bare, "has no model.safetensors"),
    ):
        with pytest.raises(InputError, match=message) as error:
            open_extractor(f"clip:{path}")
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    own = open_extractor(f"clip:{clip_folder}", "legacy").resize  # a resize is for networks without preprocessing
    assert own == "preprocessor_config.json by CLIPImageProcessorPil"


# ---------------------------------------------------------------- retrieval


def sorted_recall(similarity: np.ndarray, hits: np.ndarray, k: int) -> float:
    order = np.argsort(-similarity, axis=1)
    return float(np.mean([hits[i, order[i, :k]].any() for i in range(len(similarity))]))


@pytest.mark.parametrize("block", [3, 1024])
def test_recall_against_a_sort_by_hand(block: int) -> None:
    rng = np.random.default_rng(12)
    meanings = rng.integers(0, 25, 40)
    caption_meanings = np.concatenate([np.arange(25)[np.isin(np.arange(25), meanings)], rng.choice(meanings, 30)])
    signal = rng.standard_normal((25, 10))
    images = signal[meanings] + 1.2 * rng.standard_normal((40, 10))
    captions = signal[caption_meanings] + 1.2 * rng.standard_normal((len(caption_meanings), 10))
    result = retrieval(images, captions, list(meanings), list(caption_meanings), block=block)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (captions, images)]
    similarity, hits = unit[0] @ unit[1].T, caption_meanings[:, None] == meanings[None, :]
    for direction, s, h in ((result.text_to_image, similarity, hits), (result.image_to_text, similarity.T, hits.T)):
        for k in (1, 5, 10):
            assert direction.recall[k] == sorted_recall(s, h, k)
        ranks = [1 + int(np.flatnonzero(h[i, np.argsort(-s[i])])[0]) for i in range(len(s))]
        assert direction.median_rank == np.median(ranks)
        assert direction.queries == len(s)
    assert 0.1 < result.text_to_image.recall[1] < 0.95


def test_ties_count_against_the_encoder() -> None:
    collapsed = np.ones((30, 7), dtype=np.float32) / 3
    result = retrieval(collapsed, collapsed, range(30), range(30))
    assert result.text_to_image.recall == {1: 0.0, 5: 0.0, 10: 0.0}
    assert result.image_to_text.median_rank == 30
    perfect = retrieval(np.eye(12), np.eye(12), range(12), range(12))
    assert perfect.text_to_image.recall[1] == perfect.image_to_text.recall[1] == 1.0
    # Pictures of one meaning are hits of each other's captions.
    assert retrieval(np.eye(2)[[1, 0]], np.eye(2), ["same", "same"], ["same", "same"]).text_to_image.recall[1] == 1.0
    with pytest.raises(ValueError, match="query 1 has no item"):
        retrieval(np.eye(2), np.eye(2), ["a", "a"], ["a", "b"])


# ---------------------------------------------------------------- diversity, faithfulness


def test_diversity_within_a_prompt() -> None:
    features = np.array([[0.0, 0], [3, 4], [9, 9], [0, 0], [0, 0], [9, 9]])
    result = within_prompt_diversity(features, ["a", "a", "b", "c", "c", "b"])
    assert result.value == pytest.approx(5 / 3)
    assert result.standard_error == pytest.approx(scipy.stats.sem([5, 0, 0]))
    triangle = np.array([[0.0, 0], [3, 4], [3, 0]])
    assert within_prompt_diversity(triangle, [1, 1, 1]).value == pytest.approx((5 + 3 + 4) / 3)
    with pytest.raises(InputError, match="'b' has one"):
        within_prompt_diversity(features[:3], ["a", "a", "b"])


def test_faithfulness_rates_and_subgroups() -> None:
    shape = np.arange(10) < 8
    colour = np.arange(10) % 2 == 0
    outcomes = {"shape": shape, "colour": colour, "strict": shape & colour}
    unseen = np.arange(10) >= 7
    result = faithfulness(outcomes, {"unseen": unseen, "empty": np.zeros(10, dtype=bool)})
    assert list(result) == ["all", "unseen"]
    assert result["all"]["shape"].value == 0.8
    assert result["all"]["shape"].interval == wilson(8, 10)
    assert (result["unseen"]["strict"].successes, result["unseen"]["strict"].count) == (0, 3)
    assert list(result["all"]) == [aspect for aspect in ASPECTS if aspect in outcomes]
    with pytest.raises(ValueError, match="its colour is wrong"):
        faithfulness({"strict": shape, "colour": colour})
    with pytest.raises(ValueError, match="unknown aspects"):
        faithfulness({"beauty": shape})
    with pytest.raises(ValueError, match="'colour' must be"):
        faithfulness({"shape": shape, "colour": colour[:5]})


# ---------------------------------------------------------------- protocol

PROTOCOL = ScoreProtocol(
    metric="fid",
    metric_version=1,
    extractor="shapes",
    extractor_digest="ab" * 32,
    n_real=1000,
    n_fake=1000,
    data="shapes-2",
    data_digest="cd" * 32,
    split="heldout",
    captions="first, 1 picture each",
    resize="none",
    resolution=32,
    seed=0,
    guidance=1.5,
    run="11",
    checkpoint="22",
)


def test_names_carry_the_extractor_and_n() -> None:
    inception = replace(PROTOCOL, extractor="inception", extractor_digest=FID_INCEPTION_DIGEST, n_fake=30_000)
    names = [
        score_name(p)
        for p in (
            PROTOCOL,
            inception,
            replace(inception, metric="kid"),
            replace(inception, extractor="inception-abababab", extractor_digest="ab" * 32),
            replace(PROTOCOL, extractor="clip-vit-b-32-abababab"),
            replace(PROTOCOL, metric="clip", extractor="clip-vit-b-32-abababab"),
            replace(PROTOCOL, metric="clip", extractor="aligned"),
            replace(PROTOCOL, metric="faithfulness-strict", extractor=None),
        )
    ]
    assert names == [
        "fid-shapes@1000",
        "fid@30000",
        "kid@30000",
        "fid-inception-abababab@30000",
        "fid-clip-vit-b-32-abababab@1000",
        "clip-vit-b-32-abababab@1000",
        "clip-aligned@1000",
        "faithfulness-strict@1000",
    ]
    # Calling another network `inception` does not earn the bare name.
    assert score_name(replace(inception, extractor_digest="ab" * 32)) == "fid-inception@30000"
    with pytest.raises(ValueError, match="without an extractor"):
        score_name(replace(PROTOCOL, extractor=None))


def test_differences_name_the_parts() -> None:
    a = Score(3.0, PROTOCOL)
    assert differences(a, Score(4.0, replace(PROTOCOL, run="33", checkpoint="44"))) == []
    other = replace(PROTOCOL, guidance=None, n_fake=5000, libraries={**PROTOCOL.libraries, "torch": "1.0"})
    assert differences(a, Score(3.0, other)) == [
        "n_fake: 1000 / 5000",
        "guidance: 1.5 / None",
        f"libraries.torch: {PROTOCOL.libraries['torch']} / 1.0",
    ]


def test_score_file_round_trip(tmp_path: Path) -> None:
    kid = Score(0.1, replace(PROTOCOL, metric="kid"))
    scores = [Score(3.25, PROTOCOL, (3.0, 3.5), "bootstrap", {"real": 0.1}), kid]
    path = tmp_path / "scores.json"
    write_scores(path, scores)
    assert read_scores(path) == scores
    assert [entry["name"] for entry in json.loads(path.read_text())["scores"]] == ["fid-shapes@1000", "kid-shapes@1000"]
    with pytest.raises(ValueError, match="JSON compliant"):
        write_scores(path, [Score(float("nan"), PROTOCOL)])
    assert read_scores(path) == scores
    assert os.listdir(tmp_path) == ["scores.json"]
    with pytest.raises(InputError, match="cannot write"):
        write_scores(tmp_path / "nowhere" / "scores.json", scores)


def test_score_files_that_lie_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    write_scores(path, [Score(3.25, PROTOCOL)])
    good = path.read_text()
    for broken, message in (
        (good.replace("fid-shapes@1000", "fid@1000"), "the score 'fid@1000' should be named 'fid-shapes@1000'"),
        (good.replace('"schema": 1', '"schema": 9'), "schema 9"),
        (good.replace('"truncation"', '"trunk"'), "not a score file"),
        (good[:100], "not a score file"),
        ("[]", "not a score file"),
    ):
        path.write_text(broken)
        with pytest.raises(InputError, match=message):
            read_scores(path)
    with pytest.raises(InputError, match="cannot read"):
        read_scores(tmp_path / "none.json")


def test_unknown_extractor() -> None:
    assert {"inception", "clip"} <= set(EXTRACTORS)
    with pytest.raises(InputError, match="extractor 'vgg:x' is unknown"):
        open_extractor("vgg:x")
