"""The HTML page of a search: the nearest images with their scores, captions and files."""

from pathlib import Path

from t2i.files import write_text
from t2i.report.template import inline, render, style
from t2i.retrieval.searching import Results

FOLDER = Path(__file__).parent
CAPTIONS = 5  # captions shown of an image


def write_page(out: Path, results: Results, by: str | None) -> None:
    """Writes the page completely or not at all.

    Raises:
        InputError: `out` cannot be written.
    """
    collection = results.collection
    facts = {
        "data": collection.address,
        "images": f"{collection.total:,}, {len(collection):,} of them different",
        "encoder": f"{by or 'embedded'} ({collection.encoder.clip_name})",
    }
    if results.recall is not None:
        facts["search"] = f"approximate, recall {results.recall:.3f} on sampled queries"
    rows = [
        {
            "rank": rank,
            "image": inline(collection.pixels(hit.row)),
            "score": f"{hit.score:.4f}",
            "captions": hit.captions[:CAPTIONS],
            "place": str(hit.places[0]),
            "copies": [str(place) for place in hit.places[1:]],
        }
        for rank, hit in enumerate(results.hits, 1)
    ]
    query_image = None if results.image is None else inline(results.image)
    values = {"query": results.query, "query_image": query_image, "facts": facts, "rows": rows}
    css = style("chart.css", "style.css")
    write_text(out, render("page.html", FOLDER, title=f"search: {results.query}", style=css, **values))
