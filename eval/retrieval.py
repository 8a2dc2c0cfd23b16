"""Scores an image-text encoder by its retrieval of images by captions and of captions by images.

    t2i eval retrieval shapes-3 --split val
    t2i eval retrieval coco:/data/coco --by clip:clip-vit-base-patch32 -n 5000 --out scores.json

Computes Recall@1, 5 and 10 and the median rank in both directions, and `binding`, the share of images nearer to their caption
than to the caption with two attributes swapped, which recall does not measure.
"""

from t2i.cli import run_program
from t2i.console import shown_progress, table
from t2i.files import refuse_unwritable
from t2i.hardware import device, prepare_cpu
from t2i.metrics.score import score_row, write_scores
from t2i.retrieval.options import RetrievalOptions


def main(options: RetrievalOptions) -> None:
    prepare_cpu()
    refuse_unwritable(options.out, "a JSON file", "--out")
    from t2i.retrieval.scores import score_retrieval  # slow to import, so only after the check

    # Scores of both directions, with their intervals and chance
    with shown_progress(" images") as tick:
        scores = score_retrieval(options, device(), tick)
    table(("score", "value", "95 % interval", "chance"), [score_row(score, ["chance"]) for score in scores])

    # The same as a file
    if options.out is not None:
        write_scores(options.out, scores)
        print(f"wrote {options.out}")


if __name__ == "__main__":  # python -m t2i.eval.retrieval
    run_program("eval", "retrieval")
