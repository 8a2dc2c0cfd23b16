"""Logistic regression and its scores against scikit-learn."""

import numpy as np
import pytest

from t2i.align.classifier import correct_rows, fit_logistic, macro_f1

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(4, 5))
CLASS = RNG.integers(0, 4, 300)
X = (CENTRES[CLASS] + 0.8 * RNG.normal(size=(300, 5))).astype(np.float32)
ONE = np.eye(4, dtype=bool)[CLASS]


@pytest.mark.parametrize("c", [0.1, 1.0, 10.0])
def test_one_class_a_row_is_scikit_learns_multinomial(c):
    linear = pytest.importorskip("sklearn.linear_model")
    theirs = linear.LogisticRegression(C=c, tol=1e-10, max_iter=5000).fit(X.astype(np.float64), CLASS)
    ours = fit_logistic(X, ONE, True, c)
    np.testing.assert_allclose(ours.weight_CD, theirs.coef_, atol=1e-4)
    assert (ours.predict(X).argmax(axis=1) == theirs.predict(X)).all()


def test_several_classes_a_row_are_one_scikit_learn_regression_each():
    linear = pytest.importorskip("sklearn.linear_model")
    has = np.stack([CENTRES[CLASS] @ w + 0.5 * RNG.normal(size=300) > 0 for w in RNG.normal(size=(3, 5))], axis=1)
    ours = fit_logistic(X, has, False, 1.0)
    for k in range(3):
        theirs = linear.LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(X.astype(np.float64), has[:, k])
        np.testing.assert_allclose(ours.weight_CD[k], theirs.coef_[0], atol=1e-4)
        assert (ours.predict(X)[:, k] == theirs.predict(X)).all()


def test_scores_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    for truth, guess in (
        (ONE, np.eye(4, dtype=bool)[RNG.integers(0, 4, 300)]),
        (RNG.random((50, 6)) < 0.3, RNG.random((50, 6)) < 0.3),
        (np.zeros((5, 2), bool), np.zeros((5, 2), bool)),
    ):
        assert correct_rows(guess, truth).mean() == pytest.approx(metrics.accuracy_score(truth, guess))
        f1 = metrics.f1_score(truth, guess, average="macro", zero_division=0.0)
        assert macro_f1(guess, truth) == pytest.approx(f1)
