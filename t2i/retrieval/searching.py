"""One search: a query, the collection, and what was found."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from t2i import seeding
from t2i.data import parse_address
from t2i.data.captions import clean_caption
from t2i.errors import InputError
from t2i.extractors import ImageTextExtractor, open_image_text
from t2i.images import ImageArray
from t2i.metrics import Features
from t2i.names import counted
from t2i.retrieval.collection import ImageCollection, Place, Tick, open_collection, query_image
from t2i.retrieval.exact import Nearest, nearest_rows
from t2i.retrieval.graph import SEARCH_EF, cached_graph, near_rows, recall
from t2i.retrieval.options import SearchOptions
from t2i.retrieval.store import folder_of, unit_features

RECALL_QUERIES = 64  # by which an approximate search is compared with the exact one


class Hit(NamedTuple):
    """One image that was found, with its copies."""

    row: int  # of the collection
    score: float  # cosine
    places: list[Place]
    captions: list[str]


class Results(NamedTuple):
    """What a search found, the most similar first."""

    query: str
    image: ImageArray | None  # that was asked with
    collection: ImageCollection
    encoded: int  # images that were encoded for this search
    recall: float | None  # of the approximate search, on sampled queries
    hits: list[Hit]


def search(options: SearchOptions, device: str, tick: Tick = lambda what, done, total: None) -> Results:
    """Searches a collection by words or by an image.

    Raises:
        InputError: nothing to search, no such encoder, or an image that cannot be read.
    """
    text = clean_caption(options.query or "")
    if options.image is None and not text:
        raise InputError("the query holds nothing but blanks and control characters; give words")
    encoder = open_searcher(options.by, options.data, device)
    image = None if options.image is None else query_image(options.image, encoder.side)
    query_1D = unit_features(encoder.text_features([text]) if image is None else encoder.features(image[None]))
    collection = open_collection(options.data, encoder, options.split)
    encoded = collection.encode(tick)
    if options.k > len(collection):
        warnings.warn(f"{options.data} has {counted(len(collection), 'different image')}: all are listed", stacklevel=2)
    share = None
    if options.ann:
        found, share = _approximate(collection, query_1D, image is not None, options, tick)
    else:
        found = nearest_rows(query_1D, collection.features_ND, options.k)
    hits = [
        Hit(row, score, collection.places(row), collection.captions(row))
        for row, score in zip(found.rows_QK[0].tolist(), found.scores_QK[0].tolist(), strict=True)
    ]
    return Results(text or str(options.image), image, collection, encoded, share, hits)


def open_searcher(by: str | None, address: str, device: str) -> ImageTextExtractor:
    """Opens the encoder to search by, with a warning where the embedded one is asked about what it never saw.

    Raises:
        InputError: it is none, or reads no captions.
    """
    if by is None and parse_address(address).kind != "shapes":
        warnings.warn(
            "the embedded scorer knows rendered shapes alone; for other images name a run of t2i train align, or clip:DIR, "
            "with --by",
            stacklevel=3,
        )
    return open_image_text(by, device)


def _approximate(
    collection: ImageCollection, query_1D: Features, by_image: bool, options: SearchOptions, tick: Tick
) -> tuple[Nearest, float]:
    """The nearest rows by the graph, and its recall on other queries of the same kind."""
    rows_ND, total = collection.features_ND, len(collection)
    graph = cached_graph(
        rows_ND,
        folder_of(collection.encoder),
        collection.contents,
        lambda done: tick("building the graph", done, total),
    )
    ef = options.ef or SEARCH_EF
    sampled_QD = _sampled(collection, by_image)
    exact = nearest_rows(sampled_QD, rows_ND, options.k)
    share = recall(near_rows(graph, sampled_QD, rows_ND, options.k, ef), exact)
    return near_rows(graph, query_1D, rows_ND, options.k, ef), share


def _sampled(collection: ImageCollection, by_image: bool) -> Features:
    """Queries as users ask them: captions of images drawn from the collection, or images where there are none."""
    rows = list(range(len(collection))) if by_image else collection.captioned
    by_image = by_image or not rows
    rows = rows or list(range(len(collection)))
    drawn = [rows[k] for k in seeding.permutation(0, 0, len(rows))[:RECALL_QUERIES].tolist()]
    if by_image:
        return np.ascontiguousarray(collection.features_ND[drawn])
    return unit_features(collection.encoder.text_features([collection.captions(k)[0] for k in drawn]))


def as_json(results: Results, by: str | None) -> dict[str, Any]:
    """The results as a JSON object."""
    collection = results.collection
    return {
        "query": results.query,
        "by": by or "embedded",
        "encoder_digest": collection.encoder.digest(),
        "data": collection.address,
        "images": collection.total,
        "different_images": len(collection),
        "recall": results.recall,
        "results": [
            {"score": hit.score, "captions": hit.captions, "places": [place._asdict() for place in hit.places]}
            for hit in results.hits
        ],
    }


def lines_of(hits: Sequence[Hit]) -> list[str]:
    """Each image that was found on one line: score, place, how many copies there are, first caption."""
    lines = []
    for hit in hits:
        copies = f"x {len(hit.places)}" if len(hit.places) > 1 else ""
        lines.append("\t".join([f"{hit.score:.4f}", str(hit.places[0]), copies, *hit.captions[:1]]))
    return lines
