"""Aligners in closed form against scikit-learn, scipy and algebra."""

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes

from t2i.align.config import Config
from t2i.align.linear import (
    LinearMaps,
    Pairing,
    cca,
    check_pairs,
    discriminant_axes,
    fit_linear,
    fitted_scale,
    principal_axes,
    procrustes,
    reciprocal_rank,
    ridge,
    rotation,
    subspace,
)
from t2i.errors import InputError

RNG = np.random.default_rng(0)


def of(kind: str) -> Config:
    return Config.model_validate({"aligner": kind})


def pairs_of(count: int = 300, text: int = 7, image: int = 9, noise: float = 0.3) -> Pairing:
    """Returns two views of five hidden variables."""
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(count, 5))
    text_NP = hidden @ rng.normal(size=(5, text)) + noise * rng.normal(size=(count, text)) + 3
    image_NQ = hidden @ rng.normal(size=(5, image)) + noise * rng.normal(size=(count, image)) - 2
    return Pairing(text_NP, image_NQ, np.arange(count))


def test_the_rotation_is_scipys():
    a, b = RNG.normal(size=(50, 6)), RNG.normal(size=(50, 6))
    np.testing.assert_allclose(rotation(a, b), orthogonal_procrustes(a, b)[0], atol=1e-12)


def test_procrustes_undoes_a_rotation_of_axes_with_unlike_variances():
    x = RNG.normal(size=(200, 4)) * [4.0, 3.0, 2.0, 1.0]
    turned = x @ np.linalg.qr(RNG.normal(size=(4, 4)))[0] + 5
    maps = procrustes(Pairing(x, turned, np.arange(200)), 4)
    np.testing.assert_allclose(maps.text(x), maps.image(turned), atol=1e-9)


def test_canonical_correlations_are_scikit_learns():
    cross = pytest.importorskip("sklearn.cross_decomposition")
    pairs = pairs_of()
    theirs = cross.CCA(5, scale=False, max_iter=10_000, tol=1e-12).fit(pairs.text_NP, pairs.image_NQ)
    a, b = theirs.transform(pairs.text_NP, pairs.image_NQ)
    maps = cca(pairs, 5, power=0.0)(1e-12)
    for ours, sklearns in ((maps.text(pairs.text_NP), a), (maps.image(pairs.image_NQ), b)):
        matches = np.abs([np.corrcoef(ours[:, k], sklearns[:, k])[0, 1] for k in range(5)])
        np.testing.assert_allclose(matches, 1.0, atol=1e-4)


def test_directions_weigh_their_correlation_to_a_power():
    pairs = pairs_of()
    plain, squared = (cca(pairs, 5, power)(1e-9) for power in (0.0, 2.0))
    one, other = plain.text(pairs.text_NP), plain.image(pairs.image_NQ)
    correlations = (one * other).mean(axis=0)
    np.testing.assert_allclose(squared.text(pairs.text_NP), one * correlations**2, atol=1e-6)
    assert (np.diff(correlations) < 0).all() and correlations[0] < 1


def test_ridge_is_the_normal_equation_and_its_axes_keep_cosines():
    pairs, regularisation = pairs_of(), 0.1
    maps = ridge(pairs, 9)(regularisation)
    text_NP, image_NQ = (x - x.mean(axis=0) for x in (pairs.text_NP, pairs.image_NQ))
    covariance = text_NP.T @ text_NP / 300
    added = regularisation * np.trace(covariance) / 7 * np.eye(7)
    predicted = text_NP @ np.linalg.solve(covariance + added, text_NP.T @ image_NQ / 300)
    ours = maps.text(pairs.text_NP) @ maps.image(pairs.image_NQ).T
    np.testing.assert_allclose(ours, predicted @ image_NQ.T, atol=1e-9)


def test_a_subspace_of_all_axes_is_ridge_without_a_penalty():
    pairs = pairs_of()
    maps, whole = subspace(pairs, 9)(1e-12), ridge(pairs, 9)(1e-12)
    np.testing.assert_allclose(
        maps.text(pairs.text_NP) @ maps.image(pairs.image_NQ).T,
        whole.text(pairs.text_NP) @ whole.image(pairs.image_NQ).T,
        atol=1e-7,
    )


def test_fishers_axes_are_scikit_learns():
    lda = pytest.importorskip("sklearn.discriminant_analysis")
    classes = np.repeat(np.arange(3), 60)
    x = RNG.normal(size=(180, 6)) * [5, 1, 1, 1, 1, 1] + 3 * RNG.normal(size=(3, 6))[classes]
    x -= x.mean(axis=0)
    theirs = lda.LinearDiscriminantAnalysis(solver="eigen", n_components=2).fit(x, classes).transform(x)
    ours = x @ discriminant_axes(x, classes, 5)
    assert ours.shape == (180, 2)
    spanned = ours @ np.linalg.lstsq(ours, theirs, rcond=None)[0]
    np.testing.assert_allclose(spanned, theirs - theirs.mean(axis=0), atol=0.02 * theirs.std())


@pytest.mark.parametrize("kind", ["procrustes", "ridge", "cca", "subspace"])
def test_pairs_that_were_not_fitted_find_each_other_and_shuffled_ones_do_not(kind):
    config = Config.model_validate({"aligner": kind, "embedding": 8})
    pairs = pairs_of(600, noise=0.1)
    fitted, held_out = pairs.part(np.arange(400)), pairs.part(np.arange(400, 600))
    maps, regularisation = fit_linear(config, fitted)
    found = reciprocal_rank(maps, held_out)
    shuffled = Pairing(fitted.text_NP, np.roll(fitted.image_NQ, 1, axis=0), fitted.wording_N)
    assert (regularisation is None) == (kind == "procrustes")
    assert found > {"procrustes": 0.05, "subspace": 0.3}.get(kind, 0.5)
    assert reciprocal_rank(fit_linear(config, shuffled)[0], held_out) < found / 2


def test_the_unpaired_product_of_bases_is_at_chance():
    """A = Vt' Vs pairs principal axes by their order, whatever they mean."""
    pairs = pairs_of(600, noise=0.1)
    text, text_NP, image, image_NQ = pairs.centred()
    maps = LinearMaps(text, principal_axes(text_NP, 5), image, principal_axes(image_NQ, 5))
    assert reciprocal_rank(maps, pairs) < 0.1 < 0.5 < reciprocal_rank(fit_linear(of("cca"), pairs)[0], pairs)


def test_more_noise_chooses_more_regularisation():
    few, many = pairs_of(60, 40, 40, noise=3.0), pairs_of(2000, noise=0.01)
    config = of("cca")
    (_, strong), (_, weak) = fit_linear(config, few), fit_linear(config, many)
    assert strong is not None and weak is not None and strong > weak


def test_the_scale_has_the_likeliest_pairs():
    pairs = pairs_of(200)
    maps, _ = fit_linear(of("cca"), pairs)
    assert 1 < fitted_scale(maps, pairs) < 100


def test_what_is_no_pairing_is_told_in_one_line():
    with pytest.raises(InputError, match="3 captions and 4 images are not pairs"):
        check_pairs(np.zeros((3, 2)), np.zeros((4, 2)))
    with pytest.raises(InputError, match="an aligner needs at least 2 pairs, got 1"):
        check_pairs(np.zeros((1, 2)), np.zeros((1, 2)))
    with pytest.raises(InputError, match="not finite"):
        check_pairs(np.full((3, 2), np.nan), np.zeros((3, 2)))
    for kind in ("procrustes", "cca", "ridge"):
        with pytest.raises(InputError, match="features of one side are the same"):
            fit_linear(of(kind), Pairing(np.ones((20, 3)), RNG.normal(size=(20, 3)), np.arange(20)))
