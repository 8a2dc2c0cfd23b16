"""Searches a collection for the images nearest to a text or to an image.

    t2i search photos/ "a red star" --by clip:clip-vit-base-patch32
    t2i search shapes-2 --image star.png -k 50 --html found.html

Each image is encoded once; the cache identifies images by their contents. docs/search.md has the details.
"""

import json

from t2i.cli import run_program
from t2i.console import shown_progress
from t2i.files import refuse_unwritable, write_text
from t2i.hardware import device, prepare_cpu
from t2i.names import counted
from t2i.retrieval.options import SearchOptions


def main(options: SearchOptions) -> None:
    prepare_cpu()
    refuse_unwritable(options.html, "an HTML file", "--html")
    refuse_unwritable(options.out, "a JSON file", "--out")
    # slow to import, so only after the checks
    from t2i.retrieval.page import write_page
    from t2i.retrieval.searching import as_json, lines_of, search

    # Hits, and a page with them
    with shown_progress(" images") as tick:
        results = search(options, device(), tick)
        if options.html is not None:
            write_page(options.html, results, options.by)

    # Hits, the size of the collection and the recall of the index on the terminal
    print("\n".join(lines_of(results.hits)))
    searched = results.collection
    copies = searched.total - len(searched)
    also = f" and {copies:,} {'copy' if copies == 1 else 'copies'}" if copies else ""
    print(f"searched {counted(len(searched), 'image')}{also} in {options.data}; {results.encoded:,} encoded now")
    if results.recall is not None:
        print(f"recall of the graph on sampled queries: {results.recall:.3f} of the exact results")

    # The hits as a file
    if options.out is not None:
        write_text(options.out, json.dumps(as_json(results, options.by), indent=2, ensure_ascii=False) + "\n")
    for place in filter(None, (options.html, options.out)):
        print(f"wrote {place}")


if __name__ == "__main__":  # python -m t2i.sample.search
    run_program("search")
