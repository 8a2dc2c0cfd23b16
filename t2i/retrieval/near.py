"""Scores all images at an address by their similarity to words, for `t2i data filter --near`."""

from collections.abc import Mapping

import numpy as np

from t2i.data import View
from t2i.data.captions import clean_caption
from t2i.data.encoded import EncodedImages
from t2i.data.tools.opening import open_splits
from t2i.data.tools.rewrite import Nearness
from t2i.errors import InputError
from t2i.retrieval.collection import ImageCollection, Tick
from t2i.retrieval.exact import BLOCK, cosines
from t2i.retrieval.searching import open_searcher
from t2i.retrieval.store import unit_features


def near_words(
    address: str, words: str, by: str | None, least: float | None, top: int | None, device: str, tick: Tick
) -> tuple[dict[str, EncodedImages], Nearness]:
    """Returns the splits of an address, with images that have no captions, and the similarity of each image to the words.

    Args:
        least: lowest cosine of the images that are kept; None: the cosine of the last of the `top` nearest images of all splits.

    Raises:
        InputError: there are no words, the data or the encoder cannot be opened, or all images are less similar than `least`;
            the message has the highest score.
    """
    text = clean_caption(words)
    if not text:
        raise InputError("--near has no words; describe the images to keep")
    encoder = open_searcher(by, address, device)
    splits = open_splits(address, View(encoder.side, bare=True))
    collection = ImageCollection(address, list(splits.values()), encoder)
    collection.encode(tick)
    (query_D,) = unit_features(encoder.text_features([text]))
    rows_ND = collection.features_ND
    parts = [cosines(query_D, rows_ND[start : start + BLOCK]) for start in range(0, len(rows_ND), BLOCK)]
    scores: Mapping[str, np.ndarray] = dict(zip(splits, collection.by_row(np.concatenate(parts)), strict=True))
    finite = np.concatenate(list(scores.values()))
    finite = np.sort(finite[np.isfinite(finite)])
    if least is None:
        assert top is not None
        least = float(finite[max(0, len(finite) - top)])
    if finite[-1] < least:
        raise InputError(
            f"no image of {address} scores {least:g} for {text!r}: the highest score is {finite[-1]:.4f}, the median "
            f"{np.median(finite):.4f}; lower --min-score"
        )
    return splits, Nearness(scores, least)
