"""Scores all images at an address by their nearness to words, for `t2i data filter --near`."""

from collections.abc import Mapping

import numpy as np

from t2i.data import View
from t2i.data.captions import clean_caption
from t2i.data.encoded import EncodedImages
from t2i.data.tools.rewrite import Nearness, open_splits
from t2i.errors import InputError
from t2i.retrieval.collection import ImageCollection, Tick
from t2i.retrieval.exact import BLOCK, cosines
from t2i.retrieval.searching import open_searcher
from t2i.retrieval.store import unit_features


def near_words(
    address: str, words: str, by: str | None, least: float | None, top: int | None, device: str, tick: Tick
) -> tuple[dict[str, EncodedImages], Nearness]:
    """The splits of an address, images without captions among them, and which of their images are near the words.

    Args:
        least: cosine of the images that stay; None: that of the last of the `top` nearest, of all splits together.

    Raises:
        InputError: no words, no such data or encoder, or nothing is as near as that; the message has the highest score.
    """
    text = clean_caption(words)
    if not text:
        raise InputError("--near has no words; say what the images that stay show")
    encoder = open_searcher(by, address, device)
    splits = open_splits(address, View(encoder.side, bare=True))
    collection = ImageCollection(address, list(splits.values()), encoder)
    collection.encode(tick)
    (query_D,) = unit_features(encoder.text_features([text]))
    rows_ND = collection.features_ND
    parts = [cosines(query_D, rows_ND[start : start + BLOCK]) for start in range(0, len(rows_ND), BLOCK)]
    scores: Mapping[str, np.ndarray] = dict(zip(splits, collection.by_row(np.concatenate(parts)), strict=True))
    every = np.sort(np.concatenate(list(scores.values())))  # NaN at the end
    known = every[np.isfinite(every)]
    if least is None:
        assert top is not None
        least = float(known[max(0, len(known) - top)])
    if known[-1] < least:
        raise InputError(
            f"no image of {address} is as near to {text!r} as --min-score {least:g}: the nearest scores {known[-1]:.4f}, the "
            f"median {np.median(known):.4f}; lower it"
        )
    return splits, Nearness(scores, least)
