"""Scores of an image-text encoder on captioned images: Recall@K and median rank in both directions, and `binding`."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from t2i.data import Dataset, View, open_dataset
from t2i.data.shapes.captions import meaning
from t2i.data.swaps import exchanged
from t2i.extractors import ImageTextExtractor, open_image_text
from t2i.metrics import Features
from t2i.metrics.intervals import bootstrap_interval, wilson
from t2i.metrics.retrieval import Recall, binding, retrieval
from t2i.metrics.score import Score, ScoreProtocol
from t2i.names import counted
from t2i.retrieval.options import RetrievalOptions
from t2i.scoring.images.collection import Images, Tick, dataset_images
from t2i.scoring.images.extraction import Pass, extract
from t2i.scoring.leaks import refuse_leaks_of_encoder

VERSION = 1
BOOTSTRAP = "bootstrap of images"


class Queries(NamedTuple):
    """Captions as queries. A caption is a hit of an image if their groups are equal."""

    captions: list[str]  # M
    groups: list[str]  # M
    rows: list[int]  # M, the row of the caption's image
    image_groups: list[str]  # N
    description: str


def score_retrieval(options: RetrievalOptions, device: str, tick: Tick) -> list[Score]:
    """Computes Recall@1, 5, 10 and the median rank from text to images and from images to text, and `binding`.

    If each image has one caption, captions of equal meaning are hits of each other's images. If images have several, all
    captions are queries, and the hits of an image are its own captions.

    Raises:
        InputError: the data or the encoder cannot be opened, there are too few images, or the encoder was trained on them.
    """
    encoder = open_image_text(options.by, device)
    images = dataset_images(options.data, options.split, options.n, View(encoder.side))
    dataset = open_dataset(options.data, options.split, View(encoder.side, limit=options.n))
    dataset = (
        dataset
        if set(images.ids) <= set(dataset.ids)
        else open_dataset(options.data, options.split, View(encoder.side))
    )
    leak = refuse_leaks_of_encoder(options.by, images, options.allow_leak)
    features_ND = np.asarray(extract(images, "images", [encoder], Pass(tick)).features[encoder.digest()])
    queries = _queries(dataset, images)
    base = ScoreProtocol(
        metric_version=VERSION,
        extractor=encoder.clip_name,
        extractor_digest=encoder.digest(),
        n_fake=len(images),
        data=images.name,
        data_digest=images.digest,
        split=images.split,
        captions=queries.description,
        resize=encoder.resize,
        resolution=encoder.side,
        seed=options.seed,
        leak=leak,
    )
    text_MD = encoder.text_features(queries.captions)
    ranks = retrieval(features_ND, text_MD, queries.image_groups, queries.groups)
    to_image = _direction_scores("text-to-image", ranks.text_to_image, queries.rows, len(images), base)
    to_text = _direction_scores("image-to-text", ranks.image_to_text, range(len(images)), len(queries.captions), base)
    return [*to_image, *to_text, *_binding(features_ND, text_MD, queries, encoder, base)]


def _queries(dataset: Dataset, images: Images) -> Queries:
    row_of = {name: row for row, name in enumerate(dataset.ids)}
    captions = [list(dict.fromkeys(dataset.captions[row_of[name]])) for name in images.ids]
    if all(len(one) == 1 for one in captions):
        meanings = [meaning(one[0]) for one in captions]
        first = list(dict(zip(reversed(meanings), reversed(range(len(meanings))), strict=True)).values())[::-1]
        description = "one of each image; equal meanings are hits of each other's images"
        return Queries([captions[k][0] for k in first], [meanings[k] for k in first], first, meanings, description)
    ids = list(images.ids)
    pairs = [(k, caption) for k, several in enumerate(captions) for caption in several]
    return Queries([c for _, c in pairs], [ids[k] for k, _ in pairs], [k for k, _ in pairs], ids, "all of each image")


def _direction_scores(
    direction: str, recall: Recall, groups: list[int] | range, candidates: int, base: ScoreProtocol
) -> list[Score]:
    """Returns Recall@K and the median rank of one direction, with their values by chance.

    Args:
        groups: image of each query; the bootstrap draws all queries of an image together.
    """
    ranks, images = recall.ranks, set(groups)

    def score(name: str, measure: Callable[[NDArray[np.int64]], float], **bounds: float) -> Score:
        interval, how = bootstrap_interval(lambda rows: measure(ranks[rows]), groups, seed=base.seed or 0), BOOTSTRAP
        # the bootstrap has no width if all queries are found, or none
        if name.startswith("r") and interval.low == interval.high in (0, 1):
            interval, how = wilson(interval.low * len(images), len(images)), "wilson"
        protocol = replace(base, metric=f"retrieval-{direction}-{name}", n_fake=recall.queries)
        return Score(measure(ranks), protocol, interval, how, bounds)

    shares = [
        score(f"r{k}", lambda ranks, k=k: float((ranks <= k).mean()), chance=min(1.0, k / candidates))
        for k in recall.recall
    ]
    return [*shares, score("median-rank", lambda ranks: float(np.median(ranks)), chance=(candidates + 1) / 2)]


def _binding(
    features_ND: Features, text_MD: Features, queries: Queries, encoder: ImageTextExtractor, base: ScoreProtocol
) -> list[Score]:
    """Returns the share of captions that score higher than the same caption with two attributes of one kind exchanged."""
    swapped = exchanged(queries.captions)
    rows = [row for row, caption in enumerate(swapped) if caption is not None]
    if not rows:
        warnings.warn("binding is not computed: no caption has two attributes of one kind to exchange", stacklevel=3)
        return []
    swapped_ND = encoder.text_features([caption for caption in swapped if caption is not None])
    image_rows = [queries.rows[row] for row in rows]
    result = binding(features_ND[image_rows], text_MD[rows], swapped_ND, image_rows)
    samples = result.samples
    assert samples is not None
    interval = bootstrap_interval(lambda drawn: float(samples[drawn].mean()), image_rows, seed=base.seed or 0)
    description = f"{counted(len(rows), 'caption')} of {len(queries.captions):,}"
    protocol = replace(base, metric="binding", n_fake=len(rows), captions=description)
    return [Score(result.value, protocol, interval, BOOTSTRAP, {"chance": 0.5})]
