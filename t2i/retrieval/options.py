"""Options of `t2i search` and `t2i eval retrieval`. Imports no torch."""

from pathlib import Path
from typing import Self

from pydantic import model_validator

from t2i.config.options import SEEDS, Options, argument, option
from t2i.errors import InputError

BY = "Encoder to use instead of the embedded scorer: an align run or clip:DIR."


class SearchOptions(Options):
    """Find the images of a collection that are nearest to words, or to an image."""

    data: str = argument("A folder of images, with or without captions, or any other data.", metavar="DATA")
    query: str | None = argument("What to find, in quotes.", metavar="QUERY", default=None)
    image: Path | None = option(None, "Search by this image instead of words.", metavar="FILE")
    by: str | None = option(None, BY, metavar="RUN")
    split: str | None = option(None, "Search only this split: train, val, test or heldout; default: all.")
    k: int = option(20, "Number of images to find.", metavar="N", short="-k", ge=1)
    ann: bool = option(False, "Search an HNSW graph, and print its recall of the exact results.")
    ef: int | None = option(
        None,
        "With --ann: graph nodes that a query visits; a larger number raises the recall. Default: 256.",
        metavar="N",
        ge=1,
    )
    html: Path | None = option(None, "Also write an HTML page with the images.", metavar="PAGE")
    out: Path | None = option(None, "Also write the results as JSON.", metavar="FILE")

    @model_validator(mode="after")
    def _one_query(self) -> Self:
        if self.query is not None and self.image is not None:
            raise InputError(f"a search has one query, got words and --image {self.image}; drop one of them")
        if self.image is None and not (self.query or "").strip():
            raise InputError('no query; add words, as in t2i search DATA "a red star", or --image FILE')
        if self.ef is not None and not self.ann:
            raise InputError(f"--ef {self.ef} has no effect on the exact search; add --ann or drop it")
        return self


class RetrievalOptions(Options):
    """Score how well an image-text encoder finds images by their captions and captions by their images."""

    data: str = argument("Captioned images.", metavar="DATA")
    by: str | None = option(None, BY, metavar="RUN")
    split: str = option("val", "Split to score on: val, test or heldout.")
    n: int | None = option(
        None, "Number of images; default: 1,000, or all if there are fewer.", metavar="N", short="-n", ge=2
    )
    seed: int = option(0, "Seed of the bootstrap; the choice of images does not depend on it.", ge=0, lt=SEEDS)
    allow_leak: bool = option(False, "Score a run on its training data; its scores are marked.")
    out: Path | None = option(None, "JSON file for the scores; default: only print the table.", metavar="FILE")
