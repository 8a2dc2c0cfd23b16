"""Runs a search: encodes the query and the collection, and returns the nearest images."""

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

RECALL_QUERIES = 64  # sampled queries that the recall of an approximate search is measured with


class Hit(NamedTuple):
    """One result: an image with all its copies."""

    row: int  # in the collection
    score: float  # cosine
    places: list[Place]
    captions: list[str]


class Results(NamedTuple):
    """The results of a search, in order of decreasing similarity."""

    query: str
    image: ImageArray | None  # the query, if it is an image
    collection: ImageCollection
    encoded: int  # images encoded by this search and not read from the cache
    recall: float | None  # of an approximate search, measured on sampled queries
    hits: list[Hit]


def search(options: SearchOptions, device: str, tick: Tick = lambda what, done, total: None) -> Results:
    """Searches a collection by words or by an image.

    Raises:
        InputError: the query is empty, or the data, the encoder or the query image cannot be opened.
    """
    text = clean_caption(options.query or "")
    if options.image is None and not text:
        raise InputError("the query has only blanks and control characters; add words")
    encoder = open_searcher(options.by, options.data, device)
    image = None if options.image is None else query_image(options.image, encoder.side)
    query_1D = unit_features(encoder.text_features([text]) if image is None else encoder.features(image[None]))
    collection = open_collection(options.data, encoder, options.split)
    encoded = collection.encode(tick)
    if options.k > len(collection):
        warnings.warn(
            f"{options.data} has {counted(len(collection), 'different image')}, fewer than -k {options.k}", stacklevel=2
        )
    share = None
    if options.ann:
        nearest, share = _approximate(collection, query_1D, image is not None, options, tick)
    else:
        nearest = nearest_rows(query_1D, collection.features_ND, options.k)
    hits = [
        Hit(row, score, collection.places(row), collection.captions(row))
        for row, score in zip(nearest.rows_QK[0].tolist(), nearest.scores_QK[0].tolist(), strict=True)
    ]
    return Results(text or str(options.image), image, collection, encoded, share, hits)


def open_searcher(by: str | None, address: str, device: str) -> ImageTextExtractor:
    """Opens the encoder to search with; warns if it is the embedded one and the data is not rendered shapes.

    Raises:
        InputError: the encoder cannot be opened or cannot encode captions.
    """
    if by is None and parse_address(address).kind != "shapes":
        warnings.warn(
            "the embedded scorer knows only rendered shapes; for other images name an align run or clip:DIR with --by",
            stacklevel=3,
        )
    return open_image_text(by, device)


def _approximate(
    collection: ImageCollection, query_1D: Features, by_image: bool, options: SearchOptions, tick: Tick
) -> tuple[Nearest, float]:
    """Returns the nearest rows by the graph, and the recall of the graph on sampled queries of the same kind."""
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
    """Returns the features of random captions of the collection, or of random images if there are no captions."""
    rows = list(range(len(collection))) if by_image else collection.captioned
    by_image = by_image or not rows
    rows = rows or list(range(len(collection)))
    sampled = [rows[k] for k in seeding.permutation(0, 0, len(rows))[:RECALL_QUERIES].tolist()]
    if by_image:
        return np.ascontiguousarray(collection.features_ND[sampled])
    return unit_features(collection.encoder.text_features([collection.captions(k)[0] for k in sampled]))


def as_json(results: Results, by: str | None) -> dict[str, Any]:
    """Returns the results as a JSON object."""
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
    """Returns one line for each hit: score, file or id, number of copies, first caption."""
    lines = []
    for hit in hits:
        copies = f"x {len(hit.places)}" if len(hit.places) > 1 else ""
        lines.append("\t".join([f"{hit.score:.4f}", str(hit.places[0]), copies, *hit.captions[:1]]))
    return lines
