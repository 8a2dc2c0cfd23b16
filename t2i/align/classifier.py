"""Logistic regression on features and its scores; multinomial if each row has one class, otherwise one classifier per class.

Axes: N rows, D features, C classes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from t2i.metrics import Features

SOLVER = {"maxiter": 2000, "maxfun": 4000, "maxcor": 20, "gtol": 1e-9, "ftol": 1e-15}


class LogisticRegression(NamedTuple):
    """Weights of a fitted classifier."""

    weight_CD: NDArray[np.float64]
    bias_C: NDArray[np.float64]
    is_single: bool

    def predict(self, features_ND: Features) -> NDArray[np.bool_]:
        """Returns the classes of each row [N, C]: the most likely one, or all with a probability above 1/2."""
        logits_NC = np.asarray(features_ND, dtype=np.float64) @ self.weight_CD.T + self.bias_C
        if not self.is_single:
            return logits_NC > 0
        return np.eye(len(self.bias_C), dtype=bool)[logits_NC.argmax(axis=1)]


def fit_logistic(features_ND: Features, has_NC: NDArray[np.bool_], is_single: bool, c: float) -> LogisticRegression:
    """Minimises the cross-entropy, summed over rows, plus |weights|^2 / (2 c), as scikit-learn does.

    Uses L-BFGS in float64; biases are not regularised.

    Args:
        is_single: each row has exactly one class.
    """
    x_NE = np.hstack([features_ND, np.ones((len(features_ND), 1))])  # float64; E = D + 1, the bias
    target_NC = has_NC.astype(np.float64)

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Returns the mean loss and its gradient."""
        weight_CE = flat.reshape(-1, x_NE.shape[1])
        logits_NC = x_NE @ weight_CE.T
        if is_single:
            total_N1 = np.asarray(logsumexp(logits_NC, axis=1, keepdims=True))
            fit = total_N1.sum() - (logits_NC * target_NC).sum()
            error_NC = np.exp(logits_NC - total_N1) - target_NC
        else:
            fit = (np.logaddexp(0, logits_NC) - logits_NC * target_NC).sum()
            error_NC = expit(logits_NC) - target_NC
        penalised_CE = np.hstack([weight_CE[:, :-1], np.zeros((len(weight_CE), 1))])
        loss = fit + np.square(penalised_CE).sum() / (2 * c)
        gradient_CE = error_NC.T @ x_NE + penalised_CE / c
        return loss / len(x_NE), gradient_CE.ravel() / len(x_NE)

    start = np.zeros(has_NC.shape[1] * x_NE.shape[1])
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=SOLVER)
    weight_CE = found.x.reshape(-1, x_NE.shape[1])
    return LogisticRegression(weight_CE[:, :-1], weight_CE[:, -1], is_single)


def correct_rows(predicted_NC: NDArray[np.bool_], true_NC: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns [N], True for rows with all classes correct; its mean is the accuracy, or exact-match ratio."""
    return (predicted_NC == true_NC).all(axis=1)


def macro_f1(predicted_NC: NDArray[np.bool_], true_NC: NDArray[np.bool_]) -> float:
    """Returns the mean over classes of 2 TP / (2 TP + FP + FN), 0 for classes without any of these, as scikit-learn does."""
    both = (predicted_NC & true_NC).sum(axis=0)
    total = predicted_NC.sum(axis=0) + true_NC.sum(axis=0)
    return float((2 * both / np.maximum(total, 1)).mean())
