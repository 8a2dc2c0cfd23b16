"""Scores of an image-text encoder on captioned images: Recall@K both ways, median ranks, and `binding`."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.data import Dataset, View, open_dataset
from t2i.data.shapes.captions import meaning
from t2i.data.swaps import exchanged
from t2i.extractors import ImageTextExtractor, address_of, open_image_text
from t2i.metrics import Features
from t2i.metrics.intervals import bootstrap_interval, wilson
from t2i.metrics.retrieval import Recall, binding, retrieval
from t2i.metrics.score import Score, ScoreProtocol
from t2i.names import counted
from t2i.retrieval.options import RetrievalOptions
from t2i.scoring.images.collection import Images, Tick, dataset_images
from t2i.scoring.images.extraction import Pass, extract
from t2i.scoring.leaks import refuse_leaks

VERSION = 1
BOOTSTRAP = "bootstrap of images"


class Queries(NamedTuple):
    """Captions to find, and labels that say which images they belong to."""

    captions: list[str]  # M
    groups: list[str]  # M
    of: list[int]  # M, the image of each
    image_groups: list[str]  # N
    how: str


def score_retrieval(options: RetrievalOptions, device: str, tick: Tick) -> list[Score]:
    """Recall@1, 5, 10 and the median rank, from text to images and back, and `binding`.

    Of data with one caption an image, captions of equal meaning are hits of each other's images; of data with several, all
    are queries, and the hits of an image are its own.

    Raises:
        InputError: no such data or encoder, too few images, or images that the encoder was trained on.
    """
    encoder = open_image_text(options.by, device)
    images = dataset_images(options.data, options.split, options.n, View(encoder.side))
    dataset = open_dataset(options.data, options.split, View(encoder.side, limit=options.n))
    dataset = (
        dataset
        if set(images.ids) <= set(dataset.ids)
        else open_dataset(options.data, options.split, View(encoder.side))
    )
    kind, _, path = address_of(options.by).partition(":")
    leak = refuse_leaks(Path(path), images, images, options.allow_leak) if kind == "align" else None
    features_ND = np.asarray(extract(images, "images", [encoder], Pass(tick)).features[encoder.digest()])
    asked = _asked(dataset, images)
    base = ScoreProtocol(
        metric_version=VERSION,
        extractor=encoder.clip_name,
        extractor_digest=encoder.digest(),
        n_fake=len(images),
        data=images.name,
        data_digest=images.digest,
        split=images.split,
        captions=asked.how,
        resize=encoder.resize,
        resolution=encoder.side,
        seed=options.seed,
        leak=leak,
    )
    text_MD = encoder.text_features(asked.captions)
    found = retrieval(features_ND, text_MD, asked.image_groups, asked.groups)
    to_image = _of_way("text-to-image", found.text_to_image, asked.of, len(images), base)
    to_text = _of_way("image-to-text", found.image_to_text, range(len(images)), len(asked.captions), base)
    return [*to_image, *to_text, *_binding(features_ND, text_MD, asked, encoder, base)]


def _asked(dataset: Dataset, images: Images) -> Queries:
    row_of = {name: row for row, name in enumerate(dataset.ids)}
    several = [list(dict.fromkeys(dataset.captions[row_of[name]])) for name in images.ids]
    if all(len(own) == 1 for own in several):
        meanings = [meaning(own[0]) for own in several]
        first = list(dict(zip(reversed(meanings), reversed(range(len(meanings))), strict=True)).values())[::-1]
        how = "one of each image; equal meanings are hits of each other's images"
        return Queries([several[k][0] for k in first], [meanings[k] for k in first], first, meanings, how)
    ids = list(images.ids)
    pairs = [(k, caption) for k, own in enumerate(several) for caption in own]
    return Queries([c for _, c in pairs], [ids[k] for k, _ in pairs], [k for k, _ in pairs], ids, "all of each image")


def _of_way(way: str, one: Recall, groups: list[int] | range, candidates: int, base: ScoreProtocol) -> list[Score]:
    """Recall at each K with that of chance, and the median rank; queries of one image are drawn together."""
    rank, images = one.ranks, set(groups)

    def score(name: str, measure: Callable[[NDArray[np.int64]], float], **bounds: float) -> Score:
        interval, how = bootstrap_interval(lambda rows: measure(rank[rows]), groups, seed=base.seed or 0), BOOTSTRAP
        if name.startswith("r") and interval.low == interval.high in (0, 1):  # all were found, or none
            interval, how = wilson(interval.low * len(images), len(images)), "wilson"
        protocol = replace(base, metric=f"retrieval-{way}-{name}", n_fake=one.queries)
        return Score(measure(rank), protocol, interval, how, bounds)

    shares = [
        score(f"r{k}", lambda its, k=k: float((its <= k).mean()), chance=min(1.0, k / candidates)) for k in one.recall
    ]
    return [*shares, score("median-rank", lambda its: float(np.median(its)), chance=(candidates + 1) / 2)]


def _binding(
    features_ND: Features, text_MD: Features, asked: Queries, encoder: ImageTextExtractor, base: ScoreProtocol
) -> list[Score]:
    """The share of captions preferred to themselves with two attributes exchanged, of those that have two of a kind."""
    swapped = exchanged(asked.captions)
    rows = [row for row, caption in enumerate(swapped) if caption is not None]
    if not rows:
        warnings.warn("binding is left out: no caption has two attributes of one kind to exchange", stacklevel=3)
        return []
    swapped_ND = encoder.text_features([caption for caption in swapped if caption is not None])
    of = [asked.of[row] for row in rows]
    found = binding(features_ND[of], text_MD[rows], swapped_ND, of)
    samples = found.samples
    assert samples is not None
    interval = bootstrap_interval(lambda drawn: float(samples[drawn].mean()), of, seed=base.seed or 0)
    how = f"{counted(len(rows), 'caption')} of {len(asked.captions):,}"
    protocol = replace(base, metric="binding", n_fake=len(rows), captions=how)
    return [Score(found.value, protocol, interval, BOOTSTRAP, {"chance": 0.5})]
