"""Logistic regression on features and its scores; multinomial if each row has one class, otherwise one classifier per class.

Axes: N rows, D features, C classes.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from t2i.metrics import Features

ITERATIONS, TOLERANCE = 500, 1e-9


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
    x_ND, target = torch.from_numpy(np.asarray(features_ND, dtype=np.float64)), torch.from_numpy(has_NC)
    weight = torch.zeros(has_NC.shape[1], x_ND.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(has_NC.shape[1], dtype=torch.float64, requires_grad=True)
    target_N, target_NC = target.int().argmax(dim=1), target.double()
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=ITERATIONS,
        history_size=20,
        tolerance_grad=TOLERANCE,
        tolerance_change=TOLERANCE**2,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        logits_NC = x_ND @ weight.T + bias
        if is_single:
            fit = F.cross_entropy(logits_NC, target_N)
        else:
            fit = F.binary_cross_entropy_with_logits(logits_NC, target_NC, reduction="none").sum() / len(x_ND)
        total = fit + weight.square().sum() / (2 * c * len(x_ND))
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(loss)
    return LogisticRegression(weight.detach().numpy(), bias.detach().numpy(), is_single)


def correct_rows(predicted_NC: NDArray[np.bool_], true_NC: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns [N], True for rows with all classes correct; its mean is the accuracy, or exact-match ratio."""
    return (predicted_NC == true_NC).all(axis=1)


def macro_f1(predicted_NC: NDArray[np.bool_], true_NC: NDArray[np.bool_]) -> float:
    """Returns the mean over classes of 2 TP / (2 TP + FP + FN), 0 for classes without any of these, as scikit-learn does."""
    both = (predicted_NC & true_NC).sum(axis=0)
    total = predicted_NC.sum(axis=0) + true_NC.sum(axis=0)
    return float((2 * both / np.maximum(total, 1)).mean())
