"""Retrieval of images by captions and of captions by images, R-precision, and binding of attributes to objects.

Captions of equal meaning are hits for each other's images. Items as similar as the hit rank before it, so an encoder that
maps everything to one point scores 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from t2i.errors import InputError
from t2i.metrics import Inputs, Metric
from t2i.metrics.intervals import Estimate, Labels, group_index, mean_estimate
from t2i.metrics.score import Score
from t2i.metrics.statistics import Array, unit_rows

# The last digits of a cosine differ between columns of a matrix product.
TIE = 1e-12
BINDING_TIE = 1e-6  # the same for float32 features


@dataclass(frozen=True)
class Recall:
    """One direction of retrieval."""

    recall: dict[int, float]  # K -> share of queries with a hit among the first K, in [0, 1]
    median_rank: float  # median rank of the first hit, from 1
    queries: int
    ranks: NDArray[np.int64] = field(compare=False, repr=False)  # [queries]


@dataclass(frozen=True)
class Retrieval:
    text_to_image: Recall
    image_to_text: Recall


def retrieval(
    images: NDArray[np.floating],
    captions: NDArray[np.floating],
    image_groups: Labels,
    caption_groups: Labels,
    *,
    ks: Sequence[int] = (1, 5, 10),
    block: int = 1024,
) -> Retrieval:
    """Computes Recall@K and median rank by cosine similarity.

    Args:
        images: [N, D] image features.
        captions: [M, D] text features of the same encoder.
        image_groups: [N] a label of each image: its id or its meaning.
        caption_groups: [M] a label of each caption; it is a hit for images with the same label.
        block: queries compared at once; affects memory, not the value.

    Raises:
        ValueError: shapes do not fit, a feature is zero, or a query has no hit.
    """
    x, y = unit_rows(images), unit_rows(captions)
    if x.shape[1] != y.shape[1] or len(x) != len(image_groups) or len(y) != len(caption_groups):
        groups = f"{len(image_groups)} and {len(caption_groups)} group labels"
        raise ValueError(f"images {x.shape} and captions {y.shape} with {groups}")
    labels = group_index([*image_groups, *caption_groups])
    image_labels, caption_labels = labels[: len(x)], labels[len(x) :]
    return Retrieval(
        text_to_image=_recall(ranks(y, x, caption_labels, image_labels, block), ks),
        image_to_text=_recall(ranks(x, y, image_labels, caption_labels, block), ks),
    )


def binding(
    images: NDArray[np.floating],
    captions: NDArray[np.floating],
    swapped: NDArray[np.floating],
    prompts: Labels | None = None,
) -> Estimate:
    """Computes the share of images nearer to their caption than to the caption with two attributes swapped, by cosine.

    Recall does not measure which attribute belongs to which object: a bag of words reaches a recall of .94, but ties here, which
    counts as wrong. Chance is .5.

    Args:
        images, captions, swapped: [N, D] features of the same encoder, row by row.
        prompts: [N] labels of the prompts; the standard error is clustered by them.
    """
    x, y, z = unit_rows(images), unit_rows(captions), unit_rows(swapped)
    if not x.shape == y.shape == z.shape:
        raise ValueError(f"features of images {x.shape}, captions {y.shape}, swapped {z.shape}: shapes must be equal")
    return mean_estimate(((x * y).sum(axis=1) > (x * z).sum(axis=1) + BINDING_TIE).astype(float), prompts)


def ranks(
    queries: Array, items: Array, query_labels: NDArray, item_labels: NDArray, block: int = 1024
) -> NDArray[np.int64]:
    """Returns the rank [Q] of the first item with the query's label, from 1; among equally similar items hits rank last.

    Raises:
        ValueError: no item has the label of a query.
    """
    out = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), block):
        similarity = queries[start : start + block] @ items.T
        hits = query_labels[start : start + block, None] == item_labels[None, :]
        if not hits.any(axis=1).all():
            row = start + int(np.flatnonzero(~hits.any(axis=1))[0])
            raise ValueError(f"query {row} has no item with its label")
        best = np.where(hits, similarity, -np.inf).max(axis=1, keepdims=True)
        out[start : start + block] = 1 + ((similarity >= best - TIE) & ~hits).sum(axis=1)
    return out


def _recall(rank: NDArray[np.int64], ks: Sequence[int]) -> Recall:
    return Recall({k: float((rank <= k).mean()) for k in ks}, float(np.median(rank)), len(rank), rank)


def _measure(given: Inputs) -> list[Score]:
    assert given.text is not None
    fake = _flat(given.fake, given.text, given.meanings)
    real = {} if given.partners is None else _flat(given.partners, given.text, given.meanings)
    return [given.score(name, value, bounds={"real": real[name]} if real else {}) for name, value in fake.items()]


def _flat(images: NDArray[np.floating], text: NDArray[np.floating], meanings: Labels) -> dict[str, float]:
    """Returns the scores of both directions by name, with the first caption of each meaning as query or item."""
    labels = group_index(meanings)
    groups, first = np.unique(labels, return_index=True)
    result = retrieval(images, text[first], labels, groups)
    flat = {}
    for direction, recall in (("text-to-image", result.text_to_image), ("image-to-text", result.image_to_text)):
        flat |= {f"retrieval-{direction}-r{k}": share for k, share in recall.recall.items()}
        flat[f"retrieval-{direction}-median-rank"] = recall.median_rank
    return flat


RETRIEVAL = Metric(1, _measure, reads="text", needs=("captions",))


MISMATCHED = 99


_BLOCK = 1024


def r_precision(
    images: NDArray[np.floating], captions: NDArray[np.floating], meanings: Labels, mismatched: int = MISMATCHED
) -> Estimate:
    """Computes the expected R-precision in [0, 1], by cosine similarity; in a tie the mismatched caption wins.

    Args:
        images: [N, D] image features.
        captions: [N, D] text features of the same encoder; row i is the caption of image i.
        meanings: [N] labels, equal for captions of the same meaning; only the first of these is a mismatched caption.

    Raises:
        InputError: an image has fewer than `mismatched` captions of another meaning.
    """
    x, y = unit_rows(images), unit_rows(captions)
    if x.shape != y.shape or len(x) != len(meanings):
        raise ValueError(f"features of images {x.shape}, of captions {y.shape}, {len(meanings)} meanings")
    labels, first = np.unique(group_index(meanings), return_index=True)
    others = len(labels) - 1
    if others < mismatched:
        raise InputError(
            f"R-precision needs {mismatched} captions of other meanings, got {others}; score more captions"
        )
    index, candidates = group_index(meanings), y[first]
    beaten = np.empty(len(x), np.int64)
    for i in range(0, len(x), _BLOCK):
        rows = slice(i, i + _BLOCK)
        own = (x[rows] * y[rows]).sum(axis=1, keepdims=True)
        nearer = x[rows] @ candidates.T >= own - TIE
        beaten[rows] = (nearer & (labels != index[rows, None])).sum(axis=1)
    return mean_estimate(hypergeom.pmf(0, others, beaten, mismatched), meanings)


def _measure_r_precision(given: Inputs) -> list[Score]:
    assert given.text is not None
    bounds = {"chance": 1 / (MISMATCHED + 1)}
    if given.partners is not None:
        bounds["real"] = r_precision(given.partners, given.text, given.meanings).value
    estimate = r_precision(given.fake, given.text, given.meanings)
    return [given.score("r-precision", estimate.value, bounds=bounds, **estimate.described())]


R_PRECISION = Metric(1, _measure_r_precision, reads="text", needs=("captions",), least_meanings=MISMATCHED + 1)


def _measure_binding(given: Inputs) -> list[Score]:
    assert given.text is not None and given.swapped is not None
    rows = np.flatnonzero(np.isfinite(given.swapped).all(axis=1))
    prompts = [given.captions[row] for row in rows.tolist()]
    estimate = binding(given.fake[rows], given.text[rows], given.swapped[rows], prompts)
    bounds = {"chance": 0.5}
    if given.partners is not None:
        bounds["real"] = binding(given.partners[rows], given.text[rows], given.swapped[rows], prompts).value
    interval = estimate.described_interval("normal, clustered by prompt")
    return [given.score("binding", estimate.value, bounds=bounds, **interval)]


BINDING = Metric(1, _measure_binding, reads="text", needs=("captions", "exchanged"), usual=True)
