"""Accuracy and macro F1 of predicted classes."""

import numpy as np
from numpy.typing import NDArray


def right_rows(predicted_NC: NDArray[np.bool_], true_NC: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[N]: all classes of the row are right, whose mean is the accuracy (of several classes: the exact-match ratio)."""
    return (predicted_NC == true_NC).all(axis=1)


def macro_f1(predicted_NC: NDArray[np.bool_], true_NC: NDArray[np.bool_]) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN); a class that neither has counts 0, as scikit-learn has it."""
    both = (predicted_NC & true_NC).sum(axis=0)
    total = predicted_NC.sum(axis=0) + true_NC.sum(axis=0)
    return float((2 * both / np.maximum(total, 1)).mean())
