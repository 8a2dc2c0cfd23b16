"""The options of `t2i search` and `t2i eval retrieval`. Imports no torch."""

from pathlib import Path
from typing import Self

from pydantic import model_validator

from t2i.config.options import Options, argument, option
from t2i.errors import InputError

BY = "An align run or clip:DIR, instead of the embedded scorer."


class SearchOptions(Options):
    """Find the images of a collection that are nearest to words, or to an image."""

    data: str = argument("A folder of images, captioned or not, or any data.", metavar="DATA")
    query: str | None = argument("What to find, in quotes.", metavar="QUERY", default=None)
    image: Path | None = option(None, "Find images like this one, instead of words.", metavar="FILE")
    by: str | None = option(None, BY, metavar="RUN")
    split: str | None = option(None, "Search this split alone: train, val, test or heldout; default: all.")
    k: int = option(20, "Images to find.", metavar="N", short="-k", ge=1)
    ann: bool = option(False, "Search an HNSW graph, and tell how often it finds what the exact search does.")
    ef: int | None = option(
        None, "With --ann: nodes that a query visits; more find more. Default: 256.", metavar="N", ge=1
    )
    html: Path | None = option(None, "Also write a page that shows the images.", metavar="PAGE")
    out: Path | None = option(None, "Also write the results as JSON.", metavar="FILE")

    @model_validator(mode="after")
    def _one_query(self) -> Self:
        if self.query is not None and self.image is not None:
            raise InputError(f"give either words or --image {self.image}; one search has one query")
        if self.image is None and not (self.query or "").strip():
            raise InputError('nothing to search for; give words, as in t2i search DATA "a red star", or --image FILE')
        if self.ef is not None and not self.ann:
            raise InputError(f"--ef {self.ef} does nothing in an exact search; add --ann, or leave it out")
        return self


class RetrievalOptions(Options):
    """Score how well an image-text encoder finds images by their captions and captions by their images."""

    data: str = argument("Captioned images.", metavar="DATA")
    by: str | None = option(None, BY, metavar="RUN")
    split: str = option("val", "Split of the data: val, test or heldout.")
    n: int | None = option(None, "Images; default: 1,000, or all where there are fewer.", metavar="N", short="-n", ge=2)
    seed: int = option(0, "Seed of the bootstrap; it does not choose the images.", ge=0)
    allow_leak: bool = option(False, "Score a run on its training data; the scores are marked.")
    out: Path | None = option(None, "JSON file of the scores; default: only print the table.", metavar="FILE")
