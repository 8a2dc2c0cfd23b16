"""Linear maps of frozen text and image features into one space, in closed form and float64.

Axes: N pairs, P text features, Q image features, K a basis, E the shared space.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.align.config import CCAAligner, Config, ProcrustesAligner, RidgeAligner, SubspaceAligner
from t2i.errors import InputError
from t2i.metrics.retrieval import ranks
from t2i.metrics.statistics import unit_rows
from t2i.names import counted

Array = NDArray[np.float64]
REGULARISATIONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
MOST_TRIED = 1000  # pairs that a regularisation or a temperature is evaluated on
FOLDS = 5  # of cross-validation
SCALES = np.geomspace(1.0, 100.0, 41)


class LinearMaps(NamedTuple):
    """Maps of both sides into the shared space: (features - mean) @ map."""

    text_mean_P: Array
    text_PE: Array
    image_mean_Q: Array
    image_QE: Array

    def text(self, text_NP: Array) -> Array:
        return (text_NP - self.text_mean_P) @ self.text_PE

    def image(self, image_NQ: Array) -> Array:
        return (image_NQ - self.image_mean_Q) @ self.image_QE


class Pairing(NamedTuple):
    """Features of N pairs, a number for each that equal captions share, and optionally its class."""

    text_NP: Array
    image_NQ: Array
    wording_N: NDArray[np.int64]
    class_N: NDArray[np.int64] | None = None

    def part(self, rows: NDArray) -> "Pairing":
        class_N = None if self.class_N is None else np.unique(self.class_N[rows], return_inverse=True)[1]
        return Pairing(self.text_NP[rows], self.image_NQ[rows], self.wording_N[rows], class_N)

    def centred(self) -> tuple[Array, Array, Array, Array]:
        """Returns text mean, centred text_NP, image mean, centred image_NQ."""
        text, image = self.text_NP.mean(axis=0), self.image_NQ.mean(axis=0)
        return text, self.text_NP - text, image, self.image_NQ - image


def check_pairs(text_NP: Array, image_NQ: Array, least: int = 2) -> None:
    """Raises InputError unless there are as many captions as images, at least `least` of them, and all features are finite."""
    if len(text_NP) != len(image_NQ):
        raise InputError(
            f"{counted(len(text_NP), 'caption')} and {counted(len(image_NQ), 'image')} are not pairs; add or remove some"
        )
    if len(text_NP) < least:
        raise InputError(
            f"an aligner needs at least {least} pairs, got {len(text_NP)}; check data.limit and aligner.anchors"
        )
    if not (np.isfinite(text_NP).all() and np.isfinite(image_NQ).all()):
        raise InputError("features are not finite; check the weights of text.path and image.path")


# ---- bases ---------------------------------------------------------------------------------------------------------


def principal_axes(x_ND: Array, count: int) -> Array:
    """Returns the `count` axes of largest variance of centred rows, [D, count], or fewer if the rank is lower."""
    _, values, axes_KD = np.linalg.svd(x_ND, full_matrices=False)
    rank = int((values > values[0] * max(x_ND.shape) * np.finfo(float).eps).sum()) if values[0] > 0 else 0
    if rank == 0:
        raise InputError("all features of one side are the same, so there is nothing to align; check the data")
    return axes_KD[: min(count, rank)].T


def discriminant_axes(x_ND: Array, class_N: NDArray[np.int64], count: int) -> Array:
    """Returns Fisher's discriminant axes (1936) of centred rows, [D, count], or fewer if the rank is lower."""
    if len(x_ND) < x_ND.shape[1]:  # classes differ only along axes with variance
        basis_DR = principal_axes(x_ND, len(x_ND))
        return basis_DR @ discriminant_axes(x_ND @ basis_DR, class_N, count)
    classes = int(class_N.max()) + 1
    sizes = np.bincount(class_N)
    means_CD = np.stack([x_ND[class_N == k].mean(axis=0) for k in range(classes)])
    within_ND = x_ND - means_CD[class_N]
    values, axes = np.linalg.eigh(within_ND.T @ within_ND / len(x_ND))
    whitening = axes / np.sqrt(np.maximum(values, 0.0) + REGULARISATIONS[1] * values.mean())
    between_CD = (means_CD @ whitening) * np.sqrt(sizes / len(x_ND))[:, None]
    return whitening @ principal_axes(between_CD, min(count, classes - 1))


class Spectrum(NamedTuple):
    """Principal axes of centred features with a positive variance, the variances, and the mean variance of all D features."""

    axes_DR: Array
    variances_R: Array
    mean: float

    @classmethod
    def of(cls, x_ND: Array) -> "Spectrum":
        """Decomposes the covariance of centred rows; raises InputError if they do not vary."""
        count, dims = x_ND.shape
        if count < dims:
            _, values, axes = np.linalg.svd(x_ND, full_matrices=False)
            variances, axes_DR = values**2 / count, axes.T
        else:
            variances, axes_DR = np.linalg.eigh(x_ND.T @ x_ND / count)
        if variances.max() <= 0:
            raise InputError("all features of one side are the same, so there is nothing to align; check the data")
        kept = variances > variances.max() * max(count, dims) * np.finfo(float).eps
        return cls(axes_DR[:, kept], variances[kept], float(variances[kept].sum() / dims))

    def divided(self, regularisation: float, power: float) -> Array:
        """Returns the axes divided by powers of their regularised variances, [D, R]."""
        return self.axes_DR / (self.variances_R + regularisation * self.mean) ** power


# ---- aligners; those with a regularisation return a function of it ---------------------------------------------------

Solver = Callable[[float], LinearMaps]


def rotation(text_NK: Array, image_NK: Array) -> Array:
    """Returns the orthogonal K x K matrix that minimises the distance of rotated text to image (Schoenemann, 1966)."""
    left, _, right = np.linalg.svd(text_NK.T @ image_NK)
    return left @ right


def procrustes(pairs: Pairing, dims: int) -> LinearMaps:
    """Returns maps onto principal axes; those of the text are rotated onto those of the image."""
    text, text_NP, image, image_NQ = pairs.centred()
    text_PK, image_QK = principal_axes(text_NP, dims), principal_axes(image_NQ, dims)
    dims = min(text_PK.shape[1], image_QK.shape[1])
    text_PK, image_QK = text_PK[:, :dims], image_QK[:, :dims]
    return LinearMaps(text, text_PK @ rotation(text_NP @ text_PK, image_NQ @ image_QK), image, image_QK)


def ridge(pairs: Pairing, dims: int) -> Solver:
    """Returns maps that predict image features from text features, in the principal axes of the prediction."""
    text, text_NP, image, image_NQ = pairs.centred()
    spectrum = Spectrum.of(text_NP)
    cross_RQ = spectrum.axes_DR.T @ text_NP.T @ image_NQ / len(text_NP)

    def solve(regularisation: float) -> LinearMaps:
        predict_PQ = spectrum.divided(regularisation, 1.0) @ cross_RQ
        deviations_R1 = np.sqrt(spectrum.variances_R)[:, None]
        # these R rows have the second moments of all N predictions
        axes_QE = principal_axes(deviations_R1 * (spectrum.axes_DR.T @ predict_PQ), dims)
        return LinearMaps(text, predict_PQ @ axes_QE, image, axes_QE)

    return solve


def cca(pairs: Pairing, dims: int, power: float) -> Solver:
    """Returns maps onto the directions of largest correlation, scaled by the correlation to the power of `power`."""
    text, text_NP, image, image_NQ = pairs.centred()
    text_side, image_side = Spectrum.of(text_NP), Spectrum.of(image_NQ)
    cross_RS = (text_NP @ text_side.axes_DR).T @ (image_NQ @ image_side.axes_DR) / len(text_NP)

    def solve(regularisation: float) -> LinearMaps:
        roots = [(side.variances_R + regularisation * side.mean) ** -0.5 for side in (text_side, image_side)]
        left, correlations, right = np.linalg.svd(roots[0][:, None] * cross_RS * roots[1], full_matrices=False)
        weights_E = correlations[:dims].clip(0, 1) ** power
        text_PE = text_side.divided(regularisation, 0.5) @ (left[:, :dims] * weights_E)
        image_QE = image_side.divided(regularisation, 0.5) @ (right[:dims].T * weights_E)
        return LinearMaps(text, text_PE, image, image_QE)

    return solve


def subspace(pairs: Pairing, dims: int) -> Solver:
    """Returns maps onto a basis of each side, and of the text basis onto the image basis by ridge regression.

    The bases are discriminant axes if the pairs have classes, otherwise principal axes.
    """
    text, text_NP, image, image_NQ = pairs.centred()
    classes = pairs.class_N
    text_PK, image_QK = (
        principal_axes(x, dims) if classes is None else discriminant_axes(x, classes, dims) for x in (text_NP, image_NQ)
    )
    text_NK, image_NK = text_NP @ text_PK, image_NQ @ image_QK
    spectrum = Spectrum.of(text_NK)
    cross_RK = spectrum.axes_DR.T @ text_NK.T @ image_NK / len(text_NK)

    def solve(regularisation: float) -> LinearMaps:
        return LinearMaps(text, text_PK @ spectrum.divided(regularisation, 1.0) @ cross_RK, image, image_QK)

    return solve


# ---- the fit -------------------------------------------------------------------------------------------------------


def fit_linear(config: Config, pairs: Pairing) -> tuple[LinearMaps, float | None]:
    """Returns the maps of a config's aligner, and its regularisation if it has one.

    Raises:
        InputError: there are too few pairs, or all features of one side are the same.
    """
    check_pairs(pairs.text_NP, pairs.image_NQ)
    aligner, dims = config.aligner, config.embedding
    if isinstance(aligner, ProcrustesAligner):
        return procrustes(pairs, dims), None
    assert isinstance(aligner, RidgeAligner | CCAAligner | SubspaceAligner)

    def solver(rows: NDArray) -> Solver:
        chosen = pairs.part(rows)
        if isinstance(aligner, CCAAligner):
            return cca(chosen, dims, aligner.power)
        if isinstance(aligner, RidgeAligner):
            return ridge(chosen, dims)
        return subspace(chosen, dims)

    best = aligner.regularisation or choose_regularisation(pairs, solver)
    return solver(np.arange(len(pairs.text_NP)))(best), best


def choose_regularisation(pairs: Pairing, solver: Callable[[NDArray], Solver]) -> float:
    """Returns the regularisation with the best mean reciprocal rank in 5-fold cross-validation (one fold for many pairs)."""
    rows = np.arange(len(pairs.text_NP))
    if len(rows) < 2 * FOLDS:
        return REGULARISATIONS[-1]
    totals = np.zeros(len(REGULARISATIONS))
    for fold in range(FOLDS if len(rows) < MOST_TRIED else 1):
        out = rows % FOLDS == fold
        solve, validation = solver(rows[~out]), pairs.part(rows[out][:MOST_TRIED])
        totals += [reciprocal_rank(solve(one), validation) for one in REGULARISATIONS]
    return REGULARISATIONS[int(totals.argmax())]


def reciprocal_rank(maps: LinearMaps, pairs: Pairing) -> float:
    """Returns the mean reciprocal rank of captions given images and of images given captions, among `pairs`."""
    sides = unit_rows(maps.text(pairs.text_NP)), unit_rows(maps.image(pairs.image_NQ))
    words = pairs.wording_N
    return float(np.mean([(1 / ranks(a, b, words, words)).mean() for a, b in (sides, sides[::-1])]))


def fitted_scale(maps: LinearMaps, pairs: Pairing) -> float:
    """Returns the 1 / temperature with the lowest contrastive loss on up to 1,000 pairs."""
    few = pairs.part(np.arange(min(len(pairs.text_NP), MOST_TRIED)))
    cosines = unit_rows(maps.text(few.text_NP)) @ unit_rows(maps.image(few.image_NQ)).T
    matching = np.diag(cosines)
    losses = [sum(_log_sum(scale * x) for x in (cosines, cosines.T)) / 2 - scale * matching.mean() for scale in SCALES]
    return float(SCALES[int(np.argmin(losses))])


def _log_sum(logits_NN: Array) -> float:
    most = logits_NN.max(axis=1)
    return float((most + np.log(np.exp(logits_NN - most[:, None]).sum(axis=1))).mean())
